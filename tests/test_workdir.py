"""The directory of a run: one run at a time, and only the run that it belongs to."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from conftest import tiny
from PIL import Image

from dallegan import loop
from dallegan.config import from_json
from dallegan.data.pipeline import make_source
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
    for damaged in ("", "[]", '{"images": "many", "names": [1]}', None):
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
    message = rf"^cannot write to --workdir {tmp_path}: Read-only file system$"
    with pytest.raises(UserError, match=message), workdir.hold(tmp_path):
        pass


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
    monkeypatch.setattr(workdir, "PATIENCE", 1)
    hold = lambda: workdir.hold(tmp_path / "run")
    with pytest.warns(UserWarning, match="its file system has no locks"):  # noqa: PT031
        with hold() as find:
            assert find() == str(tmp_path / "run")
            with pytest.raises(UserError, match="another process trains in it"), hold():
                pass
        with hold():
            pass


def test_two_processes_on_a_file_system_without_locks(tmp_path, monkeypatch):
    """A killed one leaves a file behind, which ends to count when it is no longer touched."""
    program = """
import errno, fcntl, pathlib, sys, time
def refuse(*_): raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = refuse
from dallegan.run.workdir import hold
with hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr(workdir, "PATIENCE", 1)
    command = [sys.executable, "-c", program, tmp_path / "run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.warns(UserWarning, match="no locks"),
            pytest.raises(UserError, match="another process trains in it"),
            workdir.hold(tmp_path / "run"),
        ):
            pass
        process.kill()
    with pytest.warns(UserWarning, match="no locks"), workdir.hold(tmp_path / "run") as find:
        assert find()


@pytest.fixture
def begun(tmp_path):
    """Returns a function that resumes a run of three pictures from the data at another path."""
    data = tmp_path / "data"
    data.mkdir()
    for name in "abc":
        Image.new("RGB", (16, 16), (ord(name), 0, 0)).save(data / f"{name}.png")
        (data / f"{name}.txt").write_text(f"a {name}")

    def resume(source):
        config = tiny(workdir=str(tmp_path / "run"), data__source=source)
        opened = make_source(config)
        workdir.claim(tmp_path / "run", config, {"images": len(opened), **opened.identity()})
        return from_json((tmp_path / "run" / "config.json").read_text()).data.source

    (tmp_path / "run").mkdir()
    resume(f"folder:{data}")
    (tmp_path / "run" / "checkpoints" / "2").mkdir()
    return resume


def test_data_that_moved_are_the_same_data(begun, tmp_path, monkeypatch):
    data = tmp_path / "data"
    (tmp_path / "link").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    for path in (f"{data}/", "data", "./data", "link", f"{tmp_path}/run/../data"):
        assert begun(f"folder:{path}") == f"folder:{path}"
    data.rename(tmp_path / "moved")
    assert begun("folder:moved") == "folder:moved"  # so that `dallegan evaluate` finds them


def test_other_data_of_the_same_number_are_refused(begun, tmp_path):
    data, other = tmp_path / "data", tmp_path / "other"
    shutil.copytree(data, other)
    (other / "b.txt").write_text("a dog")
    with pytest.raises(UserError, match=r"data.source: folder:.*/data -> folder:.*/other"):
        begun(f"folder:{other}")
    (data / "b.txt").write_text("a dog")  # a caption may be mended
    begun(f"folder:{data}")
    for kind in ("png", "txt"):
        (data / f"b.{kind}").rename(data / f"d.{kind}")
    with pytest.raises(UserError, match=r"has other images than when the run in .*/run began"):
        begun(f"folder:{data}")


def test_a_run_from_before_names_were_recorded_resumes(begun, tmp_path):
    (tmp_path / "run" / "data.json").write_text('{"images": 3}')
    with pytest.raises(UserError, match="with other settings"):
        begun("folder:" + str(tmp_path / "data") + "/")
    begun(f"folder:{tmp_path / 'data'}")
    assert "names" in json.loads((tmp_path / "run" / "data.json").read_text())


@pytest.mark.parametrize("name", ["checkpoints", "samples"])
def test_a_file_in_the_place_of_a_folder_is_said_at_the_start(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=rf"cannot write to --workdir {tmp_path}: {name}: File exists"):
        train(tiny(workdir=str(tmp_path)))


@pytest.mark.parametrize("name", [".lock", "config.json", "data.json", "metrics.jsonl", "tokenizer.model"])
def test_what_is_no_file_is_neither_read_nor_filled(tmp_path, name):
    if name == "metrics.jsonl":
        (tmp_path / name).symlink_to("/dev/full")
    else:
        os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"{tmp_path}/{name} is not a regular file: remove it"):
        train(tiny(workdir=str(tmp_path)))


def test_a_directory_whose_name_is_not_utf8(tmp_path):
    with pytest.raises(UserError, match="its name is not UTF-8"):
        train(tiny(workdir=f"{tmp_path}/a\udcffb"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run", "~nobody-at-all/run"])
def test_a_directory_elsewhere_is_refused_before_anything_is_made(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=rf"^{address}( is an address, not a path on a disk|: there is no such)"
    ):
        train(tiny(workdir=address))
    assert not list(tmp_path.iterdir())


def test_names_in_skipped_log_are_escaped(tmp_path):
    workdir.write_skipped(tmp_path, {"a\x1b[2J\nb.png": "no\ncaption"})
    assert (tmp_path / "skipped.log").read_text() == "a\\x1b[2J\\nb.png\tno\\ncaption\n"
