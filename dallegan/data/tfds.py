"""`tfds:NAME[/CONFIG][:VERSION][?split=train&image=KEY&text=KEY&data_dir=DIR]`: a TensorFlow Dataset.

It is read without TensorFlow, and no code of the data set is run. It must have been prepared as ArrayRecord
(`tfds build NAME --file_format=array_record`). KEY names a feature, `a/b` one inside another. Without KEY
they are found by type: the image; texts and sequences of texts, but no ids; else the names of a class label.
"""

import functools
import json
import pathlib
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils.file_utils import list_data_dirs

from dallegan.data.arrayrecord import classify
from dallegan.data.captions import clean_captions
from dallegan.data.file_source import FileSource, UnusableRecord
from dallegan.errors import UserError
from dallegan.io.files import is_special, local_path, parse_object, read_file
from dallegan.io.image import read_image

OPTIONS = {"split": "train", "image": "", "text": "", "data_dir": ""}
# texts that do not describe the image
NO_CAPTION = re.compile(r"(^|[/_])(id|key|file_?name|path|url|md5|sha\d*)s?$")
# where features.json names a class, in its two formats
CLASS_KEYS = ("type", "pythonClassName", "python_class_name")
IMAGES, TEXTS = (tfds.features.Image,), (tfds.features.Text, tfds.features.ClassLabel)
KeyPath = tuple[str, ...]  # of a feature, from the top


def parse_options(spec: str) -> tuple[str, dict[str, str]]:
    """Returns NAME[/CONFIG][:VERSION], and the options after the "?". Raises UserError for unknown ones."""
    name, _, query = spec.partition("?")
    try:
        pairs = [pair.split("=", 1) for pair in map(urllib.parse.unquote, filter(None, query.split("&")))]
        options = OPTIONS | dict(pairs)
    except ValueError:
        options = {}
    if set(options) != set(OPTIONS):
        raise UserError(f"tfds:{spec}: after the ? goes {' & '.join(f'{name}=...' for name in OPTIONS)}")
    return name, options


def find_prepared(name: str, data_dir: str) -> pathlib.Path:
    """Returns the folder of the newest version that fits NAME[/CONFIG][:VERSION].

    data_dir: where to look; "" for the usual places. TFDS's own search would import the data set's code, if
    it is installed, to learn the default configuration. Raises UserError if there is none, or several.
    """
    data_set, _, wanted = name.partition(":")
    found = []
    for root in map(pathlib.Path, list_data_dirs(data_dir or None)):
        folder = root / data_set
        metadata = folder / ".config" / "metadata.json"  # of all configurations
        if metadata.is_file():
            folder /= str(_metadata(metadata).get("default_config_name") or "")
        children = [p for p in folder.iterdir() if (p / "features.json").is_file()] if folder.is_dir() else []
        versions = [tfds.core.Version(p.name) for p in children if tfds.core.Version.is_valid(p.name)]
        if fitting := [version for version in versions if not wanted or matches(version, wanted)]:
            found.append(folder / str(max(fitting)))
    if not found:
        raise UserError(
            f"no data set {name} in {data_dir or 'the usual place, ~/tensorflow_datasets'}: prepare it with "
            f"`tfds build {name} --file_format=array_record`, or name its folder: ?data_dir=DIR"
        )
    if len(found) > 1:
        raise UserError(
            f"tfds:{name} is in several folders ({', '.join(map(str, found))}): add ?data_dir=DIR"
        )
    return found[0]


