"""`tfds:NAME[/CONFIG][:VERSION][?split=train&image=KEY&text=KEY&data_dir=DIR]`: a prepared TensorFlow Dataset, read without TensorFlow.

The data set must have been prepared as ArrayRecord (`tfds build NAME --file_format=array_record`); no code of its own is run. KEY is a feature,
`a/b` inside others; not given, they are found by type: the picture; texts, sequences of them too, but no ids; else a class label's names.
"""

import contextlib
import functools
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder, registered

from dallegan.data.arrayrecord import fault, local
from dallegan.data.source import Files, Unusable, usable
from dallegan.errors import UserError

OPTIONS = {"split": "train", "image": "", "text": "", "data_dir": ""}
NO_CAPTION = re.compile(r"(^|[/_])(id|key|file_?name|path|url|md5|sha\d*)s?$")  # texts that say nothing of the picture
Path = tuple[str, ...]  # of a feature, from the top


def leaves(feature: Any, path: Path = ()) -> dict[Path, Any]:
    """The features that are no dictionaries, sequences under their element."""
    if isinstance(feature, tfds.features.FeaturesDict):
        return {p: leaf for name, inner in feature.items() for p, leaf in leaves(inner, (*path, name)).items()}
    if isinstance(feature, tfds.features.Sequence):
        return leaves(feature.feature, path)
    return {path: feature}


def choose(found: dict[Path, Any], kinds: tuple[type, ...], asked: str, flag: str, liked: tuple[str, ...]) -> Path:
    """The feature asked for, else the only one of the first kind there is, else the one whose name holds a liked word. UserError otherwise."""
    there = ", ".join(f"{'/'.join(p)} ({type(leaf).__name__})" for p, leaf in sorted(found.items()))
    for kind in kinds:
        fit = [p for p, leaf in found.items() if isinstance(leaf, kind) and not (kind is tfds.features.Text and NO_CAPTION.search("/".join(p)))]
        if asked:
            fit = [p for p, leaf in found.items() if isinstance(leaf, kind) and "/".join(p) == asked]
        for word in ("", *liked):
            if len(some := [p for p in fit if word in "/".join(p).lower()]) == 1:
                return some[0]
        if fit:
            raise UserError(f"tfds: several features could be the {flag}: say ?{flag}=KEY. There are: {there}")
    raise UserError(f"tfds: no feature {asked!r} that can be the {flag}. There are: {there}" if asked else f"tfds: no {flag} among its features: {there}")


def at(value: Any, path: Path) -> list[Any]:
    """The values of a feature in a decoded example, of sequences all."""
    for key in path:
        value = value[key]
    return value if isinstance(value, list) else value.tolist() if hasattr(value, "tolist") and getattr(value, "ndim", 0) else [value]


@contextlib.contextmanager
def running_nothing() -> Iterator[None]:
    """TFDS imports the modules of whatever classes a data set's features.json names; in this block, of its own alone. UserError for another."""
    owner: Any = tfds.features.FeatureConnector
    resolve = vars(owner)["cls_from_name"]

    def checked(name: str) -> type:
        if not name.startswith("tensorflow_datasets."):
            raise UserError(f"tfds: a feature is of the class {name}, whose code would have to be run: prepare the data set with the features of TFDS itself")
        return resolve.__get__(None, owner)(name)

    owner.cls_from_name = staticmethod(checked)
    try:
        yield
    finally:
        owner.cls_from_name = resolve


class Tfds(Files):
    """The source. UserError for a data set, version, split or feature that is not there, one of another file format, or one in a bucket."""

    def __init__(self, spec: str, size: int) -> None:
        super().__init__(size)
        self.spec, _, query = spec.partition("?")
        try:
            options = OPTIONS | dict(pair.split("=", 1) for pair in map(urllib.parse.unquote, filter(None, query.split("&"))))
        except ValueError:
            options = {"": ""}
        if set(options) != set(OPTIONS):
            raise UserError(f"tfds:{spec}: after the ? goes {' & '.join(f'{name}=...' for name in OPTIONS)}")
        self.split, data_dir = options["split"], str(local(options["data_dir"])) if options["data_dir"] else None
        try:
            with running_nothing():
                builder: Any = read_only_builder.builder_from_files(self.spec, data_dir=data_dir)
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._open: Any = functools.partial(builder.as_data_source, split=self.split, deserialize_method=raw)
            self._data = self._open()
            missing = [f for f in (str(i.filename) for i in builder.info.splits[self.split].file_instructions) if not local(f).is_file()]
        except UserError:
            raise
        except registered.DatasetNotFoundError:
            raise UserError(
                f"no data set {self.spec} in {data_dir or 'the usual place, ~/tensorflow_datasets'}: prepare it with "
                f"`tfds build {self.spec} --file_format=array_record`, or name its folder: ?data_dir=DIR"
            ) from None
        except NotImplementedError:
            raise UserError(f"tfds:{self.spec} was prepared in a format without random access: prepare it again with --file_format=array_record") from None
        except Exception as error:  # JSON, protobuf and value errors, of damaged files or of a bad name, version or split
            raise UserError(f"tfds:{self.spec}: {(str(error) or type(error).__name__).splitlines()[0]}") from None
        if missing:
            raise UserError(f"tfds:{self.spec}: {missing[0]} is missing")
        if not len(self):
            raise UserError(f"tfds:{self.spec}: the split {self.split} is empty")
        features: Any = builder.info.features
        found = leaves(features)
        self._image = choose(found, (tfds.features.Image,), options["image"], "image", ("image",))
        self._text = choose(found, (tfds.features.Text, tfds.features.ClassLabel), options["text"], "text", ("caption", "text", "description", "label"))
        self._labels = [n.replace("_", " ") for n in found[self._text].names] if isinstance(found[self._text], tfds.features.ClassLabel) else None
        self._some = tfds.features.FeaturesDict({self._text[0]: features[self._text[0]]})  # decodes the captions alone
        self._both = tfds.features.FeaturesDict({path[0]: features[path[0]] for path in (self._image, self._text)})
        self._skip: Any = tfds.decode.SkipDecoding()  # pictures stay files: ours to decode
        for key in reversed(self._image):
            self._skip = {key: self._skip}

    def __len__(self) -> int:
        return len(self._data)

    def name(self, index: int) -> str:
        """split:record"""
        return f"{self.split}:{index}"

    def _decode(self, index: int, features: Any, skip: Any) -> tuple[Any, list[str]]:
        try:
            example = features.deserialize_example_np(self._data[index], decoders=skip)
            values = at(example, self._text)
            if self._labels is not None:
                values = [self._labels[v] for v in values if 0 <= v < len(self._labels)]  # -1: not labelled
            texts = usable([v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values])
            image = at(example, self._image)[0] if skip else None
        except Exception as error:  # readers, protobuf and decoders all have their own
            if isinstance(error := fault(error), OSError):
                self._data = self._open()  # a reader that could not open its file would say so for ever
            raise error from None
        if not texts:
            raise Unusable("no caption")
        return image, texts

    def texts(self, index: int) -> list[str]:
        """All captions of a picture. Raises Unusable, OSError."""
        return self._decode(index, self._some, None)[1]

    def record(self, index: int) -> tuple[bytes, list[str]]:
        """The picture as a file, and all its captions. Raises Unusable, OSError."""
        image, texts = self._decode(index, self._both, self._skip)
        if not isinstance(image, bytes):
            raise Unusable("no picture")
        return image, texts
