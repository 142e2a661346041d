"""`folder:PATH`: your own images, captioned in files of metadata, or in a text file beside each.

Files of metadata are called `metadata` and have any of the kinds that `read_rows` reads. They name images
from their own folder on. An image may have several rows, and several files beside it with several lines: one
of its captions is drawn each time it is used. What cannot be used is recorded in `skipped`.
"""

import os
import pathlib
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dallegan.data.captions import captions_in_json, captions_in_object, captions_in_text, fields_of
from dallegan.data.file_source import JUNK, SUFFIXES, FileSource, UnusableRecord
from dallegan.data.rows import image_of, read_rows
from dallegan.errors import TransientError, UserError, as_user_error, is_permanent, line_of
from dallegan.io.files import digest, expand_home, open_regular, read_file
from dallegan.io.image import ImageError, read_image

KEEP_BYTES = 2 * 2**30  # decoded images up to this are kept in memory; more are decoded again at each use
BESIDE = {".txt": captions_in_text, ".caption": captions_in_text, ".json": captions_in_json}
Names = dict[
    str, list[pathlib.Path]
]  # images by their paths with and without suffix, as `_plain` writes them
METADATA = {f"metadata{suffix}" for suffix in (".jsonl", ".json", ".json1", ".ndjson", ".csv", ".tsv")}
NOT_READ = {
    **dict.fromkeys((".zip", ".7z", ".rar", ".gz", ".tgz"), "an archive: unpack it"),
    **dict.fromkeys(
        (".csv", ".tsv", ".jsonl", ".ndjson"), "metadata by another name: call it metadata.csv or .jsonl"
    ),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "a spreadsheet: save it as metadata.csv"),
    ".tar": "a tar: --data.source webdataset:PATH reads it",
    **dict.fromkeys(
        (".parquet", ".arrow"), "a table with images in it: save them as files with a metadata.csv"
    ),
}


