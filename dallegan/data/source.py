"""What every source of captioned pictures looks like, and what those that read files share."""

import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from dallegan.errors import UserError, as_user_error, is_permanent
from dallegan.io.image import ImageError, read_image
from dallegan.tokenizer import is_blank

T = TypeVar("T")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MAX_UNREADABLE = 1000  # pictures in a row
WAITS = (1.0, 4.0, 16.0)  # seconds before a picture that the disk or the bucket does not give just then is asked for again
MAX_CAPTION = 10_000  # characters of a caption that are kept: more than any model reads


class Example(NamedTuple):
    """One captioned picture."""

    image: np.ndarray  # uint8[H, W, 3]
    caption: str
    negative: str  # a caption that is false of the picture; one equal to `caption` is masked by the loss
    truth: Any = None  # ground-truth attributes, where the source knows them


class Source(Protocol):
    """A source: `len` examples, each a pure function of its index (and of `rng`, where several captions are to choose from)."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The names that `make_source` takes; the first is "train"."""
        ...

    @property
    def truth(self) -> bool:
        """Whether `Example.truth` holds (Scene, Caption), which the storybook judge can check."""
        ...

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


class Unusable(ValueError):
    """A record without a picture or a caption; the message says why."""


UNREADABLE = (Unusable, ImageError, OSError)  # what `Files.read` raises of bad data


def usable(text: object) -> list[str]:
    """The captions in a string or a list of them: not blank (invisible characters alone are), with a UTF-8 form, of at most 10,000 characters, each once."""
    found = [t.encode("utf-8", "replace").decode().strip()[:MAX_CAPTION] for t in (text if isinstance(text, list) else [text]) if isinstance(t, str)]
    return list(dict.fromkeys(t for t in found if not is_blank(t)))


class Files:
    """Base of the sources that read files. What cannot be read, found when it is asked for, is recorded in `skipped` and gives way to the next
    that can: a function of the index, whatever the threads and processes. What another try may mend has three more, since another picture in its
    place would make it another run. UserError from `example` after 1,000 in a row."""

    splits: tuple[str, ...] = ("train",)
    truth = False

    def __init__(self, size: int) -> None:
        self.size = size  # pixels
        self.skipped: dict[str, str] = {}  # name -> reason; threads add to it, one store at a time, which is atomic

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What a picture is called in `skipped`; of a shard that cannot be read any more, its place."""
        raise NotImplementedError

    def texts(self, index: int) -> list[str]:
        """All captions of a picture, at least one. Raises Unusable, OSError."""
        raise NotImplementedError

    def record(self, index: int) -> tuple[bytes, list[str]]:
        """The picture as a file, and all its captions, at least one. Raises Unusable, OSError."""
        raise NotImplementedError

    def read(self, index: int) -> tuple[np.ndarray, list[str]]:
        """The picture uint8[size, size, 3], and all its captions, at least one. Raises Unusable, ImageError, OSError."""
        data, texts = self.record(index)
        return read_image(data, self.size), texts

    def skip(self, index: int, error: Exception) -> None:
        """Records why a picture cannot be used."""
        self.skipped.setdefault(self.name(index), (str(error) or type(error).__name__).splitlines()[0])

    def _from(self, index: int, read: Callable[[int], T], but: int = -1) -> tuple[int, T]:
        """Reads at the first index that can be read, from this one on, around the end, leaving out `but`: that index, and what `read` gave."""
        order = [i % len(self) for i in range(index, index + min(len(self), MAX_UNREADABLE)) if i % len(self) != but]
        waits = iter(WAITS)  # for all of them: where everything is away, it is soon said
        for i in order:
            while True:
                try:
                    return i, read(i)
                except UNREADABLE as error:
                    if not isinstance(error, OSError) or is_permanent(error) or not (wait := next(waits, 0)):
                        self.skip(i, error)
                        break
                    time.sleep(wait)
        raise UserError(f"{len(order)} pictures in a row cannot be read, the last {self.name(order[-1])}: {self.skipped[self.name(order[-1])]}")

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """The picture at an index with one of its captions, and a caption of another picture as the false one."""
        index, (image, texts) = self._from(index, self.read)
        text, others = _one(texts, rng), len(self) - 1
        other = _one(self._from((index + 1 + int(rng.integers(others))) % len(self), self.texts, index)[1], rng) if others else text
        return Example(image, text, other)

    def captions(self, limit: int) -> list[str]:
        """The captions of the first `limit` pictures. UserError where the disk or the bucket does not give them."""

        def read(index: int) -> list[str]:
            try:
                return self.texts(index)
            except Unusable as error:
                self.skip(index, error)
                return []
            except OSError as error:  # a tokenizer of what could be read just then would be another at the next try
                raise as_user_error(error, f"cannot read the captions of {self.name(index)}: {error}; try again") from None

        with ThreadPoolExecutor(16) as pool:  # a bucket answers slowly, but many at once
            return [text for texts in pool.map(read, range(min(limit, len(self)))) for text in texts]

    def prompts(self) -> list[str]:
        """The first caption of up to eight pictures, spread over all."""
        return [self._from(i, self.texts)[1][0] for i in range(0, len(self), max(1, len(self) // 8))[:8]]


def _one(texts: list[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


class FileCache(Generic[T]):
    """The files used last, opened by `open`: one that is dropped closes once no thread reads from it. Pickles empty."""

    def __init__(self, open: Callable[[str], T], most: int = 512) -> None:
        self._how, self.get = (open, most), functools.lru_cache(most)(open)

    def __reduce__(self) -> tuple:
        return FileCache, self._how
