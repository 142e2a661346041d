"""`webdataset:PATTERN`: tar shards as img2dataset writes them.

An image `key.jpg` has its captions in `key.txt` (one per line), in `key.json` (`caption` or `text`), or in
both. A key ends at the last dot, so that `1.5.jpg` and `1.6.jpg` are two images. Only in a tar without such a
pair does it end at the first dot of the base name, as WebDataset itself defines it: `a.input.jpg` then
belongs to `a.output.txt`.

PATTERN is a folder, a glob or a range, `shards/{00000..00099}.tar`, on disk or in a bucket (`gs://...`, extra
`gcs`). Each tar's headers are read once; after that, images and captions are read by their offsets in it.
Nothing is ever extracted: names are only keys.
"""

import collections
import contextlib
import errno
import glob
import io
import itertools
import os
import re
import tarfile
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, cast

import bracex
import numpy as np

from dallegan.data.captions import captions_in_json, captions_in_text
from dallegan.data.file_source import JUNK, SUFFIXES, UNREAD, FileCache, FileSource, UnusableRecord
from dallegan.errors import TransientError, UserError, as_user_error, is_permanent, line_of
from dallegan.io.files import digest, expand_home, filesystem, open_regular, reading
from dallegan.io.image import MAX_BYTES as MAX_IMAGE
from dallegan.io.image import foreign, read_image

PART = [("offset", "i8"), ("size", "u4")]  # bytes; size 0 if there is none
# 44 bytes per image; "header": bytes before the image that hold its name
ENTRY = np.dtype([("shard", "u4"), ("image", [*PART, ("header", "u4")]), ("txt", PART), ("json", PART)])
MAX_BYTES = {"image": MAX_IMAGE, "txt": 2**20, "json": 2**20}
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
TAILS = ("*.tar", "*.tar.*", "*.tgz")  # files of a folder; compressed ones are found to be refused
MAX_SHARDS = 1_000_000
Members = dict[str, dict[str, tuple[int, int, int]]]  # of "image", "txt", "json": key -> an image's PART


def open_file(url: str) -> Callable[[int, int], bytes]:
    """Returns a function that reads (offset, size) of a file, from any thread; in a bucket by one request."""
    if "://" in url:
        fs, path = filesystem(url)

        def read(offset: int, size: int) -> bytes:
            with reading():
                return fs.cat_file(path, start=offset, end=offset + size)

        return read
    file = open_regular(url)  # closes with the last reference to it
    return lambda offset, size: os.pread(file.fileno(), size, offset)


def find(pattern: str) -> list[str]:
    """Returns the files that a pattern names, each once.

    Raises UserError if the pattern, or one of its alternatives in braces, names none.
    """
    found: list[str] = []
    try:
        is_name = "://" not in pattern and expand_home(pattern).exists()
        names = [pattern] if is_name or "{" not in pattern else bracex.expand(pattern, limit=MAX_SHARDS)
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
    fs, path = filesystem(name) if "://" in name else (None, str(expand_home(name)))
    if (fs or os.path).isdir(path):
        globs = [f"{glob.escape(path)}/{tail}" for tail in TAILS]
    elif set(name) & set("*?[") and not (fs or os.path).exists(path):  # a file of that very name comes first
        globs = [path]
    else:
        return [name if fs else path]
    return sorted(
        p for each in globs for p in (map(fs.unstrip_protocol, fs.glob(each)) if fs else glob.glob(each))
    )


def labels(shards: list[str]) -> list[str]:
    """Returns what shards are called: their paths from the innermost folder that holds all of them."""
    parts = [shard.split("/") for shard in shards]
    common = len(os.path.commonprefix([part[:-1] for part in parts]))  # noqa: RUF071  # of lists, not strings
    return ["/".join(part[common:]) for part in parts]


