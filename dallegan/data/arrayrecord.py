"""`arrayrecord:DIR`: what `python -m dallegan.prepare` writes. A record is a msgpack of {"image": file, "captions": [text, ...]}."""

import json
import pathlib
import re
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from dallegan.data.source import FileCache, Files, Unusable, usable
from dallegan.errors import UserError

VERSION = 1
SHARD = re.compile(r"data-\d+-of-\d+\.array_record")  # the only names that a manifest may give
FIELDS = {"version": int, "source": str, "size": int, "vocab": int, "pictures": int, "shards": list}


def local(path: str) -> pathlib.Path:
    """The path, which must be on a disk: the package's reader opens nothing else. UserError for an address."""
    if "://" in path:
        raise UserError(f"{path}: ArrayRecord files are read from disk only; mount the bucket (gcsfuse) or copy it")
    return pathlib.Path(path).expanduser()


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """manifest.json, checked. UserError where it is absent, damaged, foreign or newer than this version."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; arrayrecord:DIR wants what `python -m dallegan.prepare SRC DIR` has finished") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: not JSON. Prepare into a new folder") from None
    if isinstance(manifest, dict) and type(manifest.get("version")) is int and manifest["version"] > VERSION:
        raise UserError(f"{path} is of version {manifest['version']}, newer than this dallegan reads ({VERSION})")
    if not isinstance(manifest, dict) or any(type(manifest.get(name)) is not kind for name, kind in FIELDS.items()):
        raise UserError(f"{path} is damaged, or not one that dallegan.prepare wrote")
    for shard in manifest["shards"]:
        numbers = [shard.get(key) for key in ("pictures", "bytes")] if isinstance(shard, dict) else []
        if not numbers or any(type(n) is not int or not 0 <= n < 2**48 for n in numbers) or not SHARD.fullmatch(str(shard.get("name"))):
            raise UserError(f"{path} is damaged: {str(shard)[:80]!r} is no shard")
    if manifest["pictures"] != sum(shard["pictures"] for shard in manifest["shards"]):
        raise UserError(f"{path} is damaged: the shards' pictures are not {manifest['pictures']}")
    return manifest


def open_shard(path: str) -> Any:
    """A reader without read-ahead and threads: fastest at random. Raises RuntimeError."""
    reader = ArrayRecordReader(path, options="readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=2**15)
    if not reader.ok():
        reader.read([0])  # raises why; the reader itself would say so for ever, whatever becomes of the file
    return reader


def fault(error: Exception) -> OSError | Unusable:
    """What an error of a reader or a decoder is: of the disk, so that the next try may do better, or of the record."""
    # "read() failed: ", as the package begins where the system fails it
    of_disk = isinstance(error, OSError) or re.match(r"(open|fstat|lseek|p?read)\(\) failed: ", str(error))
    return OSError(str(error)) if of_disk else Unusable(f"damaged: {type(error).__name__}: {error}")


class ArrayRecord(Files):
    """The source. UserError where the manifest is unusable, or a shard is missing or of another size than it says."""

    def __init__(self, path: str, size: int) -> None:
        super().__init__(size)
        self.path = local(path)
        self.manifest = read_manifest(self.path)
        self._shards, self._files = self.manifest["shards"], FileCache(open_shard)
        self.tokenizers = {self.manifest["vocab"]: self.path / "tokenizer.model"}  # by vocabulary
        self._ends = np.cumsum([shard["pictures"] for shard in self._shards])
        for shard in self._shards:
            file = self.path / shard["name"]
            if not file.is_file() or file.stat().st_size != shard["bytes"]:
                raise UserError(f"{file} is {'damaged: of another size' if file.exists() else 'missing'}; prepare into a new folder, or copy it again")
        if not len(self):
            raise UserError(f"{path} holds no pictures")

    def __len__(self) -> int:
        return self.manifest["pictures"]

    def _place(self, index: int) -> tuple[str, int]:
        """The file and the record in it."""
        shard = int(np.searchsorted(self._ends, index, "right"))
        return self._shards[shard]["name"], index - int(self._ends[shard]) + self._shards[shard]["pictures"]

    def name(self, index: int) -> str:
        """shard:record"""
        return "{}:{}".format(*self._place(index))

    def texts(self, index: int) -> list[str]:
        """All captions of a picture. Raises Unusable, OSError."""
        return self.record(index)[1]

    def record(self, index: int) -> tuple[bytes, list[str]]:
        """The picture as a file, and all its captions. Raises Unusable, OSError."""
        name, place = self._place(index)
        try:
            record = msgpack.unpackb(self._files.get(str(self.path / name)).read([place])[0])
        except Exception as error:  # the reader's own RuntimeError, and what msgpack raises on hostile bytes
            raise fault(error) from None
        image, captions = (record.get("image"), record.get("captions")) if isinstance(record, dict) else (None, None)
        if not isinstance(image, bytes) or not isinstance(captions, list) or not (texts := usable(captions)):
            raise Unusable("not a record that dallegan.prepare wrote")
        return image, texts
