"""What every source of captioned pictures looks like."""

from typing import Any, NamedTuple, Protocol

import numpy as np


class Example(NamedTuple):
    """One captioned picture."""

    image: np.ndarray  # uint8[H, W, 3]
    caption: str
    negative: str  # a caption that is false of the picture; one equal to `caption` is masked by the loss
    truth: Any = None  # ground-truth attributes, where the source knows them


class Source(Protocol):
    """A source: `len` examples, each a pure function of its index (and of `rng`, where several captions are to choose from)."""

    def __len__(self) -> int: ...

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """The example at an index."""
        ...

    def captions(self, limit: int) -> list[str]:
        """Captions of the first `limit` examples, for the tokenizer."""
        ...

    def prompts(self) -> list[str]:
        """A few fixed captions for sample grids."""
        ...
