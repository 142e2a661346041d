"""Which captions a model is asked, and the images that it draws of them."""

import collections
import dataclasses
import itertools
import sys
import warnings
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from dallegan.config import Config
from dallegan.data.pipeline import make_source
from dallegan.data.source import Example, Source
from dallegan.data.storybook.scenes import Storybook, names_triples
from dallegan.sampling import Model

ENDLESS = 10**6  # pictures, from which on a source is not shuffled


def asked(config: Config, split: str) -> Source:
    """What every model is asked: the same pictures and captions, whatever the seed of its run."""
    return make_source(dataclasses.replace(config, seed=0), split)


def choose(source: Source, n: int, seed: int) -> list[Example]:
    """n examples: of a folder at random, of `heldout` those whose captions name the combination that is kept apart."""
    rng = np.random.default_rng(seed)
    if isinstance(source, Storybook) and source.split == "heldout":
        return list(itertools.islice((e for e in map(source.example, itertools.count()) if names_triples(*e.truth)), n))
    order = rng.permutation(len(source)) if len(source) < ENDLESS else range(n)
    return [source.example(int(i), rng) for i in order[:n]]


def draw(model: Model, captions: Sequence[str], n: int, seed: int, what: str) -> np.ndarray:
    """uint8[captions * n, S, S, 3]; equal captions would get equal pictures."""
    bar = tqdm(total=len(captions) * n, unit="img", desc=what, leave=False, disable=not sys.stderr.isatty())
    pieces = []
    with warnings.catch_warnings(record=True) as cut:  # a line for each caption that is too long would be many
        warnings.simplefilter("always")
        for piece in model.stream(captions, n, seed):
            pieces.append(piece)
            bar.update(len(piece))
    bar.close()
    if cut:
        warnings.warn(f"{what}: {len(cut)} of {len(captions)} captions were cut, the first with: {cut[0].message}", stacklevel=2)
    return np.concatenate(pieces)


def draw_one_each(model: Model, captions: Sequence[str], seed: int, what: str) -> np.ndarray:
    """uint8[captions, S, S, 3]; a caption that is there again, as far as the model reads it, gets another picture, of the next seed."""
    before: collections.Counter[bytes] = collections.Counter()
    turns = []
    for tokens in model.tokenizer.encode(captions, quiet=True):
        turns.append(before[tokens.tobytes()])
        before[tokens.tobytes()] += 1
    order, pictures = [], []
    for turn in range(max(turns) + 1):
        rows = [i for i, t in enumerate(turns) if t == turn]
        order += rows
        pictures.append(draw(model, [captions[i] for i in rows], 1, seed + turn, what))
    return np.concatenate(pictures)[np.argsort(order)]
