"""Images of one caption: for the discriminator that sees two of them at a time, and to measure diversity."""

import bisect
import collections
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dallegan.data.source import Example, Source

MOST = 20_000  # captions among which partners are found
# Han and kana one by one, other letters and digits by the word
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
NEAR = 5  # captions to choose a partner's from, if no other has the same words
Key = tuple[int, ...]


class Nearest:
    """Finds captions that are like a given one: the same, or with the same words down to the rarest.

    Every caption becomes its words in order of their frequency among all captions, the most frequent first.
    In the order of these lists, neighbours share all but their rarest words. So a search takes no longer
    among many captions than among few.
    """

    def __init__(self, captions: Sequence[str]) -> None:
        counts = collections.Counter(word for caption in captions for word in set(_words(caption)))
        self._rank = {
            word: i for i, (word, _) in enumerate(sorted(counts.items(), key=lambda x: (-x[1], x[0])))
        }
        order = sorted((self._key(caption), i) for i, caption in enumerate(captions))
        self._keys, self._indices = [key for key, _ in order], [i for _, i in order]

    def _key(self, caption: str) -> Key:
        return tuple(sorted(self._rank[word] for word in set(_words(caption)) if word in self._rank))

    def find(self, caption: str, n: int = 1) -> list[int]:
        """Returns the indices of all captions with the same words, or of the n nearest if these are fewer."""
        key = self._key(caption)
        low, high = bisect.bisect_left(self._keys, key), bisect.bisect_right(self._keys, key)
        common = lambda i: _common(self._keys[i], key)
        while high - low < min(n, len(self._keys)):  # one more on the side whose neighbour shares more words
            below, above = low > 0, high < len(self._keys)
            if below and (not above or common(low - 1) >= common(high)):
                low -= 1
            else:
                high += 1
        return self._indices[low:high]


def _words(caption: str) -> list[str]:
    return WORD.findall(caption.lower())


def _common(a: Key, b: Key) -> int:
    """How many words two lists share before they differ."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class Alike:
    """Finds images of one caption: drawn anew by the source, or others with the same words, or nearly."""

    def __init__(self, source: Source, most: int = MOST) -> None:
        """`most`: examples whose captions are looked at; all others have their partners among these."""
        self._source, self._nearest = source, None
        if source.again(0, np.random.default_rng(0)) is None:
            with ThreadPoolExecutor(16) as pool:  # a bucket answers slowly, but many requests at once
                self._nearest = Nearest(list(pool.map(source.caption, range(min(len(source), most)))))

    def partner(self, index: int, example: Example, rng: np.random.Generator) -> Example:
        """Returns another image of the caption of `example`, which is the one at `index`.

        Of files it is one whose caption has the same words, or else one of the nearest, and the example
        itself only if there is no other.
        """
        if self._nearest is None:
            return self._again(index, rng)
        same, near = (self._nearest.find(example.caption, n) for n in (1, NEAR))
        others = [i for i in same if i != index] or [i for i in near if i != index]
        return self._source.example(int(rng.choice(others)), rng) if others else example

    def several(self, index: int, n: int, rng: np.random.Generator) -> list[Example]:
        """Returns n different images of the caption of example `index`, or of the captions nearest to it.

        There are fewer if the source has no more images.
        """
        if self._nearest is None:
            return [self._source.example(index, rng), *(self._again(index, rng) for _ in range(n - 1))]
        found = self._nearest.find(self._source.caption(index), n)
        return [self._source.example(int(i), rng) for i in rng.permutation(found)[:n]]

    def _again(self, index: int, rng: np.random.Generator) -> Example:
        other = self._source.again(index, rng)
        assert other is not None  # it was not None for index 0
        return other
