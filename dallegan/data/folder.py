"""`folder:PATH`: your own pictures, with `metadata.jsonl` or `metadata.csv` (`file_name`, `text`) or a `.txt` beside each.

`text` may be a list, and a file name may have several lines or rows: one caption is drawn at each visit. Files that cannot
be used are skipped, counted and named in `skipped`.
"""

import csv
import io
import json
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dallegan.data.source import SUFFIXES, Files, usable
from dallegan.errors import TransientError, UserError, is_permanent
from dallegan.io.image import ImageError, read_image

KEEP_BYTES = 2 * 2**30  # decoded pictures are kept in memory up to this, decoded again at each visit beyond


class Folder(Files):
    """The source. UserError where the folder is missing, unreadable, or holds no usable captioned picture. `check=False` decodes no picture
    before it is asked for."""

    def __init__(self, path: str, size: int, threads: int = 2, check: bool = True) -> None:
        super().__init__(size)
        self.path = pathlib.Path(path).expanduser()
        if not self.path.is_dir():
            raise UserError(f"no folder {path}: --data.source folder:PATH wants a folder of pictures with captions")
        try:
            found = sorted(p for p in self.path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            texts = self._captions(found)
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from None
        named = [p for p in found if self._check(p, texts)]
        keep = check and len(named) * size * size * 3 <= KEEP_BYTES
        with ThreadPoolExecutor(threads) as pool:
            images = list(pool.map(lambda p: self._read(p, keep), named)) if check else [np.empty(0)] * len(named)
        good = [(p, image) for p, image in zip(named, images, strict=True) if image is not None]
        if not good:
            why = f"; {len(self.skipped)} files skipped, the first: {next(iter(self.skipped.items()))}" if self.skipped else ""
            raise UserError(f"no captioned pictures in {path}: give them a metadata.jsonl, metadata.csv or .txt files{why}")
        self.files = [p for p, _ in good]
        self._texts = [texts[p] for p in self.files]
        self._kept = np.stack([image for _, image in good]) if keep else None

    def _check(self, path: pathlib.Path, texts: dict[pathlib.Path, list[str]]) -> bool:
        if texts.get(path):
            return True
        self.skipped[self._name(path)] = "no caption"
        return False

    def _name(self, path: pathlib.Path) -> str:
        return str(path.relative_to(self.path))

    def _read(self, path: pathlib.Path, keep: bool) -> np.ndarray | None:
        try:
            image = read_image(path, self.size)
            return image if keep else np.empty(0, np.uint8)
        except ImageError as error:
            self.skipped[self._name(path)] = str(error)
            return None
        except OSError as error:
            if not is_permanent(error):  # without the picture it would be another run
                raise TransientError(f"cannot read {path}: {error.strerror or error}; try again, or take it away") from None
            self.skipped[self._name(path)] = error.strerror or str(error)
            return None

    def _captions(self, found: list[pathlib.Path]) -> dict[pathlib.Path, list[str]]:
        texts: dict[pathlib.Path, list[str]] = {}

        pictures = set(found)

        def add(name: object, text: object) -> str:
            """Why the text could not be used, if so."""
            if not (isinstance(name, str) and (lines := usable(text))):
                return "no file_name or no text"
            texts.setdefault(self.path / name, []).extend(lines)
            return "" if self.path / name in pictures else f"no picture {name}"

        for name, rows in (("metadata.jsonl", self._jsonl), ("metadata.csv", self._csv)):
            if (self.path / name).is_file():
                for number, row in rows(self.path / name):
                    if why := add(row.get("file_name"), row.get("text")):
                        self.skipped[f"{name}:{number}"] = why
        for path in found:
            beside = path.with_suffix(".txt")
            if path not in texts and beside.is_file():
                for line in beside.read_text("utf-8-sig", "replace").splitlines():
                    add(self._name(path), line)
        return texts

    def _jsonl(self, path: pathlib.Path) -> list[tuple[int, dict]]:
        """Rows, and the lines they are in."""
        rows = []
        for number, line in enumerate(path.read_text("utf-8-sig", "replace").split("\n"), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    rows.append((number, row))
                else:
                    self.skipped[f"{path.name}:{number}"] = "not a JSON object"
        return rows

    def _csv(self, path: pathlib.Path) -> list[tuple[int, dict]]:
        rows, reader = [], csv.DictReader(io.StringIO(path.read_text("utf-8-sig", "replace"), newline=""))
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return rows
            except csv.Error as error:  # such as a quotation mark that is not closed; it goes on behind what it swallowed
                self.skipped[f"{path.name}:{reader.line_num}"] = str(error)
            else:
                rows.append((reader.line_num, row))

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """The file, from the folder on."""
        return self._name(self.files[index])

    def texts(self, index: int) -> list[str]:
        """All captions of a picture."""
        return self._texts[index]

    def read(self, index: int) -> tuple[np.ndarray, list[str]]:
        """The picture uint8[size, size, 3], and all its captions. Raises ImageError, OSError."""
        image = read_image(self.files[index], self.size) if self._kept is None else self._kept[index]
        return image, self._texts[index]
