"""Which images and captions a model is measured on, and the images that it draws for them."""

import collections
import dataclasses
import itertools
import sys
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from dallegan.config import Config
from dallegan.data.pipeline import make_source
from dallegan.data.source import Example, Source
from dallegan.data.storybook.scenes import names_triples
from dallegan.sampling import Model

MAX_SHUFFLED = 10**6  # examples; a larger source is procedural, and its first examples are as good as any


def measured_sources(config: Config) -> Mapping[str, Source]:
    """Returns the sources that a model is measured on, by split: not `train` if there are others.

    Their seed is 0, so that every model is asked for the same images, whatever the seed of its run.
    """
    config = dataclasses.replace(config, seed=0)
    train = make_source(config)
    first, *others = train.splits
    return {split: make_source(config, split) for split in others} or {first: train}


def choose_examples(source: Source, split: str, n: int, seed: int) -> list[Example]:
    """Returns n examples: the first of a procedural source, random ones of any other.

    In the storybook's `heldout`, only captions that name the held-out combination count.
    """
    rng = np.random.default_rng(seed)
    if source.truth and split == "heldout":
        examples = (source.example(i, rng) for i in itertools.count())
        return list(itertools.islice((e for e in examples if names_triples(*e.truth)), n))
    return [source.example(i, rng) for i in choose_indices(source, n, rng)]


def choose_indices(source: Source, n: int, rng: np.random.Generator) -> list[int]:
    """Returns the indices of n examples: the first of a procedural source, random ones of any other."""
    order = rng.permutation(len(source)) if len(source) < MAX_SHUFFLED else range(n)
    return [int(i) for i in order[:n]]


def draw(model: Model, captions: Sequence[str], n: int, seed: int, label: str) -> np.ndarray:
    """Returns uint8[captions * n, S, S, 3]; equal captions get equal images. A progress bar shows `label`."""
    hidden = not sys.stderr.isatty()
    bar = tqdm(total=len(captions) * n, unit="img", desc=label, leave=False, disable=hidden)
    pieces = []
    with warnings.catch_warnings(record=True) as cut:  # one line in all for the captions that are too long
        warnings.simplefilter("always")
        for piece in model.stream(captions, n, seed):
            pieces.append(piece)
            bar.update(len(piece))
    bar.close()
    if cut:
        count = f"{len(cut)} of {len(captions)} captions were cut"
        warnings.warn(f"{label}: {count}, the first with: {cut[0].message}", stacklevel=2)
    return np.concatenate(pieces)


def draw_one_each(model: Model, captions: Sequence[str], seed: int, label: str) -> np.ndarray:
    """Returns uint8[captions, S, S, 3]; equal captions get different images.

    The k-th time that a caption comes, its image is of the k-th seed from `seed` on. Captions are equal if
    the model reads the same tokens.
    """
    times: collections.Counter[bytes] = collections.Counter()
    repeats = []  # how often each caption came before
    for tokens in model.tokenizer.encode(captions, quiet=True):
        repeats.append(times[tokens.tobytes()])
        times[tokens.tobytes()] += 1
    order, images = [], []
    for repeat in range(max(repeats) + 1):
        rows = [i for i, r in enumerate(repeats) if r == repeat]
        order += rows
        images.append(draw(model, [captions[i] for i in rows], 1, seed + repeat, label))
    return np.concatenate(images)[np.argsort(order)]