def join(found: Members) -> Members:
    """Returns the members by WebDataset's keys if no image and caption of a tar have a name in common."""
    if not found["image"].keys() & (found["txt"].keys() | found["json"].keys()):
        short = {
            kind: {re.sub(r"\.[^/]*$", "", key): part for key, part in found[kind].items()} for kind in found
        }
        if all(len(short[kind]) == len(found[kind]) for kind in found):
            return short
    return found


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
    """The captioned images of all tars. Raises UserError if the pattern names no file, or no file has any.

    `encoding` is what text without a byte order mark is in; "" for UTF-8.
    """

    def __init__(self, pattern: str, size: int, threads: int = 2, encoding: str = "") -> None:
        super().__init__(size)
        self.shards, self._files, self.encoding = find(pattern), FileCache(open_file), encoding
        self._labels = labels(self.shards)
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            self.index = np.concatenate(list(pool.map(self._scan, range(len(self.shards)))))  # ENTRY[images]
        if not len(self.index):
            how = "each is key.jpg with key.txt or key.json"
            raise UserError(f"no captioned images in webdataset:{pattern}: {how}{self.first_skipped()}")

    def _scan(self, shard: int) -> np.ndarray:
        """Returns ENTRY[images] of a tar, in its order."""
        url, label = self.shards[shard], self._labels[shard]
        found: Members = {kind: {} for kind in MAX_BYTES}
        others: collections.Counter[str] = collections.Counter()
        try:
            with reading():
                file = filesystem(url)[0].open(url) if "://" in url else open_regular(url)
            with file:
                self._collect(Headers(file), label, found, others)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # tarfile raises nearly anything on damaged bytes
            if isinstance(error, OSError) and not is_permanent(error):
                # a run without the shard would be another run
                raise TransientError(f"cannot read {url}: {error}; try again") from None
            known = isinstance(error, (UnusableRecord, OSError))
            why = line_of(error) if known else f"{type(error).__name__}: {error}"
            count = len(set().union(*found.values()))
            self.skip(label, f"{why}; {count} names before" if count else why)
        found = join(found)
        texts = [found["txt"], found["json"]]
        captioned = [key for key in found["image"] if any(key in text for text in texts)]
        for key in itertools.chain(*found.values()):
            if not (key in found["image"] and any(key in text for text in texts)):
                self.skip(f"{label}:{key}", "no caption" if key in found["image"] else "no image")
        if not captioned and (others or not any(found.values())):
            names = ", ".join(f"{suffix} ({count})" for suffix, count in others.most_common(5))
            self.skip(label, f"no image with a caption; it has {names or 'no files'}")
        parts = lambda key: (text.get(key, (0, 0))[:2] for text in texts)
        return np.array([(shard, found["image"][key], *parts(key)) for key in captioned], ENTRY)

    def _collect(self, file: Headers, label: str, found: Members, others: collections.Counter[str]) -> None:
        """Adds the members of a tar to `found`, and counts the suffixes of the `others`.

        Raises UnusableRecord if it is compressed, no tar or ends early, OSError, and whatever tarfile raises.
        """
        head, length = file.read(512), file.seek(0, os.SEEK_END)
        for magic, tool in COMPRESSED.items():
            if head.startswith(magic):
                raise UnusableRecord(f"compressed, so it has no random access: unpack it with {tool}")
        file.seek(0)
        try:
            tar = tarfile.open(fileobj=cast(Any, file), mode="r:")  # noqa: SIM115  # the caller closes it
        except tarfile.ReadError:
            if what := foreign(head):
                raise UnusableRecord(f"not a tar, but {what}") from None
            raise
        for member in members(tar):
            key, suffix = os.path.splitext(unicodedata.normalize("NFC", member.name.removeprefix("./")))
            suffix = suffix.lower()
            kind = "image" if suffix in SUFFIXES else suffix[1:]
            name = f"{label}:{member.name}"
            if not member.isreg() or JUNK.search(member.name):
                continue
            if suffix in UNREAD:
                self.skip(name, f"{suffix[1:].upper()} is not read: convert it to PNG or JPEG")
            elif kind not in MAX_BYTES:
                others[suffix[:20] if len(others) < 1000 else "others"] += 1
            elif member.offset_data + member.size > length:
                self.skip(name, "truncated")
            elif member.issparse():
                self.skip(name, "sparse")
            elif not 0 < member.size <= MAX_BYTES[kind]:
                self.skip(name, f"{member.size} bytes; it may have 1 to {MAX_BYTES[kind]}")
            elif key in found[kind]:
                self.skip(name, f"{key} has another {kind}")
            else:
                header = member.offset_data - member.offset
                found[kind][key] = (member.offset_data, member.size, header)
        file.seek(tar.offset)
        rest = file.read(2**16)
        if rest[:512] != bytes(512):  # tarfile takes a damaged header for the end
            raise UnusableRecord("truncated or damaged")
        if rest.strip(b"\0"):
            raise UnusableRecord("more behind its end, which is not read: tars joined by cat?")

    def __len__(self) -> int:
        return len(self.index)

    def name(self, index: int) -> str:
        """Returns "shard.tar:key.jpg"; if the shard cannot be read any more, "shard.tar:offset"."""
        row = self.index[index]
        offset, _, header = row["image"].item()
        try:
            # the name may stand in several headers: a long or a Chinese one precedes the image's own
            headers = io.BytesIO(self._read(row, offset - header, header))
            name = cast(tarfile.TarInfo, tarfile.TarFile(fileobj=headers).next()).name
        except Exception:  # tarfile raises nearly anything, if the file has changed
            name = offset
        return f"{self._labels[row['shard']]}:{name}"

    def identity(self) -> dict[str, str]:
        """Returns a digest of the names of the shards, and of the places and sizes in them."""
        whole = digest([*map(os.path.basename, self.shards), self.index.tobytes()])
        return {"names": whole, "contents": whole}

    def _read(self, row: Any, offset: int, size: int) -> bytes:
        data = self._files.get(self.shards[row["shard"]])(offset, size)
        if len(data) != size:
            raise UnusableRecord("the tar has changed, or its server does not read parts of a file")
        return data

    def part(self, index: int, kind: str) -> bytes:
        """Returns the "image", "txt" or "json" file of an example; empty if there is none.

        Raises UnusableRecord, OSError.
        """
        row = self.index[index]
        offset, size = row[kind].item()[:2]
        return self._read(row, offset, size) if size else b""

    def captions_of(self, index: int) -> list[str]:
        """Returns all captions of an image. Raises UnusableRecord, OSError."""
        captions, reason = [], "no caption"
        for kind, captions_in in (("txt", captions_in_text), ("json", captions_in_json)):
            if data := self.part(index, kind):
                try:
                    captions += captions_in(data, self.encoding)
                except UnusableRecord as error:  # the other file may have the same captions
                    reason = f"its {kind} file: {error}"
        if not captions:
            raise UnusableRecord(reason)
        return list(dict.fromkeys(captions))

    def load(self, index: int) -> tuple[np.ndarray, list[str]]:
        """Returns an image uint8[size, size, 3] and all its captions.

        Raises UnusableRecord, ImageError, OSError.
        """
        data, captions = self.part(index, "image"), self.captions_of(index)
        return read_image(data, self.size), captions
