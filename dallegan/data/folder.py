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

from dallegan.data.source import Example
from dallegan.errors import UserError
from dallegan.image import ImageError, read_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
KEEP_BYTES = 2 * 2**30  # decoded pictures are kept in memory up to this, decoded again at each visit beyond


def _one(texts: list[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


class Folder:
    """The source. UserError where the folder is missing, unreadable, or holds no usable captioned picture."""

    def __init__(self, path: str, size: int, threads: int = 2) -> None:
        self.path, self.size = pathlib.Path(path).expanduser(), size
        self.skipped: dict[str, str] = {}  # file -> reason
        if not self.path.is_dir():
            raise UserError(f"no folder {path}: --data.source folder:PATH wants a folder of pictures with captions")
        try:
            found = sorted(p for p in self.path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            texts = self._captions(found)
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from None
        named = [p for p in found if self._check(p, texts)]
        keep = len(named) * size * size * 3 <= KEEP_BYTES
        with ThreadPoolExecutor(threads) as pool:
            images = list(pool.map(lambda p: self._read(p, keep), named))
        good = [(p, image) for p, image in zip(named, images, strict=True) if image is not None]
        if not good:
            why = f"; {len(self.skipped)} files skipped, the first: {next(iter(self.skipped.items()))}" if self.skipped else ""
            raise UserError(f"no captioned pictures in {path}: give them a metadata.jsonl, metadata.csv or .txt files{why}")
        self.files = [p for p, _ in good]
        self.texts = [texts[p] for p in self.files]
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

    def _captions(self, found: list[pathlib.Path]) -> dict[pathlib.Path, list[str]]:
        texts: dict[pathlib.Path, list[str]] = {}

        def add(name: object, text: object) -> None:
            many = text if isinstance(text, list) else [text]
            for caption in many:
                if isinstance(name, str) and isinstance(caption, str) and caption.strip():
                    texts.setdefault(self.path / name, []).append(caption.strip())

        for name, rows in (("metadata.jsonl", self._jsonl), ("metadata.csv", self._csv)):
            if (self.path / name).is_file():
                for row in rows(self.path / name):
                    add(row.get("file_name"), row.get("text"))
        for path in found:
            beside = path.with_suffix(".txt")
            if path not in texts and beside.is_file():
                for line in beside.read_text("utf-8-sig", "replace").splitlines():
                    add(self._name(path), line)
        return texts

    def _jsonl(self, path: pathlib.Path) -> list[dict]:
        rows = []
        for number, line in enumerate(path.read_text("utf-8-sig", "replace").split("\n"), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    rows.append(row)
                else:
                    self.skipped[f"{path.name}:{number}"] = "not a JSON object"
        return rows

    def _csv(self, path: pathlib.Path) -> list[dict]:
        try:
            return list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig", "replace"), newline="")))
        except csv.Error as error:
            self.skipped[path.name] = str(error)
            return []

    def __len__(self) -> int:
        return len(self.files)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """The picture at an index with one of its captions, and a caption of another picture as the false one."""
        text = _one(self.texts[index], rng)
        others = len(self) - 1
        other = _one(self.texts[(index + 1 + int(rng.integers(others))) % len(self)], rng) if others else text
        return Example(self._image(index), text, other)

    def _image(self, index: int) -> np.ndarray:
        if self._kept is not None:
            return self._kept[index]
        try:
            return read_image(self.files[index], self.size)
        except ImageError as error:  # it could be read when the run began
            raise UserError(f"cannot read {self.files[index]} any more: {error}") from None

    def captions(self, limit: int) -> list[str]:
        """The captions of the first `limit` pictures."""
        return [t for texts in self.texts[:limit] for t in texts]

    def prompts(self) -> list[str]:
        """The first caption of up to eight pictures, spread over the folder."""
        stride = max(1, len(self.texts) // 8)
        return [texts[0] for texts in self.texts[::stride][:8]]