class Folder(FileSource):
    """The images of a folder and of those inside it.

    Raises UserError if the folder is missing, cannot be read, or holds no usable captioned image. With
    `check=False` no image is decoded before it is asked for. `encoding` is the one of text files without a
    byte order mark, "" for UTF-8.
    """

    def __init__(
        self, path: str, size: int, threads: int = 2, check: bool = True, encoding: str = ""
    ) -> None:
        super().__init__(size)
        self.path, self._encoding = pathlib.Path(os.path.abspath(expand_home(path))), encoding
        if not self.path.is_dir():
            raise UserError(
                f"no folder {path}: --data.source folder:PATH needs a folder of images with captions"
            )
        try:
            captions = self._read_captions(list(self._walk()))
        except OSError as error:
            message = f"cannot read {error.filename or path}: {error.strerror}"
            raise as_user_error(error, message) from None
        self.files = sorted(p for p, texts in captions.items() if texts)
        self._images = self._decode(threads) if check else None  # uint8[images, size, size, 3], if they fit
        if not self.files:
            how = "; give them a metadata.jsonl, metadata.csv or .txt files"
            is_bare = set(self.skipped.values()) <= {"no caption"}
            raise UserError(f"no captioned images in {path}{self.first_skipped()}{how * is_bare}")
        self._captions = [captions[p] for p in self.files]

    def _relative(self, path: pathlib.Path) -> str:
        return str(path.relative_to(self.path))

    def _walk(self) -> Iterator[pathlib.Path]:
        """Yields the files of the folder and of those inside it, each folder once; links come last."""
        found: dict[tuple[int, int], pathlib.Path] = {}  # device and inode -> folder
        folders, links = [self.path], []
        while folders or links:
            folder = folders.pop() if folders else links.pop(0)
            try:
                about = folder.stat()
                first = found.setdefault((about.st_dev, about.st_ino), folder)
                if first is not folder:
                    self.skip(self._relative(folder), f"the same folder as {self._relative(first)}")
                    continue
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                if folder == self.path or not is_permanent(error):
                    raise
                self.skip(self._relative(folder), error)
                continue
            for entry in entries:
                path = folder / entry.name
                if JUNK.search(f"{entry.name}/"):
                    continue
                about = path if entry.is_symlink() else entry  # what knows its kind already, for speed
                if about.is_dir():
                    (links if entry.is_symlink() else folders).append(path)
                elif path.suffix.lower() in SUFFIXES or path.suffix.lower() in BESIDE or _is_metadata(path):
                    if about.is_file():
                        yield path
                    else:
                        self.skip(self._relative(path), "a link to nothing, or not a regular file")
                elif reason := NOT_READ.get(path.suffix.lower()):
                    self.skip(self._relative(path), reason)

    def _read_captions(self, files: list[pathlib.Path]) -> dict[pathlib.Path, list[str]]:
        """Returns the captions of all images; images without any are skipped."""
        captions: dict[pathlib.Path, list[str]] = {p: [] for p in files if p.suffix.lower() in SUFFIXES}
        names: Names = {}
        for path in captions:
            for name in (str(path), _stem(path)):  # a text belongs to a.png as a.txt and as a.png.txt
                names.setdefault(_plain(name), []).append(path)
        for path in filter(_is_metadata, files):
            self._read_metadata(path, names, captions)
        for path in files:
            if (suffix := path.suffix.lower()) in BESIDE and not _is_metadata(path):
                owners, texts, reason = _find(names, _stem(path)), [], ""
                try:
                    texts = BESIDE[suffix](read_file(path), self._encoding) if owners else []
                    if not texts:  # JSON may hold anything else
                        reason = "no image" if not owners else "no caption" * (suffix != ".json")
                except (UnusableRecord, OSError) as error:
                    if isinstance(error, OSError) and not is_permanent(error):
                        raise
                    reason = error
                if reason:
                    self.skip(self._relative(path), reason)
                for owner in owners:
                    captions[owner] += texts
        for path, texts in captions.items():
            captions[path] = list(dict.fromkeys(texts))
            if not texts:
                self.skip(self._relative(path), "no caption")
        return captions

    def _read_metadata(
        self, path: pathlib.Path, names: Names, captions: dict[pathlib.Path, list[str]]
    ) -> None:
        """Adds the captions of a file of metadata."""
        folder = str(path.parent)
        with open_regular(path) as file:
            for number, row in read_rows(file, self._encoding):
                try:
                    if isinstance(row, UnusableRecord):
                        raise row
                    if not (name := image_of(row)):
                        raise UnusableRecord(f"no file_name: the fields are {fields_of(row)}")
                    # an image outside of the folder has no name here; Windows separates by "\\"
                    for each in dict.fromkeys((name, name.replace("\\", "/"))):
                        if images := _find(names, os.path.normpath(os.path.join(folder, each))):
                            break
                    else:
                        raise UnusableRecord(f"no image: {name[:200]}")
                    if not (texts := captions_in_object(row)):
                        raise UnusableRecord(f"no caption in the row: the fields are {fields_of(row)}")
                    for image in images:
                        captions[image] += texts
                except UnusableRecord as error:
                    self.skip(f"{self._relative(path)}:{number}", error)

    def _decode(self, threads: int) -> np.ndarray | None:
        """Drops the `files` that cannot be decoded; returns the images if they fit into memory."""
        keep = len(self.files) * self.size**2 * 3 <= KEEP_BYTES

        def decode(path: pathlib.Path) -> np.ndarray | None:
            try:
                image = read_image(path, self.size)
                return image if keep else np.empty(0, np.uint8)
            except (ImageError, OSError) as error:
                if isinstance(error, OSError) and not is_permanent(error):
                    # a run without the image would be another run
                    message = f"cannot read {path}: {line_of(error)}; try again, or remove the file"
                    raise TransientError(message) from None
                self.skip(self._relative(path), error)
                return None

        with ThreadPoolExecutor(threads) as pool:
            images = list(pool.map(decode, self.files))
        self.files = [p for p, image in zip(self.files, images, strict=True) if image is not None]
        usable = [image for image in images if image is not None]
        return np.stack(usable) if keep and usable else None

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Returns the path of the file inside the folder."""
        return self._relative(self.files[index])

    def identity(self) -> dict[str, str]:
        """Returns digests of the names, and of names and captions, of up to 10,000 images."""
        texts = (text for i in self._some() for text in (self.name(i), *self.captions_of(i)))
        return super().identity() | {"contents": digest(texts)}

    def captions_of(self, index: int) -> list[str]:
        """Returns all captions of an image."""
        return self._captions[index]

    def load(self, index: int) -> tuple[np.ndarray, list[str]]:
        """Returns an image uint8[size, size, 3] and all its captions. Raises ImageError, OSError."""
        image = read_image(self.files[index], self.size) if self._images is None else self._images[index]
        return image, self._captions[index]


def _is_metadata(path: pathlib.Path) -> bool:
    return path.name.lower() in METADATA


def _find(names: Names, name: str) -> list[pathlib.Path]:
    """Returns the images of a path with or without a suffix: those exactly called so, or else alike."""
    alike = names.get(_plain(name), [])
    return [path for path in alike if name in (str(path), _stem(path))] or alike


def _stem(path: pathlib.Path) -> str:
    """Returns a path without its suffix."""
    return str(path)[: -len(path.suffix)]


def _plain(name: str) -> str:
    """Returns what names have in common that systems take for the same.

    macOS writes an accent as a character of its own; it and Windows do not distinguish upper from lower case.
    """
    return unicodedata.normalize("NFC", name).casefold()
