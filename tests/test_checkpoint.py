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
    """1.2 MB that do not compress."""
    return {"w": jax.random.normal(jax.random.key(value), (SIZE,)), "step": jnp.asarray(value)}


ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SHARDING), jax.eval_shape(lambda: state(0)))


@contextlib.contextmanager
def opened(workdir, keep=2):
    checkpoints = Checkpoints(workdir, keep, writer=True)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


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
    return max((p for p in folder.rglob("*") if p.is_file() and p.name != SUMS), key=lambda p: p.stat().st_size)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


def unreadable(path):
    """As wrong permissions are to all but root, who may run this."""
    path.unlink()
    path.mkdir()


DAMAGE = {
    "a file cut short": lambda d: os.truncate(largest(d), largest(d).stat().st_size // 2),
    "a flipped bit": lambda d: flip(largest(d)),
    "its data gone": lambda d: largest(d).unlink(),
    "a manifest gone": lambda d: next(p for p in d.rglob("manifest.ocdbt") if p.parent.parent == d).unlink(),
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
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert restored(tmp_path) == 1
    assert [str(w.message).split(" (")[0] for w in told] == ["checkpoint 2 cannot be read"]
    with opened(tmp_path) as checkpoints:
        with pytest.warns(UserWarning, match="cannot be read"):
            checkpoints.restore(ABSTRACT)
        checkpoints.save(2, state(2))  # training comes by again: written anew
    assert restored(tmp_path) == 2


def test_without_checksums_it_is_still_a_checkpoint(tmp_path):
    """A kill may fall between the two."""
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
    (tmp_path / "checkpoints" / "1" / SUMS).unlink()
    assert restored(tmp_path) == 1


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
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small tmpfs here")
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


def test_what_cannot_even_be_begun_is_not_taken_for_saved(tmp_path, monkeypatch):
    with opened(tmp_path) as checkpoints:

        def fail(*_, **__):
            raise OSError(116, "Stale file handle")

        monkeypatch.setattr(checkpoints._orbax, "save_checkpointables_async", fail)
        checkpoints.save(1, state(1))
        with pytest.warns(UserWarning, match="CHECKPOINT 1 COULD NOT BE WRITTEN .*Stale file handle"):
            assert not checkpoints.wait()
        checkpoints.save(2, state(2))  # Orbax is opened anew
        assert checkpoints.wait()
    assert restored(tmp_path) == 2


@pytest.mark.slow
def test_a_run_on_a_full_disk_goes_on_and_says_so(small_disk):
    """The same command ends it once there is room."""
    config = tiny(workdir=str(small_disk / "run"))
    (small_disk / "others").write_bytes(bytes(6 * 2**20 - 2**19 - 2**14))  # room for all but checkpoints
    with pytest.warns(UserWarning, match=r"COULD NOT BE WRITTEN"), pytest.raises(UserError, match="the last checkpoint could not be written"):
        train(config)
    (small_disk / "others").unlink()
    train(config)
    assert dallegan.load(config.workdir).sample("a cat").shape == (1, 16, 16, 3)
    assert [json.loads(line)["step"] for line in (small_disk / "run" / "metrics.jsonl").open()] == [2, 4, 6]


def test_messages_of_others_are_not_silenced():
    from_file = lambda path: logging.getLogger("absl").filter(logging.LogRecord("absl", logging.ERROR, path, 1, "told", (), None))
    assert from_file("/home/me/search.py")
    assert not from_file("/site-packages/orbax/checkpoint/_src/handlers.py")
