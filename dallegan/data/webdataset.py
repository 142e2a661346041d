"""`webdataset:PATTERN`: tar shards as img2dataset writes them: `key.jpg` with `key.txt` (a caption a line), `key.json` (`caption` or `text`) or both.

PATTERN is a folder, a glob or a range, `shards/{00000..00099}.tar`, here or in a bucket (`gs://...`, extra `gcs`). Each tar's headers are read
once; then pictures and captions are read by their place in it. Nothing is ever extracted: names are only keys.
"""

import contextlib
import errno
import glob
import json
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, cast

import bracex
import numpy as np

from dallegan.data.source import SUFFIXES, FileCache, Files, Unusable, usable
from dallegan.errors import TransientError, UserError, as_user_error, is_permanent
from dallegan.io.files import filesystem, reading

PART = [("offset", "i8"), ("size", "u4")]  # bytes; size 0: there is none
ENTRY = np.dtype([("shard", "u4"), ("image", PART), ("txt", PART), ("json", PART)])  # 40 bytes a picture
MOST = {"image": 2**28, "txt": 2**20, "json": 2**20}  # bytes
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
TAILS = ("*.tar", "*.tar.*", "*.tgz")  # in a folder; compressed ones too, to say so
MAX_SHARDS = 1_000_000


def open_file(url: str) -> Callable[[int, int], bytes]:
    """What reads (offset, size) of a file, from any thread; in a bucket by one request of that range."""
    if "://" in url:
        fs, path = filesystem(url)

        def read(offset: int, size: int) -> bytes:
            with reading():
                return fs.cat_file(path, start=offset, end=offset + size)

        return read
    file = open(url, "rb", buffering=0)  # noqa: SIM115  # closes with the last reference to it
    return lambda offset, size: os.pread(file.fileno(), size, offset)


def find(pattern: str) -> list[str]:
    """The files that a pattern names, each once. UserError where it, or one of its alternatives, names none."""
    found: list[str] = []
    try:
        names = bracex.expand(pattern, limit=MAX_SHARDS) if "{" in pattern else [pattern]
    except bracex.ExpansionLimitException:
        raise UserError(f"webdataset:{pattern} names more than {MAX_SHARDS} files") from None
    for name in names:
        try:
            with reading():
                these = _matches(name)
        except OSError as error:
            raise as_user_error(error, f"cannot read webdataset:{name}: {error}") from None
        if not these:  # of several folders, one may be away
            raise UserError(f"no tar files in webdataset:{name}: name a folder, a glob or a range, such as shards/{{00000..00099}}.tar")
        found += these
    return list(dict.fromkeys(found))


def _matches(name: str) -> list[str]:
    """The tars in a folder, the files of a glob, or the one file, which need not be there; sorted."""
    if "://" in name:
        fs, path = filesystem(name)
        globs = [f"{path}/{tail}" for tail in TAILS] if fs.isdir(path) else [path] if set(path) & set("*?[") else []
        return sorted(fs.unstrip_protocol(p) for each in globs for p in fs.glob(each)) if globs else [name]
    path = pathlib.Path(name).expanduser()
    globs = [f"{glob.escape(str(path))}/{tail}" for tail in TAILS] if path.is_dir() else [str(path)] if set(name) & set("*?[") else []
    return sorted(p for each in globs for p in glob.glob(each)) if globs else [str(path)]


class Headers:
    """The file of a tar as `tarfile` may read it: members are skipped, so that a read is of a header, whose size the tar states. Its only OSErrors
    are then of the disk or the bucket, not of what the tar says."""

    def __init__(self, file: IO[bytes]) -> None:
        self.tell, self._file = file.tell, file

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Unusable where no file has such a place."""
        with self._of_the_tar():
            return self._file.seek(offset, whence)

    def read(self, size: int) -> bytes:
        """Unusable beyond a megabyte."""
        if size > 2**20:
            raise Unusable(f"damaged: a header of {size} bytes")
        with reading(), self._of_the_tar():
            return self._file.read(size)

    @contextlib.contextmanager
    def _of_the_tar(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            raise Unusable(f"damaged, or not to be read at any place: {error}") from None


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, none kept. Unusable where a header leads backwards (CVE-2025-8194: that would never end)."""
    last = -1
    while (member := tar.next()) is not None:
        if member.offset_data <= last or tar.offset <= member.offset:
            raise Unusable("damaged: a header leads backwards")
        last = member.offset_data
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        yield member


