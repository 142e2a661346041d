"""The interface of every source of captioned images: examples by index, and facts about them."""

import abc
import pathlib
import types
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np


class Example(NamedTuple):
    """One captioned image."""

    image: np.ndarray  # uint8[H, W, 3]
    caption: str
    negative: str  # a caption that is false of the image; the loss masks one that equals `caption`
    truth: Any = None  # what the image shows, if the source knows it


class Source(Protocol):
    """A data set of captioned images: `len(source)` examples, each a pure function of its index and of `rng`.

    A class that inherits from `Source` must have `__len__` and `example`; everything else has a default. A
    class that has all of these members without inheriting is a source, too. Several threads call `example` at
    once.
    """

    splits: tuple[str, ...] = ("train",)  # what `make_source(config, split)` takes; the first is "train"
    skipped: Mapping[str, str] = types.MappingProxyType({})  # what cannot be used: name -> reason
    tokenizers: Mapping[int, pathlib.Path] = types.MappingProxyType({})  # vocabulary -> tokenizer file
    truth: bool = False  # whether `Example.truth` is (Scene, Caption), which the storybook's judge can check

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def example(self, index: int, rng: np.random.Generator) -> Example:
        """Returns the example at an index in [0, len). `rng` chooses if an image has several captions."""
        ...

    def captions(self, limit: int) -> list[str]:
        """Returns the captions of the first `limit` examples, from which the tokenizer is trained.

        By default the examples are made for their captions alone; override this if images take long to make.
        """
        return [_caption(self, i) for i in range(min(limit, len(self)))]

    def identity(self) -> dict[str, str]:
        """Returns what tells these data from others, which a run compares when it resumes.

        "names" is a digest of what the images are called. "contents" is one that also differs between other
        images of these names; data that have it may move to another path. By default there is neither.
        """
        return {}

    def prompts(self) -> list[str]:
        """Returns the captions of sample grids: by default those of up to eight examples, spread over all."""
        return [_caption(self, i) for i in spread(len(self))]


def _caption(source: Source, index: int) -> str:
    return source.example(index, np.random.default_rng(index)).caption


def spread(count: int, most: int = 8) -> range:
    """Returns up to `most` indices, spread evenly over `count`."""
    return range(0, count, max(1, count // most))[:most]
