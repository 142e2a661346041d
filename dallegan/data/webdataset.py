"""`webdataset:PATTERN`: tar shards as img2dataset writes them.

An image `key.jpg` has its captions in `key.txt` (one per line), in `key.json` (`caption` or `text`), or in
both. PATTERN is a folder, a glob or a range, `shards/{00000..00099}.tar`, on disk or in a bucket (`gs://...`,
extra `gcs`). Each tar's headers are read once; after that, images and captions are read by their offsets in
it. Nothing is ever extracted: names are only keys.
"""

import contextlib
import errno
import glob
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, cast

import bracex
import numpy as np

from dallegan.data.file_source import SUFFIXES, FileCache, FileSource, UnusableRecord, clean_captions
from dallegan.errors import TransientError, UserError, as_user_error, is_permanent
from dallegan.io.files import digest, expand_home, filesystem, reading
from dallegan.io.image import read_image

PART = [("offset", "i8"), ("size", "u4")]  # bytes; size 0 if there is none
ENTRY = np.dtype([("shard", "u4"), ("image", PART), ("txt", PART), ("json", PART)])  # 40 bytes per image
MAX_BYTES = {"image": 2**28, "txt": 2**20, "json": 2**20}
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
TAILS = ("*.tar", "*.tar.*", "*.tgz")  # files of a folder; compressed ones are found to be refused
MAX_SHARDS = 1_000_000
Members = dict[str, dict[str, tuple[int, int]]]  # key -> "image", "txt" or "json" -> (offset, size)


def open_file(url: str) -> Callable[[int, int], bytes]:
    """Returns a function that reads (offset, size) of a file, from any thread; in a bucket by one request."""
    if "://" in url:
        fs, path = filesystem(url)

        def read(offset: int, size: int) -> bytes:
            with reading():
                return fs.cat_file(path, start=offset, end=offset + size)

        return read
    file = open(url, "rb", buffering=0)  # noqa: SIM115  # closes with the last reference to it
    return lambda offset, size: os.pread(file.fileno(), size, offset)


def find(pattern: str) -> list[str]:
    """Returns the files that a pattern names, each once.

    Raises UserError if the pattern, or one of its alternatives in braces, names none.
    """
    found: list[str] = []
    try:
        names = bracex.expand(pattern, limit=MAX_SHARDS) if "{" in pattern else [pattern]
    except bracex.ExpansionLimitException:
        raise UserError(f"webdataset:{pattern} names more than {MAX_SHARDS} files") from None
    for name in names:
        try:
            with reading():
                matching = _match(name)
        except OSError as error:
            raise as_user_error(error, f"cannot read webdataset:{name}: {error}") from None
        if not matching:  # also if only one of several folders is missing
            example = "shards/{00000..00099}.tar"
            raise UserError(
                f"no tar files in webdataset:{name}: name a folder, a glob or a range, such as {example}"
            )
        found += matching
    return list(dict.fromkeys(found))


def _match(name: str) -> list[str]:
    """Returns, sorted, the tars of a folder, the files of a glob, or a single file, which may be missing."""
    is_glob = bool(set(name) & set("*?["))
    if "://" in name:
        fs, path = filesystem(name)
        globs = [f"{path}/{tail}" for tail in TAILS] if fs.isdir(path) else [path] if is_glob else []
        return sorted(fs.unstrip_protocol(p) for each in globs for p in fs.glob(each)) if globs else [name]
    path = expand_home(name)
    folder = glob.escape(str(path))
    globs = [f"{folder}/{tail}" for tail in TAILS] if path.is_dir() else [str(path)] if is_glob else []
    return sorted(p for each in globs for p in glob.glob(each)) if globs else [str(path)]


