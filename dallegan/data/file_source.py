"""Base of the sources that read files: unreadable images are skipped by name, and give way to the next."""

import abc
import functools
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np

from dallegan.data.source import OTHERS, Example, Source, by_reason
from dallegan.errors import UserError, as_user_error, is_permanent, line_of
from dallegan.io.files import digest
from dallegan.io.image import ImageError

T = TypeVar("T")
UNREAD = {".heic", ".heif", ".hif", ".jxl", ".jp2", ".svg", ".psd"}  # image formats that are not read
# names of images; `read_image` says of a kind that it does not read that it does not
SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".avif", *UNREAD),
}
# files beside a user's own: macOS's, a NAS's thumbnails, headers that an old tar has unpacked as files
JUNK = re.compile(r"(^|/)(\._|__MACOSX/|\.AppleDouble/|PaxHeaders?(\.\d+)?/|@eaDir/)")
MAX_NAMED = 10_000  # names in `skipped`
MAX_UNREADABLE = 1000  # unreadable images in a row that end the run
RETRY_SECONDS = (1.0, 4.0, 16.0)  # waits before an image is read again after an error that may pass


class UnusableRecord(ValueError):
    """A record has no image or no caption; the message says why."""


READ_ERRORS = (UnusableRecord, ImageError, OSError)  # what `load` and `captions_of` raise


class FileSource(Source):
    """Base of the sources that read files. A subclass implements `__len__`, `name`, `captions_of` and `load`.

    An image that cannot be read is recorded in `skipped` when it is asked for, and the next readable one
    takes its place: which one, is a function of the index alone, whatever the threads and processes. An error
    that may pass is tried three more times first, since another image in its place would make it another run.
    """

    def __init__(self, size: int) -> None:
        self.size = size  # side of an image, pixels
        self._reasons: dict[str, str] = {}  # several threads add to it, one item at a time, which is atomic
        self.skipped = self._reasons
        self._unnamed = 0

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Returns what an image is called in `skipped`; never raises."""
        ...

    @abc.abstractmethod
    def captions_of(self, index: int) -> list[str]:
        """Returns all captions of an image, at least one. Raises UnusableRecord, OSError."""
        ...

    @abc.abstractmethod
    def load(self, index: int) -> tuple[np.ndarray, list[str]]:
        """Returns an image uint8[size, size, 3] and all its captions, at least one.

        Raises UnusableRecord, ImageError, OSError.
        """
        ...

    def skip(self, name: str, reason: str | Exception) -> None:
        """Records in `skipped` why something cannot be used; the first reason stays.

        From 10,000 names on, only their number is recorded.
        """
        if len(self._reasons) < MAX_NAMED or name in self._reasons:
            self._reasons.setdefault(name, line_of(reason))
        else:
            self._unnamed += 1
            self._reasons[OTHERS] = f"{self._unnamed} more, not named here"

    def first_skipped(self) -> str:
        """Returns the end of an error message: what was skipped, or "" for nothing."""
        reasons = by_reason(self.skipped)
        return f"; skipped: {'; '.join(reasons[:4])}" if reasons else ""

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """Returns an image, one of its captions, and as the false one a caption of another image.

        Raises UserError if 1,000 images in a row cannot be read.
        """
        index, (image, captions) = self._first_readable(index, self.load)
        caption, others = _choose(captions, rng), len(self) - 1
        if not others:
            return Example(image, caption, caption)
        other = (index + 1 + int(rng.integers(others))) % len(self)
        try:
            false = self._first_readable(other, self.captions_of, index)[1]
        except UserError:  # it is the only usable image
            false = [caption]
        return Example(image, caption, _choose(false, rng))

    def _first_readable(self, index: int, read: Callable[[int], T], leave_out: int = -1) -> tuple[int, T]:
        """Returns (i, read(i)) for the first readable i from `index` on; wraps around, omits `leave_out`."""
        candidates = (i % len(self) for i in range(index, index + min(len(self), MAX_UNREADABLE)))
        order = [i for i in candidates if i != leave_out]
        waits = iter(RETRY_SECONDS)  # shared by all candidates, so that a disk that is away is reported soon
        reason: Exception | None = None
        for i in order:
            while True:
                try:
                    return i, read(i)
                except READ_ERRORS as error:
                    reason = error
                    permanent = not isinstance(error, OSError) or is_permanent(error)
                    if permanent or not (wait := next(waits, 0)):
                        self.skip(self.name(i), error)
                        break
                    time.sleep(wait)
        last = self.name(order[-1])
        raise UserError(f"{len(order)} images in a row cannot be read, the last {last}: {line_of(reason)}")

    def captions(self, limit: int) -> list[str]:
        """Returns all captions of the first `limit` images. Raises UserError if the disk or bucket fails."""

        def read(index: int) -> list[str]:
            try:
                return self.captions_of(index)
            except UnusableRecord as error:
                self.skip(self.name(index), error)
                return []
            except OSError as error:  # a tokenizer trained on what could be read would differ from run to run
                message = f"cannot read the captions of {self.name(index)}: {error}; try again"
                raise as_user_error(error, message) from None

        with ThreadPoolExecutor(16) as pool:  # a bucket answers slowly, but many requests at once
            return [text for texts in pool.map(read, range(min(limit, len(self)))) for text in texts]

    def identity(self) -> dict[str, str]:
        """Returns a digest of the names of up to 10,000 images, spread over all."""
        return {"names": digest(map(self.name, self._some()))}

    def _some(self) -> range:
        return range(0, len(self), -(-len(self) // 10_000))

    def caption(self, index: int) -> str:
        """Returns the first caption of an image, which is not read for it."""
        return self._first_readable(index, self.captions_of)[1][0]


def _choose(captions: list[str], rng: np.random.Generator) -> str:
    return captions[int(rng.integers(len(captions)))]


class FileCache(Generic[T]):
    """Keeps up to `most` files open: those used last. It pickles empty.

    A file that is dropped closes once no thread reads from it.
    """

    def __init__(self, open: Callable[[str], T], most: int = 512) -> None:
        self._arguments, self.get = (open, most), functools.lru_cache(most)(open)

    def __reduce__(self) -> tuple:
        return FileCache, self._arguments
