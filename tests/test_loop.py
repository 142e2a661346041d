"""Training end to end: metrics, sample grids, resuming bit for bit, signals, steps that are not finite."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, final, tiny
from PIL import Image

import dallegan
from dallegan import loop, parallel
from dallegan.config import from_json, to_json
from dallegan.data.storybook.scenes import Storybook
from dallegan.errors import UserError
from dallegan.loop import train
from dallegan.run.log import Diverged, Log
from dallegan.steps import make_train_step


def test_a_run_leaves_what_the_contract_says(finished):
    files = {"config.json", "metrics.jsonl", "samples", "checkpoints", "tokenizer.model"}
    assert files <= {p.name for p in finished.iterdir()}
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [16, 32, 48]
    losses = {"d_loss", "g_loss", "r1", "r2", "match_gap", "grad_norm_g", "grad_norm_d"}
    assert losses | {"step", "images", "images_per_second", "data_wait"} <= set(lines[0])
    for line in lines:
        assert np.isfinite(line["d_loss"])
        assert line["images_per_second"] > 0
        assert 0 <= line["data_wait"] <= 1
    grids = sorted((finished / "samples").iterdir())
    assert [g.name for g in grids] == ["00000024.png", "00000048.png"]
    assert np.asarray(Image.open(grids[0])).std() > 10


def test_a_run_needs_a_directory():
    with pytest.raises(UserError, match="--workdir is empty"):
        train(tiny(workdir=""))


def test_training_then_sampling(finished):
    model = dallegan.load(finished)
    images = model.sample(["一只棕色的大熊站在雪地里"], n=2, seed=0)
    assert images.shape == (2, 16, 16, 3)
    assert images.dtype == np.uint8


def test_a_finished_run_is_left_alone(finished, capsys):
    before = final(finished)
    train(tiny(workdir=str(finished)))
    shown = capsys.readouterr()
    assert "complete" in shown.out
    assert shown.err.startswith("data: images without end, captions 256 of the first 256 images (")
    assert final(finished) == before


def test_resumed_equals_uninterrupted(finished, tmp_path, monkeypatch):
    """The run stops after step 3, between two checkpoints."""
    workdir, add, seen = tmp_path / "part", Log.add, []

    def stopping(self, metrics):
        add(self, metrics)
        seen.append(1)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Log, "add", stopping)
    train(tiny(workdir=str(workdir)))
    monkeypatch.undo()
    assert final(workdir)[0] == len(seen) == 3
    train(tiny(workdir=str(workdir)))
    assert final(workdir) == final(finished)
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    assert steps == [2, 3, 4, 6]  # one more line than the run that was not stopped


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the checkpoint of step 2 may be on its way, in threads of Orbax
@pytest.mark.parametrize("again", [False, True], ids=["gone", "taken"])
def test_a_directory_that_is_renamed_midway(finished, tmp_path, monkeypatch, again):
    """The run stops and saves where the directory is now, and makes no other in its old place."""
    before, after = tmp_path / "before", tmp_path / "after"
    add, seen = Log.add, []

    def renaming(self, metrics):
        add(self, metrics)
        seen.append(1)
        if len(seen) == 3:
            before.rename(after)
            if again:
                before.mkdir()
                (before / "theirs").touch()

    monkeypatch.setattr(Log, "add", renaming)
    message = rf"{before} was renamed to {after} while it trained: stopped and saved at step (3|4); --workdir"
    with pytest.raises(UserError, match=message):
        train(tiny(workdir=str(before)))
    monkeypatch.undo()
    assert (before / "theirs").exists() == before.exists() == again
    train(tiny(workdir=str(after)))
    assert final(after) == final(finished)


def test_a_directory_that_is_removed_midway(tmp_path, monkeypatch):
    add = Log.add

    def removing(self, metrics):
        add(self, metrics)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)

    monkeypatch.setattr(Log, "add", removing)
    with pytest.raises(UserError, match=r"run was removed, or taken by another process, before step 2 was"):
        train(tiny(workdir=str(tmp_path / "run")))
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_with_two_pieces_swapped_is_refused(finished, tmp_path):
    """Its words would be numbered otherwise, in silence."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    proto = (workdir / "tokenizer.model").read_bytes()
    one, two = "\u2581red".encode(), "\u2581cat".encode()
    assert one in proto
    assert two in proto
    swapped = proto.replace(one, b"?" * 6).replace(two, one).replace(b"?" * 6, two)
    (workdir / "tokenizer.model").write_bytes(swapped)
    for use in (lambda: train(tiny(workdir=str(workdir))), lambda: dallegan.load(workdir)):
        with pytest.raises(UserError, match=r"was trained with other values of tokenizer.model"):
            use()
    (workdir / "tokenizer.model").write_bytes(proto)
    config = json.loads((workdir / "config.json").read_text())
    config["loss"]["gamma"] = [3.0, 3.0]  # in the file and on the command line alike
    (workdir / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"was trained with other values of loss.gamma"):
        train(tiny(workdir=str(workdir), loss__gamma=(3.0, 3.0)))


