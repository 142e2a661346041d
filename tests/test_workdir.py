"""The directory of a run: one run at a time, and only the run that it belongs to."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from conftest import tiny

from dallegan import loop
from dallegan.config import from_json
from dallegan.errors import UserError
from dallegan.loop import train
from dallegan.run import workdir


def test_other_settings_are_refused(finished):
    with pytest.raises(UserError, match=r"model.width: 16 -> 32") as error:
        train(tiny(workdir=str(finished), model__width=32))
    assert "--workdir" in str(error.value)


def test_another_number_of_images_is_refused(finished, tmp_path):
    """Batches are a function of it. A run whose data.json is missing or damaged resumes."""
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run" / "data.json"
    images = json.loads(file.read_text())["images"]
    file.write_text('{"images": 380}')
    with pytest.raises(
        UserError, match=rf"storybook has {images} images, but had 380 when the run in .*/run began"
    ):
        train(tiny(workdir=str(tmp_path / "run")))
    for damaged in ("", "[]", None):
        file.unlink() if damaged is None else file.write_text(damaged)
        train(tiny(workdir=str(tmp_path / "run")))
        assert json.loads(file.read_text()) == {"images": images}


def test_a_run_that_never_saved_gives_way_to_another(tmp_path, monkeypatch):
    def build(config):
        monkeypatch.setattr(loop, "make_gan", lambda *_: pytest.fail("far enough"))
        with pytest.raises(pytest.fail.Exception):
            train(config)
        return from_json((tmp_path / "config.json").read_text()), (tmp_path / "tokenizer.model").read_bytes()

    (small, pieces), (large, more) = (build(tiny(workdir=str(tmp_path), text__vocab=n)) for n in (400, 500))
    assert (small.text.vocab, large.text.vocab) == (400, 500)
    assert len(more) > len(pieces)


def test_a_saved_model_is_no_place_for_a_run(tmp_path):
    (tmp_path / "model.safetensors").touch()
    message = f"holds a saved model: choose another --workdir, and --init-from {tmp_path} to"
    with pytest.raises(UserError, match=message):
        train(tiny(workdir=str(tmp_path)))


def test_a_configuration_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model": {"detail": 64}}')
    with pytest.raises(
        UserError, match=r"config.json: not a dallegan configuration: .*: choose another --workdir"
    ):
        train(tiny(workdir=str(tmp_path)))


def test_checkpoints_without_settings_are_refused(finished, tmp_path):
    shutil.copytree(finished / "checkpoints", tmp_path / "orphan" / "checkpoints")
    with pytest.raises(UserError, match=r"no config.json that tells their settings"):
        train(tiny(workdir=str(tmp_path / "orphan")))


def test_checkpoints_without_their_tokenizer_are_refused(finished, tmp_path):
    """Another tokenizer of the same size would scramble the words in silence."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"has checkpoints but no tokenizer.model"):
        train(tiny(workdir=str(tmp_path / "run")))
    assert not (tmp_path / "run" / "tokenizer.model").exists()


def test_a_directory_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to --workdir"):
        train(tiny(workdir=str(tmp_path / "file" / "run")))


def test_a_read_only_directory(tmp_path, monkeypatch):
    """Root may write anywhere, so the system's answer is given here."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(UserError, match=rf"^cannot write to --workdir {tmp_path}: Read-only file system$"):
        workdir.hold(tmp_path)


@pytest.fixture
def other(tmp_path):
    """Another process that holds the directory `run`."""
    holds = """
import pathlib, sys, time
from dallegan.run.workdir import hold
with hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
    command = [sys.executable, "-c", holds, tmp_path / "run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_directory_in_which_another_process_trains(tmp_path, other, monkeypatch):
    monkeypatch.setattr(workdir, "PATIENCE", 1)
    message = r"run: another process trains in it: stop that one, or choose another --workdir"
    with pytest.raises(UserError, match=message):
        train(tiny(workdir=str(tmp_path / "run")))
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_run_that_is_killed_is_waited_for(tmp_path, other, capsys):
    """The file that it leaves behind locks nothing."""
    timer = threading.Timer(1.5, other.kill)
    timer.start()
    with workdir.hold(tmp_path / "run"):
        assert other.wait() == -signal.SIGKILL
    assert capsys.readouterr().err.count("another process trains in it: waiting for it to end") == 1
    assert (tmp_path / "run" / ".lock").exists()
    with workdir.hold(tmp_path / "run"):
        assert not capsys.readouterr().err


@pytest.mark.parametrize("number", workdir.NO_LOCKS)
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with workdir.hold(tmp_path / "run"), workdir.hold(tmp_path / "run"):
        pass
