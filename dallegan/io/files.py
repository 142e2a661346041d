"""Files that appear whole or not at all, files of strangers, locks, and the file systems of buckets."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import stat
import uuid
from collections.abc import Iterable, Iterator
from typing import IO, Any

from dallegan.errors import UserError

# words by which the errors of buckets say that access is denied
DENIED = re.compile(r"\b(PermissionError|Forbidden|Unauthorized|AccessDenied|\w*CredentialsError|40[13])\b")


def write_atomic(path: str | pathlib.Path, data: bytes | str | Iterable[bytes]) -> None:
    """Writes a file that appears whole or not at all; text is encoded as UTF-8, pieces are written in turn.

    The data go to a temporary file in the same folder, which then replaces `path`. A kill leaves the old file
    or the new one. Several writers at once leave the whole file of one of them. A symbolic link is followed,
    and a pipe or a device is written to directly. Raises OSError.
    """
    path = pathlib.Path(path)
    data = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    pieces = [data] if isinstance(data, bytes) else data
    if is_special(path):
        with path.open("wb") as file:
            file.writelines(pieces)
        return
    path = _follow_links(path)
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.writelines(pieces)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(path: pathlib.Path) -> None:
    """Raises UserError if `write_atomic` would fail, so that a command fails before minutes of work.

    The check makes the folder of `path`. It leaves no file behind and does not change `path`.
    """
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a directory; name a file")
    if not is_special(path):
        with writing(path):
            temporary = _temporary(_follow_links(path))
            temporary.touch()
            temporary.unlink()


def is_special(path: pathlib.Path) -> bool:
    """Returns True for a pipe or a device, which must not be replaced by a file."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _follow_links(path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(os.path.realpath(path))  # `Path.resolve` raises if links form a circle


def _temporary(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Makes the folder of `path`, and turns an OSError inside the block into a UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def expand_home(path: str | pathlib.Path) -> pathlib.Path:
    """Returns a path with "~" expanded. Raises UserError if there is no such user."""
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no such user; for a folder of that name, write ./{path}") from None


def local_path(path: str | pathlib.Path) -> pathlib.Path:
    """Returns a path on a disk, with "~" expanded. Raises UserError for an address such as gs://bucket/x."""
    if re.match(r"\w{2,}:/", str(path)):  # pathlib makes gs:/bucket of gs://bucket
        raise UserError(f"{path} is an address, not a path on a disk; mount the bucket (gcsfuse), or copy it")
    return expand_home(path)


def open_regular(path: str | pathlib.Path) -> IO[bytes]:
    """Opens a file of a user or a stranger for reading.

    Raises OSError if that fails, and if it is not a regular file: a pipe would be waited for, and a device
    read for ever.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.ENXIO, "not a regular file", str(path))
    return open(descriptor, "rb")


def read_file(path: str | pathlib.Path, most: int = 2**20) -> bytes:
    """Returns the bytes of a regular file. Raises OSError, also if there are more than `most`."""
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most / 1e6:.3g} MB", str(path))
    return data


def digest(parts: Iterable[str | bytes]) -> str:
    """Returns 16 hexadecimal digits, from a sha256 of all parts and their lengths."""
    whole = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()[:16]


def parse_object(data: str | bytes) -> dict[str, Any]:
    """Returns the JSON object in a text; what is no UTF-8 in it becomes U+FFFD.

    Raises ValueError if the text is anything else, however deeply it is nested.
    """
    text = data if isinstance(data, str) else data.decode("utf-8-sig", "replace")
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


@contextlib.contextmanager
def lock_byte(file: IO[bytes], byte: int = 0, wait: bool = False) -> Iterator[bool]:
    """Locks one byte of an open file for the block, and yields True if this process has the lock.

    The system releases the lock when the process ends, however it ends. With `wait` the call blocks until the
    lock is free; without, it yields False if another process has the lock.
    """
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
    """Returns fsspec's file system of a URL and the path in it.

    Raises UserError if the Python package for that kind of URL is not installed.
    """
    try:
        import fsspec

        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        hint = "is fsspec's package for it installed?"
        if url.startswith("gs:"):
            hint = "pip install 'dallegan[gcs]'"
        raise UserError(f"cannot read {url}: {hint} ({error})") from None


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Re-raises the errors of buckets inside the block as OSError.

    They become FileNotFoundError or PermissionError if they say so. UserError, MemoryError and the OSErrors
    of the local disk pass through.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # every fsspec backend has exception classes of its own
        if isinstance(error, OSError) and error.errno is not None:
            raise
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(message) from None
        raise (PermissionError if DENIED.search(message) else OSError)(message) from None


def cache() -> pathlib.Path:
    """Returns dallegan's cache folder: $XDG_CACHE_HOME/dallegan, by default ~/.cache/dallegan."""
    return expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dallegan"
