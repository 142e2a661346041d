"""The interface of every source of captioned images: examples by index, and facts about them."""

import abc
import collections
import pathlib
import re
import types
import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from dallegan.errors import UserError

OTHERS = "(others)"  # the name in `skipped` whose reason is how many more there are
ENDLESS = 10**9  # images from which on a source has no end
MAX_REASONS = 20  # in a report
REPORTED = 256  # examples whose captions are looked at for a report


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
        return [self.caption(i) for i in range(min(limit, len(self)))]

    def caption(self, index: int) -> str:
        """Returns a caption of the example at an index, always the same one."""
        return self.example(index, np.random.default_rng(index)).caption

    def again(self, index: int, rng: np.random.Generator) -> Example | None:
        """Returns another image of the same caption; None if the source can make none, as by default.

        `data.pairs.Alike` then finds an image whose caption has the same words, or the nearest.
        """
        return None

    def identity(self) -> dict[str, str]:
        """Returns what tells these data from others, which a run compares when it resumes.

        "names" is a digest of what the images are called. "contents" is one that also differs between other
        images of these names; data that have it may move to another path. By default there is neither.
        """
        return {}

    def prompts(self) -> list[str]:
        """Returns the captions of sample grids: by default those of up to eight examples, spread over all."""
        return [self.caption(i) for i in spread(len(self))]


def spread(count: int, most: int = 8) -> range:
    """Returns up to `most` indices, spread evenly over `count`."""
    return range(0, count, max(1, count // most))[:most]


def describe(source: Source) -> list[str]:
    """Returns a report, in lines: images, captions and their scripts, and what was skipped by reason.

    No image is decoded. The captions are those of the first examples, if the source tells them without.
    """
    count = f"images {len(source)}" if len(source) < ENDLESS else "images without end"
    if type(source).captions is not Source.captions:
        looked = min(len(source), REPORTED)
        try:
            captions = source.captions(looked)
        except UserError:  # whoever needs them will say it
            captions = []
        scripts = collections.Counter(map(script_of, captions)).most_common(4)
        fractions = ", ".join(f"{script} {number / len(captions):.0%}" for script, number in scripts)
        of = "" if looked == len(source) else f" of the first {looked} images"
        count += f", captions {len(captions)}{of}" + f" ({fractions})" * bool(fractions)
    return [f"data: {count}", *(f"data: skipped {line}" for line in by_reason(source.skipped)[:MAX_REASONS])]


def script_of(text: str) -> str:
    """Returns the script of most letters in a text, for example Latin, Han or Cyrillic; "no letters"."""
    names = collections.Counter(unicodedata.name(c, "unknown").split()[0] for c in text[:1000] if c.isalpha())
    most = names.most_common(1)[0][0] if names else "no letters"
    return {"CJK": "Han", "no letters": most}.get(most, most.capitalize())


def by_reason(skipped: Mapping[str, str]) -> list[str]:
    """Returns a line for each reason: how many were skipped for it, and up to three of them by name.

    Reasons are alike if they differ in numbers, or behind a colon.
    """
    groups: dict[str, list[str]] = {}
    reasons = dict(skipped)  # threads may add to it meanwhile
    others = reasons.pop(OTHERS, "")
    for name, reason in sorted(reasons.items()):
        groups.setdefault(re.sub(r"\d+", "N", reason.partition(": ")[0]), []).append(name)
    lines = []
    # "no caption" and "no image" often follow from another reason
    rank = lambda kind: (kind in ("no caption", "no image"), -len(groups[kind]))
    for names in (groups[kind] for kind in sorted(groups, key=rank)):
        named = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
        lines.append(f"{len(names)} x {reasons[names[0]]} ({named})")
    return lines + [others] * bool(others)
