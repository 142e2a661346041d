"""The directory of a run: which process may write to it, and which run it belongs to."""

import contextlib
import errno
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

from dallegan.config import Config, conflicts, fixed_settings, from_json, to_json
from dallegan.errors import UserError
from dallegan.io.files import digest, is_special, parse_object, read_file, write_atomic
from dallegan.io.text import listed, say
from dallegan.run.machine import about
from dallegan.run.processes import is_main

PATIENCE = 100  # seconds to wait for another run; longer than a file server keeps the locks of a dead machine
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # errors of a file system that has no locks
LEASE = 30  # seconds without a sign of life after which a process on such a file system is taken for dead
FIXED = "images", "names"  # facts about the data that may not change when a run resumes
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


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[Callable[[], str]]:
    """Makes and locks the directory for the block, and yields a function that finds it.

    Two runs in one directory would delete each other's checkpoints while they are written. If another run
    holds the lock, this waits up to PATIENCE seconds, since that run may be about to end. The lock ends with
    the process that holds it, however that process ends; the file that it leaves behind locks nothing. On a
    file system without locks, a file that this process touches every few seconds takes the lock's place.

    The function returns the directory's absolute path, which is another one if the directory was renamed
    (on Linux), and "" if it was removed or another process has taken it.

    Raises UserError if the directory cannot be written to, or if the other run does not end.
    """
    home = str(workdir.absolute())
    if home != home.encode("utf-8", "replace").decode():
        raise UserError(f"--workdir {workdir}: its name is not UTF-8, as checkpoints need; choose another")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for path in workdir.iterdir():  # a pipe would be waited for, and a device read or filled for ever
            if is_special(path):
                raise UserError(f"{path} is not a regular file: remove it, or choose another --workdir")
        lock: BaseFileLock = FileLock(workdir / ".lock", fallback_to_soft=False)  # it ends with the process
        try:
            _acquire(lock, workdir)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warnings.warn(f"{workdir}: its file system has no locks; .lease takes their place", stacklevel=3)
            lock = SoftFileLease(workdir / ".lease", lease_duration=LEASE)
            _acquire(lock, workdir)
        folder = os.open(home, os.O_RDONLY)
    except OSError as error:
        raise _unwritable(workdir, error) from None
    try:
        yield lambda: "" if getattr(lock, "compromise", None) else _find(home, folder)
    finally:
        os.close(folder)
        lock.release()


def _acquire(lock: BaseFileLock, workdir: pathlib.Path) -> None:
    try:
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            return
        say(f"{workdir}: another process trains in it: waiting for it to end", sys.stderr)
        lock.acquire(timeout=PATIENCE, poll_interval=1)
    except Timeout:
        raise UserError(
            f"--workdir {workdir}: another process trains in it: stop that one, or choose another --workdir"
        ) from None


def _find(home: str, folder: int) -> str:
    """Returns where the directory that is open as `folder`, and was at `home`, lies now; "" for nowhere."""
    try:
        if os.path.samestat(os.stat(home), os.fstat(folder)):
            return home
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:  # of a file system that is away for a while
        return home
    place = os.path.realpath(f"/proc/self/fd/{folder}")
    return place if os.path.isdir(place) else ""


def claim(workdir: pathlib.Path, config: Config, data: Mapping[str, Any]) -> None:
    """Writes config.json and data.json into a new directory, or checks that they are of this run.

    A run that ended before its first checkpoint has nothing to resume from, so another one may take its
    place. The data may have moved: they are the same if their number and all digests agree.

    Args:
        workdir: the directory of the run.
        config: its settings.
        data: "images", their number, and what `Source.identity` returns.

    Raises:
        UserError: if the directory belongs to another run, or cannot be written to.
    """
    path, begun = workdir / "config.json", has_checkpoints(workdir)
    try:
        if begun and not path.exists():
            hint = "choose another --workdir"
            raise UserError(f"{workdir} has checkpoints but no config.json that tells their settings: {hint}")
        differing = conflicts(_read_config(path), config) if path.exists() else {}
        recorded = _read_data(workdir / "data.json") if begun else {}
        kinds = {source.partition(":")[0] for source in differing.get("data.source", ())}
        moved = len(differing) == len(kinds) == 1 and "contents" in data and recorded == data
        if differing and begun and not moved:
            changes = "; ".join(f"{name}: {old} -> {new}" for name, (old, new) in differing.items())
            raise UserError(
                f"{workdir} holds a run with other settings ({changes}): "
                "choose another --workdir, or take the old settings to resume"
            )
        now, had = ({name: x.get(name, data.get(name)) for name in FIXED} for x in (data, recorded))
        if now != had:
            counts = f"{now['images']} images, but had {had['images']}"
            has = counts if now["images"] != had["images"] else "other images than"
            hint = f"restore those images, or fine-tune with --init-from {workdir} and another --workdir"
            raise UserError(
                f"--data.source {config.data.source} has {has} when the run in {workdir} began: {hint}"
            )
        for folder in (workdir / "samples", workdir / "checkpoints"):
            folder.mkdir(exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        if differing and not begun:  # what belongs to other settings goes first, in case of a kill in between
            for name in (TOKENIZER, WANDB_ID):
                (workdir / name).unlink(missing_ok=True)
        if differing or not path.exists():
            write_atomic(path, to_json(config))
        if recorded != data:
            write_atomic(workdir / "data.json", json.dumps(data))
    except OSError as error:
        raise _unwritable(workdir, error) from None


def _read_config(path: pathlib.Path) -> Config:
    try:
        return from_json(read_file(path).decode("utf-8", "replace"))
    except UserError as error:
        raise UserError(f"{path}: {error}: choose another --workdir") from None


def _read_data(path: pathlib.Path) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged file
        found = parse_object(read_file(path)).items()
        return {name: x for name, x in found if type(x) is (int if name == "images" else str)}
    return {}


def _unwritable(workdir: pathlib.Path, error: OSError) -> UserError:
    file = pathlib.Path(error.filename or "").absolute()  # for example `checkpoints`, which is a file
    inside = f"{file.name}: " if file.parent == workdir.absolute() and file.suffix != ".part" else ""
    return UserError(f"cannot write to --workdir {workdir}: {inside}{error.strerror}")


def tokenizer_digest(workdir: pathlib.Path) -> str:
    """Returns a digest of a run's tokenizer. Raises OSError."""
    return digest([read_file(workdir / TOKENIZER, 2**28)])


def identity(workdir: pathlib.Path, config: Config, data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what may not change when a run resumes: settings, the tokenizer, number and names of images."""
    settings = {name: x for name, x in fixed_settings(config).items() if name != "data.source"}
    facts = {name: data[name] for name in FIXED if name in data}
    return settings | facts | {TOKENIZER: tokenizer_digest(workdir)}


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
    found = sorted(dict(skipped).items())
    if found:
        path = workdir / ("skipped.log" if is_main() else f"skipped-{jax.process_index()}.log")
        with warn_on_oserror(path.name):
            write_atomic(path, listed(found))
    return len(found)