def _metadata(path: pathlib.Path) -> dict[str, Any]:
    try:
        return parse_object(read_file(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def matches(version: tfds.core.Version, wanted: str) -> bool:
    """Returns whether a version is `wanted`: "1.2.3", where "*" may stand for a number."""
    try:
        return version.match(wanted)
    except ValueError:
        return False


def class_names(value: Any) -> Iterator[str]:
    """Yields the names of all classes in a features.json, also in JSON nested in it as a string."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return
    if isinstance(value, dict):
        yield from (value[key] for key in CLASS_KEYS if isinstance(value.get(key), str))
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from class_names(inner)


def check_classes(folder: pathlib.Path) -> None:
    """Raises UserError if features.json names a class outside TFDS, whose module TFDS would import.

    Also if a file is none that TFDS could read to its end: a pipe, a device or huge metadata.
    """
    for path in folder.iterdir():
        if is_special(path) or (path.suffix == ".json" and path.is_file() and path.stat().st_size > 2**26):
            raise UserError(f"tfds: {path} is not a regular file, or is larger than {2**26} bytes")
    for name in class_names(read_file(folder / "features.json", 2**26).decode()):
        if "." in name and not name.startswith("tensorflow_datasets."):
            raise UserError(
                f"tfds: a feature is of the class {name}, whose code would have to be run: prepare the "
                "data set with the features of TFDS itself"
            )


def leaves(feature: Any, path: KeyPath = ()) -> dict[KeyPath, Any]:
    """Returns the features that are no dictionaries; a sequence counts as its element."""
    if isinstance(feature, tfds.features.FeaturesDict):
        return {
            p: leaf for name, inner in feature.items() for p, leaf in leaves(inner, (*path, name)).items()
        }
    if isinstance(feature, tfds.features.Sequence):
        return leaves(feature.feature, path)
    return {path: feature}


def choose_feature(
    features: dict[KeyPath, Any], kinds: tuple[type, ...], key: str, option: str, likely: tuple[str, ...]
) -> KeyPath:
    """Returns the feature named `key`; if that is "", the likeliest feature of the first of `kinds` present.

    That is the only one of its kind, or the only one whose name holds a `likely` word. Raises UserError
    otherwise.
    """
    present = ", ".join(f"{'/'.join(p)} ({type(leaf).__name__})" for p, leaf in sorted(features.items()))
    for kind in kinds:
        fitting = [p for p, leaf in features.items() if isinstance(leaf, kind)]
        if key:
            fitting = [p for p in fitting if "/".join(p) == key]
        elif kind is tfds.features.Text:
            fitting = [p for p in fitting if not NO_CAPTION.search("/".join(p))]
        for word in ("", *likely):
            if len(named := [p for p in fitting if word in "/".join(p).lower()]) == 1:
                return named[0]
        if fitting:
            raise UserError(
                f"tfds: several features could be the {option}: add ?{option}=KEY. There are: {present}"
            )
    if key:
        raise UserError(f"tfds: no feature {key!r} that can be the {option}. There are: {present}")
    raise UserError(f"tfds: no {option} among its features: {present}")


def values_at(example: Any, path: KeyPath) -> list[Any]:
    """Returns the values of a feature in a decoded example: all values of a sequence."""
    for key in path:
        example = example[key]
    if isinstance(example, list):
        return example
    return example.tolist() if isinstance(example, np.ndarray) and example.ndim else [example]


class Tfds(FileSource):
    """A split of a prepared data set.

    Raises UserError if the data set, version, split or feature does not exist, if the files are of another
    format, and if they are in a bucket.
    """

    def __init__(self, spec: str, size: int) -> None:
        super().__init__(size)
        self.spec, options = parse_options(spec)
        data_dir = str(local_path(options["data_dir"])) if options["data_dir"] else ""
        self.split = options["split"]
        try:
            folder = find_prepared(self.spec, data_dir)
            check_classes(folder)
            builder: Any = tfds.builder_from_directory(folder)
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._open: Any = functools.partial(
                builder.as_data_source, split=self.split, deserialize_method=raw
            )
            self._data = self._open()
            files = [str(part.filename) for part in builder.info.splits[self.split].file_instructions]
        except UserError:
            raise
        except NotImplementedError:
            how = "prepare it again with --file_format=array_record"
            raise UserError(
                f"tfds:{self.spec} was prepared in a format without random access: {how}"
            ) from None
        except (
            Exception
        ) as error:  # JSON, protobuf and value errors, of damaged files or of a bad version or split
            raise UserError(
                f"tfds:{self.spec}: {(str(error) or type(error).__name__).splitlines()[0]}"
            ) from None
        if missing := [file for file in files if not local_path(file).is_file()]:
            raise UserError(f"tfds:{self.spec}: {missing[0]} is missing")
        if not len(self):
            raise UserError(f"tfds:{self.spec}: the split {self.split} is empty")
        features: Any = builder.info.features
        found = leaves(features)
        self._image = choose_feature(found, IMAGES, options["image"], "image", ("image",))
        likely = ("caption", "text", "description", "label")
        self._text = choose_feature(found, TEXTS, options["text"], "text", likely)
        text = found[self._text]
        is_label = isinstance(text, tfds.features.ClassLabel)
        self._labels = [name.replace("_", " ") for name in text.names] if is_label else None
        part = lambda *paths: tfds.features.FeaturesDict({path[0]: features[path[0]] for path in paths})
        # what is decoded of a record
        self._text_only, self._both = part(self._text), part(self._image, self._text)
        self._skip_image: Any = tfds.decode.SkipDecoding()  # images stay files, for `read_image`
        for key in reversed(self._image):
            self._skip_image = {key: self._skip_image}

    def __len__(self) -> int:
        return len(self._data)

    def name(self, index: int) -> str:
        """Returns "split:record"."""
        return f"{self.split}:{index}"

    def _decode(self, index: int, features: Any, with_image: bool) -> tuple[Any, list[str]]:
        try:
            skip = self._skip_image if with_image else None
            example = features.deserialize_example_np(self._data[index], decoders=skip)
            values = values_at(example, self._text)
            if self._labels is not None:
                values = [self._labels[v] for v in values if 0 <= v < len(self._labels)]  # -1: not labelled
            texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]
            captions = clean_captions(texts)
            image = values_at(example, self._image)[0] if with_image else None
        except Exception as error:  # readers, protobuf and decoders have errors of their own
            if isinstance(error := classify(error), OSError):
                self._data = self._open()  # a reader that could not open its file would go on failing
            raise error from None
        if not captions:
            raise UnusableRecord("no caption")
        return image, captions

    def captions_of(self, index: int) -> list[str]:
        """Returns all captions of an image. Raises UnusableRecord, OSError."""
        return self._decode(index, self._text_only, with_image=False)[1]

    def load(self, index: int) -> tuple[np.ndarray, list[str]]:
        """Returns an image uint8[size, size, 3] and all its captions.

        Raises UnusableRecord, ImageError, OSError.
        """
        image, captions = self._decode(index, self._both, with_image=True)
        if not isinstance(image, bytes):
            raise UnusableRecord("no image")
        return read_image(image, self.size), captions
