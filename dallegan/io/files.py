"""Files that appear whole or not at all, and files in buckets."""

import contextlib
import fcntl
import os
import pathlib
import re
import uuid
from collections.abc import Iterator
from typing import IO, Any

from dallegan.errors import UserError

DENIED = re.compile(r"\b(PermissionError|Forbidden|Unauthorized|AccessDenied|\w*CredentialsError|40[13])\b")  # as buckets say it


def write_atomic(path: str | pathlib.Path, data: bytes | str) -> None:
    """Writes a file by way of a temporary one beside it, of a name of its own: a kill leaves the old file or the new one, never half, and of several
    writers at once each leaves it whole. A link stays one; a pipe or a device is written to."""
    path, data = pathlib.Path(path), data if isinstance(data, bytes) else data.encode("utf-8", "backslashreplace")
    if _is_special(path):
        path.write_bytes(data)
        return
    path = _target(path)
    partial = _beside(path)
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_writable(path: pathlib.Path) -> None:
    """UserError where `write_atomic` would fail, before minutes of work; leaves nothing behind, and what is there as it is."""
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory; name a file")
    if not _is_special(path):
        with writing(path):
            partial = _beside(_target(path))
            partial.touch()
            partial.unlink()


def _is_special(path: pathlib.Path) -> bool:
    """Whether it is there and neither file nor directory, which a file would take the place of."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _target(path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(os.path.realpath(path))  # `resolve` raises for links that lead to each other


def _beside(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Makes the folder of a file that is written inside; UserError where either fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


@contextlib.contextmanager
def lock_byte(file: IO[bytes], byte: int = 0, wait: bool = False) -> Iterator[bool]:
    """Whether this process could lock the byte, inside; a lock ends with its process, however that ends."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
    except (BlockingIOError, PermissionError):
        yield False
        return
    try:
        yield True
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, byte)


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it. UserError where the package for such addresses is absent."""
    try:
        import fsspec

        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        hint = "pip install 'dallegan[gcs]'" if url.startswith("gs:") else "is fsspec's package for it installed?"
        raise UserError(f"cannot read {url}: {hint} ({error})") from None


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Inside, a bucket's own errors, of which each has others, become OSError, and what is absent or forbidden is told apart; the disk's stay as they are."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else PermissionError if DENIED.search(said) else OSError
        raise kind(said) from None


def cache() -> pathlib.Path:
    """~/.cache/dallegan, or where XDG_CACHE_HOME says."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dallegan"
