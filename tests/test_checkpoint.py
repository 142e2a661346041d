"""Checkpoints: written beside the training, the best one kept, damage noticed, a full disk survived."""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny

import dallegan
from dallegan.errors import UserError
from dallegan.loop import train
from dallegan.run.checkpoint import SUMS, Checkpoints

SHARDING = jax.sharding.SingleDeviceSharding(jax.devices()[0])
SIZE = 300_000


def state(value):
    """Returns 1.2 MB that do not compress."""
    return {"w": jax.random.normal(jax.random.key(value), (SIZE,)), "step": jnp.asarray(value)}


ABSTRACT = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SHARDING), jax.eval_shape(lambda: state(0))
)


@contextlib.contextmanager
def opened(workdir):
    with contextlib.closing(Checkpoints(workdir, keep=2, writer=True)) as checkpoints:
        yield checkpoints


def restored(workdir, step=None):
    with opened(workdir) as checkpoints:
        found = checkpoints.restore(ABSTRACT, step)
    value = int(found["step"])
    np.testing.assert_array_equal(found["w"], state(value)["w"])
    return value


def test_a_state_may_be_donated_while_it_is_written(tmp_path):
    step = jax.jit(lambda s: {"w": s["w"] * 0 - 1, "step": s["step"]}, donate_argnums=0)
    with opened(tmp_path) as checkpoints:
        for value in range(1, 4):
            now = state(value)
            checkpoints.save(value, now)
            jax.block_until_ready(step(now))  # writes -1 where it was
    assert restored(tmp_path) == 3
    assert restored(tmp_path, 2) == 2


def test_the_newest_and_the_best_are_kept(tmp_path):
    with opened(tmp_path) as checkpoints:
        for value, score in enumerate([0.1, 0.9, 0.2, None, 0.3], 1):
            checkpoints.save(value, state(value), score)
    with opened(tmp_path) as checkpoints:
        assert checkpoints.steps() == [2, 4, 5]
        assert checkpoints.best() == 2
        checkpoints.save(6, state(6), 0.95)
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.best()) == ([5, 6], 6)


def largest(folder):
    return max(
        (p for p in folder.rglob("*") if p.is_file() and p.name != SUMS), key=lambda p: p.stat().st_size
    )


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


def unreadable(path):
    """Makes a file as unreadable as wrong permissions do, but also for root, who may run this test."""
    path.unlink()
    path.mkdir()