@pytest.mark.slow
def test_killed_three_times_equals_uninterrupted(tmp_path):
    """SIGKILL at random moments, and the same command until it is done: the same state, bit for bit."""
    config = tiny(steps=400, log__samples=1600, log__checkpoint=160)
    program = "import sys; from dallegan import config, loop; loop.train(config.from_json(sys.stdin.read()))"
    rng, hashes = random.Random(0), []

    def launch(workdir):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes)
        process.stdin.write(to_json(dataclasses.replace(config, workdir=str(workdir))).encode())
        process.stdin.close()
        return process

    for kills in (0, 3):
        workdir = tmp_path / f"killed{kills}"
        for kill in range(kills):
            process = launch(workdir)
            until = (kill + 1) * 400 // 4
            while process.poll() is None:
                metrics = workdir / "metrics.jsonl"
                if metrics.exists() and metrics.read_text().count("\n") * 2 >= until:
                    break
                time.sleep(0.02)
            time.sleep(0.5 * rng.random())
            assert process.poll() is None, "finished before it could be killed"
            process.kill()
            process.wait()
        assert launch(workdir).wait() == 0
        hashes.append(final(workdir))
    assert hashes[0] == hashes[1]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(finished, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(finished, workdir)
    newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.is_dir())
    shutil.rmtree(workdir / "checkpoints" / str(newest) / "state")
    with pytest.warns(UserWarning, match="cannot be read"):
        train(tiny(workdir=str(workdir)))
    # the damaged step was written again: nothing warns any more
    assert final(workdir) == final(finished)


def test_scores_are_logged_at_once_and_the_best_checkpoint_is_kept(tmp_path, monkeypatch):
    scores = iter([0.9, 0.1])
    evaluate = lambda model: {"alignment": next(scores), "side": None}
    monkeypatch.setattr(loop, "make_quick", lambda *_: evaluate)
    monkeypatch.setattr(loop, "KEEP", 1)
    train(tiny(workdir=str(tmp_path / "run"), log__metrics=1000, log__evaluate=24, log__checkpoint=24))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [24, 48]
    assert [line["alignment"] for line in lines] == [0.9, 0.1]
    assert lines[1]["side"] is None
    draw = lambda at: dallegan.load(f"{tmp_path / 'run'}{at}").sample("a red cat")
    np.testing.assert_array_equal(draw("@best"), draw("@3"))
    np.testing.assert_array_equal(draw("@6"), draw(""))
    assert not np.array_equal(draw("@3"), draw("@6"))
    with pytest.raises(UserError, match="no checkpoint @5: there are 3, 6"):
        draw("@5")


def test_steps_that_are_not_finite_are_skipped_and_ten_in_a_row_stop_the_run(tmp_path, monkeypatch, capsys):
    def poisoned(*args):
        step = make_train_step(*args)

        def spoil(state, image):
            poison = jnp.where((state.step == 2) | (state.step >= 5), jnp.nan, 1.0)
            return image.astype(jnp.float32) * poison

        return lambda state, batch: step(state, batch | {"image": spoil(state, batch["image"])})

    monkeypatch.setattr(parallel, "make_train_step", poisoned)
    workdir = tmp_path / "run"
    with pytest.raises(Diverged, match="10 steps in a row, up to step 15,"):
        train(tiny(workdir=str(workdir), steps=50))
    shown = capsys.readouterr().err
    assert "step 3 was not finite and is left out" in shown
    assert "step 5 was" not in shown
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines[:3]] == [0, 1, 2]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(dallegan.load(workdir).params))


@pytest.mark.slow
def test_an_unknown_source_in_a_thread(tmp_path):
    class Mine(Storybook):
        """No source that `data.source` can name."""

    config, failed = tiny(workdir=str(tmp_path / "run"), steps=2, log__evaluate=8), []

    def work():
        try:
            train(config, Mine(16, "train"))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)  # where signals cannot be handled
    thread.start()
    thread.join()
    assert not failed
    assert from_json((tmp_path / "run" / "config.json").read_text()).data.source == "Mine"
    assert final(tmp_path / "run")
    # the judge does not know what an unknown source shows
    assert "alignment" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert dallegan.load(tmp_path / "run").sample("a cat").shape == (1, 16, 16, 3)


@pytest.mark.slow
def test_a_pretrained_encoder_takes_the_tokenizers_place(tmp_path):
    workdir = tmp_path / "run"
    train(tiny(workdir=str(workdir), text__encoder="frozen", steps=3))
    model = dallegan.load(workdir)
    text = model.gan.encode(model.params, model.tokenizer.encode(["一只猫", "a cat"]))
    assert (text.sentence.shape, text.tokens.shape, text.mask.shape) == ((2, 16), (2, 1, 16), (2, 1))
    model.save(tmp_path / "saved")
    saved = dallegan.load(tmp_path / "saved")
    images = saved.sample(["一只猫", "a cat"], n=2)
    np.testing.assert_array_equal(images[2:], saved.sample("a cat", n=2))
    assert saved.interpolate("一只猫", "a cat", 3).shape == (3, 16, 16, 3)
    command = [
        sys.executable,
        "-m",
        "dallegan",
        "export",
        "--model",
        tmp_path / "saved",
        "--out",
        tmp_path / "cat.jax",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    subprocess.run([sys.executable, tmp_path / "cat.py"], cwd=tmp_path, check=True)
    with Image.open(tmp_path / "cat.png") as image:
        assert image.size == (16, 16)
