"""The directory of a run: which process may write to it, and which run it belongs to."""

import contextlib
import errno
import json
import pathlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from filelock import FileLock, Timeout

from dallegan.config import Config, conflicts, from_json, to_json
from dallegan.errors import UserError
from dallegan.io.files import write_atomic, writing
from dallegan.run.machine import about
from dallegan.run.processes import is_main

PATIENCE = 100  # seconds to wait for another run; longer than a file server keeps the locks of a dead machine
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # errors of a file system that has no locks
TOKENIZER = "tokenizer.model"
WANDB_ID = "wandb.id"  # the file with the name of the run on Weights & Biases


@contextlib.contextmanager
def warn_on_oserror(name: str) -> Iterator[None]:
    """Turns an OSError into a warning, for the file `name`, which a run can do without."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"{name} could not be written ({error.strerror}); training goes on", stacklevel=3)


def has_checkpoints(workdir: pathlib.Path) -> bool:
    """Returns whether the directory has a checkpoint to resume from, or the remains of one."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def hold(workdir: pathlib.Path) -> contextlib.AbstractContextManager[Any]:
    """Makes and locks the directory, and returns a context manager that unlocks it.

    Two runs in one directory would delete each other's checkpoints while they are written. If another run
    holds the lock, this waits up to PATIENCE seconds, since that run may be about to end. The lock ends with
    the process that holds it, however that process ends; the file that it leaves behind locks nothing. On a
    file system without locks there is none.

    Raises UserError if the directory cannot be written to, or if the other run does not end.
    """
    lock = FileLock(workdir / ".lock", fallback_to_soft=False)  # a soft lock would outlive a killed process
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(Timeout):
            return lock.acquire(timeout=0)
        print(f"{workdir}: another process trains in it: waiting for it to end", file=sys.stderr)
        return lock.acquire(timeout=PATIENCE, poll_interval=1)
    except Timeout:
        raise UserError(
            f"--workdir {workdir}: another process trains in it: stop that one, or choose another --workdir"
        ) from None
    except OSError as error:
        if error.errno in NO_LOCKS:
            return contextlib.nullcontext()
        raise _unwritable(workdir, error) from None


def claim_config(workdir: pathlib.Path, config: Config) -> None:
    """Writes config.json into a new directory, or checks that the directory belongs to these settings.

    A run that ended before its first checkpoint has nothing to resume from, so another one may take its
    place. Raises UserError if the directory belongs to another run, or cannot be written to.
    """
    path, begun, differing = workdir / "config.json", has_checkpoints(workdir), {}
    try:
        if path.exists():
            differing = conflicts(_read_config(path), config)
        elif begun:
            hint = "choose another --workdir"
            raise UserError(f"{workdir} has checkpoints but no config.json that tells their settings: {hint}")
        if differing and begun:
            changes = "; ".join(f"{name}: {old} -> {new}" for name, (old, new) in differing.items())
            raise UserError(
                f"{workdir} holds a run with other settings ({changes}): "
                "choose another --workdir, or take the old settings to resume"
            )
        (workdir / "samples").mkdir(exist_ok=True)
        if differing:  # what belongs to the other settings goes first, in case of a kill in between
            for name in (TOKENIZER, WANDB_ID):
                (workdir / name).unlink(missing_ok=True)
        if differing or not path.exists():
            write_atomic(path, to_json(config))
    except OSError as error:
        raise _unwritable(workdir, error) from None


def _read_config(path: pathlib.Path) -> Config:
    try:
        return from_json(path.read_text("utf-8", "replace"))
    except UserError as error:
        raise UserError(f"{path}: {error}: choose another --workdir") from None


def _unwritable(workdir: pathlib.Path, error: OSError) -> UserError:
    return UserError(f"cannot write to --workdir {workdir}: {error.strerror}")


def record_image_count(workdir: pathlib.Path, source: str, images: int) -> None:
    """Writes the number of images that a run trains on to data.json, or checks it if the run resumes.

    The order of the images is a function of their number. Raises UserError if the number has changed.
    """
    path, recorded = workdir / "data.json", None
    if has_checkpoints(workdir) and path.exists():
        with contextlib.suppress(ValueError, AttributeError):  # a damaged file
            recorded = json.loads(path.read_text("utf-8", "replace")).get("images")
    if recorded is None:
        with writing(path):
            write_atomic(path, json.dumps({"images": images}))
    elif recorded != images:
        hint = f"restore those images, or fine-tune with --init-from {workdir} and another --workdir"
        counts = f"{images} images, but had {recorded} when the run in {workdir} began"
        raise UserError(f"--data.source {source} has {counts}: {hint}")


def record_machine(workdir: pathlib.Path) -> None:
    """Writes the command, device and versions of the newest start to machine.json."""
    with warn_on_oserror("machine.json"):
        write_atomic(workdir / "machine.json", json.dumps(about(), indent=2))


def write_skipped(workdir: pathlib.Path, skipped: Mapping[str, str]) -> int:
    """Lists what this process could not use of its source in `skipped*.log`, and returns how many that are.

    Args:
        workdir: the directory of the run.
        skipped: the reason for each skipped file, by the file's name. Threads may add to it meanwhile.
    """
    lines = [f"{name}\t{reason}\n" for name, reason in sorted(dict(skipped).items())]
    if lines:
        path = workdir / ("skipped.log" if is_main() else f"skipped-{jax.process_index()}.log")
        with warn_on_oserror(path.name):
            write_atomic(path, "".join(lines))
    return len(lines)