class Headers:
    """A tar file as `tarfile` may read it: headers only, since it skips the members' contents.

    It raises OSError if the disk or the bucket fails, and UnusableRecord for an impossible place or size in a
    damaged tar.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.tell, self._file = file.tell, file

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to an offset. Raises UnusableRecord if no file has such a place."""
        with self._blame_the_tar():
            return self._file.seek(offset, whence)

    def read(self, size: int) -> bytes:
        """Reads a header. Raises UnusableRecord for more than a megabyte."""
        if size > 2**20:
            raise UnusableRecord(f"damaged: a header of {size} bytes")
        with reading(), self._blame_the_tar():
            return self._file.read(size)

    @contextlib.contextmanager
    def _blame_the_tar(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            raise UnusableRecord(f"damaged, or without random access: {error}") from None


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yields the members of a tar.

    Raises UnusableRecord if a header leads backwards, which tarfile would follow for ever (CVE-2025-8194).
    """
    last = -1
    while (member := tar.next()) is not None:
        if member.offset_data <= last or tar.offset <= member.offset:
            raise UnusableRecord("damaged: a header leads backwards")
        last = member.offset_data
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all of them in memory
        yield member


class WebDataset(FileSource):
    """The captioned images of all tars. Raises UserError if the pattern names no file, or no file has any."""

    def __init__(self, pattern: str, size: int, threads: int = 2) -> None:
        super().__init__(size)
        self.shards, self._files = find(pattern), FileCache(open_file)
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            self.index = np.concatenate(list(pool.map(self._scan, range(len(self.shards)))))  # ENTRY[images]
        if not len(self.index):
            how = "each is key.jpg with key.txt or key.json"
            raise UserError(f"no captioned images in webdataset:{pattern}: {how}{self.first_skipped()}")

    def _scan(self, shard: int) -> np.ndarray:
        """Returns ENTRY[images] of a tar, in its order."""
        url = self.shards[shard]
        name = os.path.basename(url)
        found: Members = {}
        try:
            with reading():
                file = filesystem(url)[0].open(url) if "://" in url else open(url, "rb")  # noqa: SIM115  # closed below
            with file:
                self._collect(Headers(file), name, found)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # tarfile raises nearly anything on damaged bytes
            if isinstance(error, OSError) and not is_permanent(
                error
            ):  # a run without the shard would be another run
                raise TransientError(f"cannot read {url}: {error}; try again") from None
            known = isinstance(error, (UnusableRecord, OSError))
            why = str(error) if known else f"{type(error).__name__}: {error}"
            self.skip(name, f"{why}; {len(found)} names before" if found else why)
        rows = []
        for key, parts in found.items():
            if "image" in parts and len(parts) > 1:
                rows.append((shard, *(parts.get(kind, (0, 0)) for kind in MAX_BYTES)))
            else:
                self.skip(f"{name}:{key}", "no caption" if "image" in parts else "no image")
        return np.array(rows, ENTRY)

    def _collect(self, file: Headers, name: str, found: Members) -> None:
        """Adds the members of a tar to `found`.

        Raises UnusableRecord if the tar is compressed or ends early, OSError, and whatever tarfile raises.
        """
        head, length = file.read(8), file.seek(0, os.SEEK_END)
        for magic, tool in COMPRESSED.items():
            if head.startswith(magic):
                raise UnusableRecord(f"compressed, so it has no random access: unpack it with {tool}")
        file.seek(0)
        tar = tarfile.open(fileobj=cast(Any, file), mode="r:")  # noqa: SIM115  # the caller closes the file
        for member in members(tar):
            key, suffix = os.path.splitext(member.name)
            kind = "image" if suffix.lower() in SUFFIXES else suffix.lower()[1:]
            if kind not in MAX_BYTES or not member.isreg():
                continue
            if member.offset_data + member.size > length:
                self.skip(f"{name}:{member.name}", "truncated")
            elif member.issparse():
                self.skip(f"{name}:{member.name}", "sparse")
            elif not 0 < member.size <= MAX_BYTES[kind]:
                self.skip(f"{name}:{member.name}", f"{member.size} bytes")
            elif kind in found.setdefault(key, {}):
                self.skip(f"{name}:{member.name}", f"{key} has another {kind}")
            else:
                found[key][kind] = (member.offset_data, member.size)
        file.seek(tar.offset)
        if file.read(512) != bytes(512):  # tarfile takes a damaged header for the end
            raise UnusableRecord("truncated or damaged")

    def __len__(self) -> int:
        return len(self.index)

    def name(self, index: int) -> str:
        """Returns "shard.tar:key.jpg"; if the shard cannot be read any more, "shard.tar:offset"."""
        row = self.index[index]
        shard, offset = os.path.basename(self.shards[row["shard"]]), int(row["image"]["offset"])
        try:
            header = self._read(row, offset - 512, 512)
            return f"{shard}:{tarfile.TarInfo.frombuf(header, 'utf-8', 'replace').name}"
        except (OSError, UnusableRecord, tarfile.TarError):
            return f"{shard}:{offset}"

    def identity(self) -> dict[str, str]:
        """Returns a digest of the names of the shards, and of the places and sizes in them."""
        whole = digest([*map(os.path.basename, self.shards), self.index.tobytes()])
        return {"names": whole, "contents": whole}

    def _read(self, row: Any, offset: int, size: int) -> bytes:
        data = self._files.get(self.shards[row["shard"]])(offset, size)
        if len(data) < size:
            raise UnusableRecord("the tar has become shorter")
        return data

    def part(self, index: int, kind: str) -> bytes:
        """Returns the "image", "txt" or "json" file of an example; empty if there is none.

        Raises UnusableRecord, OSError.
        """
        row = self.index[index]
        offset, size = map(int, row[kind].item())
        return self._read(row, offset, size) if size else b""

    def captions_of(self, index: int) -> list[str]:
        """Returns all captions of an image. Raises UnusableRecord, OSError."""
        texts: list[Any] = list(self.part(index, "txt").decode("utf-8-sig", "replace").splitlines())
        try:
            about = json.loads(self.part(index, "json") or "{}")
        except (ValueError, RecursionError):
            about = None
        for value in (about.get("caption"), about.get("text")) if isinstance(about, dict) else ():
            texts += value if isinstance(value, list) else [value]
        if not (captions := clean_captions(texts)):
            raise UnusableRecord("no caption" if isinstance(about, dict) else "its JSON is not an object")
        return captions

    def load(self, index: int) -> tuple[np.ndarray, list[str]]:
        """Returns an image uint8[size, size, 3] and all its captions.

        Raises UnusableRecord, ImageError, OSError.
        """
        data, captions = self.part(index, "image"), self.captions_of(index)
        return read_image(data, self.size), captions