DAMAGE = {
    "a file cut short": lambda d: os.truncate(largest(d), largest(d).stat().st_size // 2),
    "a flipped bit": lambda d: flip(largest(d)),
    "its data gone": lambda d: largest(d).unlink(),
    "a manifest gone": lambda d: next(d.glob("*/manifest.ocdbt")).unlink(),
    "an item gone": lambda d: shutil.rmtree(d / "state"),
    "its commit marker gone": lambda d: (d / "_CHECKPOINT_METADATA").unlink(),
    "an empty directory": lambda d: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in d.iterdir()],
    "a file that cannot be opened": lambda d: unreadable(largest(d)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_falls_back_to_the_checkpoint_before(tmp_path, damage):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.save(2, state(2))
    assert restored(tmp_path) == 2
    DAMAGE[damage](tmp_path / "checkpoints" / "2")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert restored(tmp_path) == 1
    assert [str(w.message).split(" (")[0] for w in warned] == ["checkpoint 2 cannot be read"]
    with opened(tmp_path) as checkpoints:
        with pytest.warns(UserWarning, match="cannot be read"):
            checkpoints.restore(ABSTRACT)
        checkpoints.save(2, state(2))  # training reaches the step again, and writes it again
    assert restored(tmp_path) == 2


def test_a_checkpoint_without_checksums_is_read(tmp_path):
    """A kill may have come before the checksums were written."""
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
    (tmp_path / "checkpoints" / "1" / SUMS).unlink()
    assert restored(tmp_path) == 1


@pytest.mark.parametrize(
    "sums",
    ["null", "[1]", "[" * 100_000, '{"state": {}}', '{"state": null}', "{", "\0", '{"a": [1, "x"]}', ""],
)
def test_checksums_that_are_none(tmp_path, sums):
    """They count as damage, of whatever shape they are."""
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.save(2, state(2))
    (tmp_path / "checkpoints" / "2" / SUMS).write_text(sums)
    with pytest.warns(UserWarning, match="checkpoint 2 cannot be read"):
        assert restored(tmp_path) == 1


def test_a_file_that_the_checksums_miss_is_a_fault(tmp_path):
    """Files that a file system or a desktop leaves, which are hidden, are none."""
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.save(2, state(2))
    folder = tmp_path / "checkpoints" / "2"
    for hidden in (".DS_Store", ".nfs0001", ".checksums.json.0123.part"):
        (folder / hidden).write_text("x")
    assert restored(tmp_path) == 2
    sums = json.loads((folder / SUMS).read_text())
    del sums[largest(folder).relative_to(folder).as_posix()]
    (folder / SUMS).write_text(json.dumps(sums))
    flip(largest(folder))
    with pytest.warns(UserWarning, match="checkpoint 2 cannot be read"):
        assert restored(tmp_path) == 1


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    """What the checkpoint does not know, as one of an older version, is not compared."""
    identity = {"optim.lr": (0.1, 0.2), "tokenizer.model": "ab"}

    def restore(now, save=False):
        with contextlib.closing(Checkpoints(tmp_path, writer=True, identity=now)) as checkpoints:
            if save:
                checkpoints.save(1, state(1))
                checkpoints.wait()
            return int(checkpoints.restore(ABSTRACT)["step"])

    assert restore(identity, save=True) == 1
    assert restore({}) == restore(identity | {"new": 1}) == restore({"new": 1}) == 1
    for name, value in (("optim.lr", (0.1, 0.3)), ("tokenizer.model", "cd")):
        with pytest.raises(UserError, match=rf"checkpoint 1 of .* was trained with other values of {name}:"):
            restore(identity | {name: value})
    shutil.rmtree(tmp_path / "checkpoints")
    assert restore({}, save=True) == restore(identity) == 1


def test_a_write_that_fails_does_not_make_a_directory_that_is_gone(tmp_path, monkeypatch):
    with opened(tmp_path / "run") as checkpoints:

        def fail(*_, **__):
            (tmp_path / "run").rename(tmp_path / "moved")
            raise FileNotFoundError(2, "No such file or directory")

        monkeypatch.setattr(checkpoints._orbax, "save_checkpointables_async", fail)
        checkpoints.save(1, state(1))
        with pytest.warns(UserWarning, match="CHECKPOINT 1 COULD NOT BE WRITTEN"):
            assert not checkpoints.wait()
    assert not (tmp_path / "run").exists()


def test_nothing_intact_is_an_error(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
    flip(largest(tmp_path / "checkpoints" / "1"))
    with (
        opened(tmp_path) as checkpoints,
        pytest.warns(UserWarning, match=r"checkpoint 1 cannot be read \([^:]*\)$"),
        pytest.raises(UserError, match=r"none of the checkpoints \[1\]"),
    ):
        checkpoints.restore(ABSTRACT)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("no small tmpfs can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_costs_one_checkpoint_and_not_the_run(small_disk):
    with opened(small_disk) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.wait()
        (small_disk / "others").write_bytes(bytes(2**22))
        checkpoints.save(2, state(2))
        with pytest.warns(UserWarning, match="CHECKPOINT 2 COULD NOT BE WRITTEN .No space left"):
            assert not checkpoints.wait()
        assert checkpoints.steps() == [1]
        (small_disk / "others").unlink()
        checkpoints.save(3, state(3))
        assert checkpoints.wait()
    with opened(small_disk) as checkpoints:
        assert checkpoints.steps() == [1, 3]
    assert [restored(small_disk, step) for step in (1, 3)] == [1, 3]


def test_a_write_that_cannot_even_begin_is_reported(tmp_path, monkeypatch):
    with opened(tmp_path) as checkpoints:

        def fail(*_, **__):
            raise OSError(116, "Stale file handle")

        monkeypatch.setattr(checkpoints._orbax, "save_checkpointables_async", fail)
        checkpoints.save(1, state(1))
        with pytest.warns(UserWarning, match="CHECKPOINT 1 COULD NOT BE WRITTEN .*Stale file handle"):
            assert not checkpoints.wait()
        checkpoints.save(2, state(2))  # after Orbax was opened again
        assert checkpoints.wait()
    assert restored(tmp_path) == 2


@pytest.mark.slow
def test_a_run_on_a_full_disk_trains_on_and_says_so(small_disk):
    """The same command completes the run once there is room."""
    config = tiny(workdir=str(small_disk / "run"))
    (small_disk / "others").write_bytes(bytes(6 * 2**20 - 2**19 - 2**14))  # room for all but checkpoints
    with (
        pytest.warns(UserWarning, match=r"COULD NOT BE WRITTEN"),
        pytest.raises(UserError, match="the last checkpoint could not be written"),
    ):
        train(config)
    (small_disk / "others").unlink()
    train(config)
    assert dallegan.load(config.workdir).sample("a cat").shape == (1, 16, 16, 3)
    assert [json.loads(line)["step"] for line in (small_disk / "run" / "metrics.jsonl").open()] == [2, 4, 6]


def test_orbax_is_silent_while_checkpoints_are_open_and_others_are_not(tmp_path):
    def passes(path):
        record = logging.LogRecord("absl", logging.INFO, path, 1, "a message", (), None)
        return bool(logging.getLogger("absl").filter(record))

    theirs, orbax = "/home/me/search.py", "/site-packages/orbax/checkpoint/_src/handlers.py"
    assert passes(orbax)
    with opened(tmp_path / "a"):
        with opened(tmp_path / "b"):
            assert passes(theirs)
            assert not passes(orbax)
        assert not passes(orbax)
    assert passes(orbax)
