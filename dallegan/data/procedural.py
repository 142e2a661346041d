"""Base of the sources that draw their images: three splits, one of combinations that training never shows."""

import dataclasses
import random
from collections.abc import Callable
from typing import TypeVar

from dallegan.data.source import Source
from dallegan.errors import UserError

T = TypeVar("T")
SPLITS = ("train", "test", "heldout")


@dataclasses.dataclass(frozen=True)
class Procedural(Source):
    """An endless source, whose examples are pure functions of (seed, split, index).

    Splits: `train`; `test`, fresh draws of what `train` shows; `heldout`, combinations that never occur in
    `train`.
    """

    size: int  # side of an image, pixels
    split: str = "train"
    seed: int = 0

    splits = SPLITS

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            name = type(self).__name__.lower()
            raise UserError(f"{name} has no split {self.split!r}: choose one of {', '.join(SPLITS)}")

    def __len__(self) -> int:
        return 2**31 - 1

    def rng(self, index: int) -> random.Random:
        """Returns the random numbers of an example, which no other (seed, split, index) shares."""
        return random.Random((self.seed * len(SPLITS) + SPLITS.index(self.split)) * 2**40 + index)


def in_split(heldout: bool, split: str) -> bool:
    """Returns whether a combination may occur in a split: held-out ones in `heldout`, others elsewhere."""
    return heldout == (split == "heldout")


def draw_until(accept: Callable[[T], bool], draw: Callable[[], T]) -> T:
    """Returns the first result of `draw` that `accept` is true of."""
    while not accept(drawn := draw()):
        pass
    return drawn
