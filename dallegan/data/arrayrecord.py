"""`arrayrecord:DIR`: shards that `dallegan prepare` wrote.

A record is a msgpack of {"image": image file, "captions": [text, ...]}.
"""

import json
import pathlib
import re
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from dallegan.data.file_source import FileCache, FileSource, UnusableRecord, clean_captions
from dallegan.errors import UserError
from dallegan.io.files import digest, local_path
from dallegan.io.image import read_image

VERSION = 1
SHARD = re.compile(r"data-\d+-of-\d+\.array_record")  # the only file names that a manifest may give
FIELDS = {"version": int, "source": str, "size": int, "vocab": int, "pictures": int, "shards": list}


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Returns manifest.json of a prepared folder.

    Raises UserError if it is missing, damaged, of another program, or of a newer version than this one reads.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except OSError as error:
        how = "arrayrecord:DIR needs a folder that `dallegan prepare SRC DIR` has finished"
        raise UserError(f"cannot read {path}: {error.strerror}; {how}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: not JSON. Prepare into a new folder") from None
    if isinstance(manifest, dict) and type(manifest.get("version")) is int and manifest["version"] > VERSION:
        raise UserError(
            f"{path} is of version {manifest['version']}, newer than this dallegan reads ({VERSION})"
        )
    if not isinstance(manifest, dict) or any(
        type(manifest.get(name)) is not kind for name, kind in FIELDS.items()
    ):
        raise UserError(f"{path} is damaged, or not one that `dallegan prepare` wrote")
    for shard in manifest["shards"]:
        numbers = [shard.get(key) for key in ("pictures", "bytes")] if isinstance(shard, dict) else []
        valid = numbers and all(type(n) is int and 0 <= n < 2**48 for n in numbers)
        if not valid or not SHARD.fullmatch(str(shard.get("name"))):
            raise UserError(f"{path} is damaged: {str(shard)[:80]!r} is no shard")
    if manifest["pictures"] != sum(shard["pictures"] for shard in manifest["shards"]):
        raise UserError(f"{path} is damaged: its shards do not add up to {manifest['pictures']} images")
    return manifest


def open_shard(path: str) -> Any:
    """Returns a reader without read-ahead or threads, the fastest for random reads. Raises RuntimeError."""
    options = "readahead_buffer_size:0,max_parallelism:0"
    reader = ArrayRecordReader(path, options=options, file_reader_buffer_size=2**15)
    if not reader.ok():
        # raises the reason; a reader kept in this state would go on failing after the file is mended
        reader.read([0])
    return reader


def classify(error: Exception) -> OSError | UnusableRecord:
    """Returns a reader's or a decoder's error as OSError if the disk failed, else as an UnusableRecord."""
    # array_record reports the system's errors as "read() failed: ..."
    of_disk = isinstance(error, OSError) or re.match(r"(open|fstat|lseek|p?read)\(\) failed: ", str(error))
    return OSError(str(error)) if of_disk else UnusableRecord(f"damaged: {type(error).__name__}: {error}")


class ArrayRecord(FileSource):
    """A folder of shards, with the tokenizer trained on their captions.

    Raises UserError if the manifest is unusable, or a shard is missing or of another size than the manifest
    says.
    """

    def __init__(self, path: str, size: int) -> None:
        super().__init__(size)
        self.path = local_path(path)
        self.manifest = read_manifest(self.path)
        self.tokenizers = {self.manifest["vocab"]: self.path / "tokenizer.model"}
        self._shards, self._readers = self.manifest["shards"], FileCache(open_shard)
        self._ends = np.cumsum([shard["pictures"] for shard in self._shards])
        for shard in self._shards:
            file = self.path / shard["name"]
            if not file.is_file() or file.stat().st_size != shard["bytes"]:
                fault = "damaged: of another size" if file.exists() else "missing"
                raise UserError(f"{file} is {fault}; prepare into a new folder, or copy it again")
        if not len(self):
            raise UserError(f"{path} holds no images")

    def __len__(self) -> int:
        return self.manifest["pictures"]

    def _locate(self, index: int) -> tuple[str, int]:
        """Returns the name of a shard, and the number of the record in it."""
        shard = int(np.searchsorted(self._ends, index, "right"))
        return self._shards[shard]["name"], index - int(self._ends[shard]) + self._shards[shard]["pictures"]

    def name(self, index: int) -> str:
        """Returns "shard:record"."""
        return "{}:{}".format(*self._locate(index))

    def identity(self) -> dict[str, str]:
        """Returns a digest of the names and sizes of the shards."""
        whole = digest([json.dumps(self._shards, sort_keys=True)])
        return {"names": whole, "contents": whole}

    def record(self, index: int) -> tuple[bytes, list[str]]:
        """Returns an image as a file, and all its captions. Raises UnusableRecord, OSError."""
        name, number = self._locate(index)
        try:
            record = msgpack.unpackb(self._readers.get(str(self.path / name)).read([number])[0])
        except (
            Exception
        ) as error:  # array_record raises RuntimeError, and msgpack nearly anything on damaged bytes
            raise classify(error) from None
        image, texts = (
            (record.get("image"), record.get("captions")) if isinstance(record, dict) else (None, None)
        )
        if (
            not isinstance(image, bytes)
            or not isinstance(texts, list)
            or not (captions := clean_captions(texts))
        ):
            raise UnusableRecord("not a record that `dallegan prepare` wrote")
        return image, captions

    def captions_of(self, index: int) -> list[str]:
        """Returns all captions of an image. Raises UnusableRecord, OSError."""
        return self.record(index)[1]

    def load(self, index: int) -> tuple[np.ndarray, list[str]]:
        """Returns an image uint8[size, size, 3] and all its captions.

        Raises UnusableRecord, ImageError, OSError.
        """
        image, captions = self.record(index)
        return read_image(image, self.size), captions
