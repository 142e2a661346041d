"""`folder:PATH`: your own images, captioned in `metadata.jsonl`, `metadata.csv` or a `.txt` file beside each.

The metadata's fields are `file_name` and `text`. `text` may be a list, and a file may have several lines or
rows: one caption is drawn each time the image is used. Files that cannot be used are recorded in `skipped`.
"""

import csv
import io
import json
import pathlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dallegan.data.file_source import SUFFIXES, FileSource, clean_captions
from dallegan.errors import TransientError, UserError, is_permanent
from dallegan.io.files import digest, expand_home
from dallegan.io.image import ImageError, read_image

KEEP_BYTES = 2 * 2**30  # decoded images up to this are kept in memory; more are decoded again at each use
Captions = dict[pathlib.Path, list[str]]


class Folder(FileSource):
    """The images of a folder and of those inside it.

    Raises UserError if the folder is missing, cannot be read, or holds no usable captioned image. With
    `check=False` no image is decoded before it is asked for.
    """

    def __init__(self, path: str, size: int, threads: int = 2, check: bool = True) -> None:
        super().__init__(size)
        self.path = expand_home(path)
        if not self.path.is_dir():
            raise UserError(
                f"no folder {path}: --data.source folder:PATH needs a folder of images with captions"
            )
        try:
            paths = sorted(p for p in self.path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            captions = self._read_captions(paths)
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from None
        for p in paths:
            if not captions.get(p):
                self.skip(self._relative(p), "no caption")
        self.files = [p for p in paths if captions.get(p)]
        self._images = self._decode(threads) if check else None  # uint8[images, size, size, 3], if they fit
        if not self.files:
            how = "give them a metadata.jsonl, metadata.csv or .txt files"
            raise UserError(f"no captioned images in {path}: {how}{self.first_skipped()}")
        self._captions = [captions[p] for p in self.files]

    def _relative(self, path: pathlib.Path) -> str:
        return str(path.relative_to(self.path))

    def _decode(self, threads: int) -> np.ndarray | None:
        """Drops the `files` that cannot be decoded; returns the images if they fit into memory."""
        keep = len(self.files) * self.size**2 * 3 <= KEEP_BYTES

        def decode(path: pathlib.Path) -> np.ndarray | None:
            try:
                image = read_image(path, self.size)
                return image if keep else np.empty(0, np.uint8)
            except ImageError as error:
                self.skip(self._relative(path), error)
            except OSError as error:
                reason = error.strerror or str(error)
                if not is_permanent(error):  # a run without the image would be another run
                    raise TransientError(
                        f"cannot read {path}: {reason}; try again, or remove the file"
                    ) from None
                self.skip(self._relative(path), reason)
            return None

        with ThreadPoolExecutor(threads) as pool:
            images = list(pool.map(decode, self.files))
        self.files = [p for p, image in zip(self.files, images, strict=True) if image is not None]
        usable = [image for image in images if image is not None]
        return np.stack(usable) if keep and usable else None

    def _read_captions(self, paths: list[pathlib.Path]) -> Captions:
        captions: Captions = {}
        images = set(paths)
        for name, read_rows in (("metadata.jsonl", self._jsonl_rows), ("metadata.csv", self._csv_rows)):
            if (self.path / name).is_file():
                for line, row in read_rows(self.path / name):
                    file, texts = row.get("file_name"), clean_captions(row.get("text"))
                    if not isinstance(file, str) or not texts:
                        self.skip(f"{name}:{line}", "no file_name or no text")
                    elif self.path / file not in images:
                        self.skip(f"{name}:{line}", f"no image {file}")
                    else:
                        captions.setdefault(self.path / file, []).extend(texts)
        for path in paths:
            beside = path.with_suffix(".txt")
            if path not in captions and beside.is_file():
                lines = beside.read_text("utf-8-sig", "replace").splitlines()
                captions[path] = [text for line in lines for text in clean_captions(line)]
        return captions

    def _jsonl_rows(self, path: pathlib.Path) -> Iterator[tuple[int, dict]]:
        """Yields (line number, row)."""
        for number, line in enumerate(path.read_text("utf-8-sig", "replace").split("\n"), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    yield number, row
                else:
                    self.skip(f"{path.name}:{number}", "not a JSON object")

    def _csv_rows(self, path: pathlib.Path) -> Iterator[tuple[int, dict]]:
        """Yields (number of its last line, row)."""
        reader = csv.DictReader(io.StringIO(path.read_text("utf-8-sig", "replace"), newline=""))
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except (
                csv.Error
            ) as error:  # such as an unclosed quotation mark; reading goes on behind what it swallowed
                self.skip(f"{path.name}:{reader.line_num}", error)
            else:
                yield reader.line_num, row

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