class WebDataset(Files):
    """The source. UserError where the pattern names no file, or no file has a captioned picture."""

    def __init__(self, pattern: str, size: int, threads: int = 2) -> None:
        super().__init__(size)
        self.shards, self._files = find(pattern), FileCache(open_file)
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            self.index = np.concatenate(list(pool.map(self._scan, range(len(self.shards)))))  # ENTRY[pictures]
        if not len(self.index):
            why = f"; {len(self.skipped)} skipped, the first: {min(self.skipped.items())}" if self.skipped else ""
            raise UserError(f"no captioned pictures in webdataset:{pattern}: the tars want key.jpg with key.txt or key.json{why}")

    def _scan(self, shard: int) -> np.ndarray:
        """ENTRY[pictures] of a tar, in its order."""
        url, found, rows = self.shards[shard], {}, []
        name = os.path.basename(url)
        try:
            with reading():
                file = filesystem(url)[0].open(url) if "://" in url else open(url, "rb")  # noqa: SIM115  # closed below
            with file:
                self._collect(Headers(file), name, found)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # tarfile raises nearly anything on hostile bytes
            if isinstance(error, OSError) and not is_permanent(error):  # without the shard it would be another run
                raise TransientError(f"cannot read {url}: {error}; try again") from None
            why = str(error) if isinstance(error, (Unusable, OSError)) else f"{type(error).__name__}: {error}"
            self.skipped[name] = (f"{why}; {len(found)} names before" if found else why).splitlines()[0]
        for key, parts in found.items():
            if "image" in parts and len(parts) > 1:
                rows.append((shard, *(parts.get(kind, (0, 0)) for kind in MOST)))
            else:
                self.skipped[f"{name}:{key}"] = "no caption" if "image" in parts else "no picture"
        return np.array(rows, ENTRY)

    def _collect(self, file: Headers, name: str, found: dict[str, dict[str, tuple[int, int]]]) -> None:
        """Fills key -> kind -> (offset, size). Raises Unusable where the tar ends early, tarfile's errors, OSError."""
        head, length = file.read(8), file.seek(0, os.SEEK_END)
        for magic, tool in COMPRESSED.items():
            if head.startswith(magic):
                raise Unusable(f"compressed, so it cannot be read at any place: unpack it with {tool}")
        file.seek(0)
        tar = tarfile.open(fileobj=cast(Any, file), mode="r:")  # noqa: SIM115  # the file is the caller's
        for member in members(tar):
            stem, suffix = os.path.splitext(member.name)
            kind = "image" if suffix.lower() in SUFFIXES else suffix.lower()[1:]
            if kind not in MOST or not member.isreg():
                continue
            if member.offset_data + member.size > length:
                self.skipped[f"{name}:{member.name}"] = "truncated"
            elif member.issparse() or not 0 < member.size <= MOST[kind]:
                self.skipped[f"{name}:{member.name}"] = "sparse" if member.issparse() else f"{member.size} bytes"
            elif kind in found.setdefault(stem, {}):
                self.skipped[f"{name}:{member.name}"] = f"{stem} has another {kind}"
            else:
                found[stem][kind] = (member.offset_data, member.size)
        file.seek(tar.offset)
        if file.read(512) != bytes(512):  # tarfile ends in silence at a damaged header
            raise Unusable("truncated or damaged")

    def __len__(self) -> int:
        return len(self.index)

    def name(self, index: int) -> str:
        """shard.tar:key.jpg"""
        row = self.index[index]
        shard, offset = os.path.basename(self.shards[row["shard"]]), int(row["image"]["offset"])
        try:
            return f"{shard}:{tarfile.TarInfo.frombuf(self._bytes(row, 'image', -512, 512), 'utf-8', 'replace').name}"
        except (OSError, Unusable, tarfile.TarError):
            return f"{shard}:{offset}"

    def _bytes(self, row: Any, kind: str, skip: int = 0, size: int | None = None) -> bytes:
        size = int(row[kind]["size"]) if size is None else size
        data = self._files.get(self.shards[row["shard"]])(int(row[kind]["offset"]) + skip, size)
        if len(data) < size:
            raise Unusable("the tar has become shorter")
        return data

    def texts(self, index: int) -> list[str]:
        """All captions of a picture. Raises Unusable, OSError."""
        row = self.index[index]
        texts: list[Any] = self._bytes(row, "txt").decode("utf-8-sig", "replace").splitlines() if row["txt"]["size"] else []
        try:
            about = json.loads(self._bytes(row, "json")) if row["json"]["size"] else {}
        except (ValueError, RecursionError):
            about = None
        for value in (about.get("caption"), about.get("text")) if isinstance(about, dict) else ():
            texts += value if isinstance(value, list) else [value]
        if not (found := usable(texts)):
            raise Unusable("no caption" if isinstance(about, dict) else "its JSON is not an object")
        return found

    def record(self, index: int) -> tuple[bytes, list[str]]:
        """The picture as a file, and all its captions. Raises Unusable, OSError."""
        return self._bytes(self.index[index], "image"), self.texts(index)
