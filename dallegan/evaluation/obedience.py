"""Whether images obey their captions, as the judge reads them (storybook only)."""

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dallegan.compile import jit_sample
from dallegan.data.source import Example, Source
from dallegan.data.storybook.grammar import ANIMALS, COLOURS, EN_PLACE, OBJECTS, PLACES, Caption, Scene, Thing
from dallegan.evaluation import judge, metrics
from dallegan.evaluation.drawing import draw
from dallegan.evaluation.features import map_chunks
from dallegan.evaluation.judge import READABLE_SIZES, Facts
from dallegan.sampling import Model

CANDIDATES = 100  # captions that R-precision chooses from
TRIES = 8  # images of a combination, before it counts as one that the model cannot draw
Report = dict[str, Any]


def is_readable(source: Source, size: int) -> bool:
    """Returns whether the judge can read a source's images of `size` pixels and check their captions."""
    return source.truth and size in READABLE_SIZES


def caption_facts(examples: Iterable[Example]) -> Facts:
    """Returns what the captions of storybook examples name."""
    scenes, captions = zip(*(example.truth for example in examples), strict=True)
    return judge.encode_facts(scenes, captions)


def read_images(params: judge.Params, images: np.ndarray) -> Facts:
    """Returns what the judge reads in images uint8[N, S, S, 3], as log-probabilities."""
    return map_chunks(functools.partial(jit_sample(judge.classify), params), images, "judge")


def correct_attributes(read: Facts, named: Facts) -> dict[str, np.ndarray]:
    """`judge.correct_attributes` as numpy arrays."""
    return {name: np.asarray(x) for name, x in judge.correct_attributes(read, named).items()}


def obedience(read: Facts, named: Facts) -> Report:
    """Returns fractions of images that obey their captions.

    `alignment` counts images with everything that their captions name; `kind`, `colour` and so on count one
    attribute, of the captions that name it. `binding` counts images with each colour on its own object, of
    the captions that name two colours.
    """
    correct = correct_attributes(read, named)
    colours, count = np.asarray(named.things["colour"]), np.asarray(named.count)
    two_colours = np.stack([count == 1, colours.min(1) >= 0, colours[:, 0] != colours[:, 1]]).all(0)
    is_named = {name: (np.asarray(index) >= 0).any(1) for name, index in named.things.items()}
    is_named |= {"place": named.place >= 0, "side": count == 1}
    report = {"alignment": fraction(correct["all"])}
    report |= {name: fraction(correct[name][rows]) for name, rows in is_named.items()}
    bound = correct["colour"] & correct["kind"]
    return report | {"count": fraction(correct["count"]), "binding": fraction(bound[two_colours])}


def fraction(correct: np.ndarray) -> float | None:
    """Returns the fraction of True in bool[N]; None if N is 0."""
    return float(np.mean(correct)) if len(correct) else None


def r_precision(read: Facts, named: Facts, seed: int = 0) -> float:
    """Returns the fraction of images whose own caption is likelier than those of 99 other images."""
    n = len(named.count)
    own = np.arange(n)[:, None]
    offsets = np.random.default_rng(seed).integers(1, n, (n, min(CANDIDATES, n) - 1))
    candidates = np.concatenate([own, (offsets + own) % n], 1)

    def likelihood(column: jax.Array) -> jax.Array:
        return judge.log_likelihood(read, jax.tree.map(lambda x: jnp.asarray(x)[column], named))

    return float(metrics.r_precision(jax.vmap(likelihood, 1, 1)(jnp.asarray(candidates))))


def combinations(model: Model, params: judge.Params, seed: int) -> Report:
    """Counts the combinations of object, colour and place that the model draws right.

    A tenth of the 1,280 combinations never occurs in training. `right` counts those that are right in their
    first image, `right_in_tries` those that are right in one of their first `TRIES` images.
    """
    pairs = list(itertools.starmap(_combination, itertools.product(OBJECTS, COLOURS, PLACES)))
    failed = _failed(model, params, pairs, 1, seed)
    always_failed = _failed(model, params, failed, TRIES, seed) if failed else []
    n = len(pairs)
    return {"right": n - len(failed), "right_in_tries": n - len(always_failed), "tries": TRIES, "of": n}


def _combination(kind: str, colour: str, place: str) -> tuple[Scene, Caption]:
    """A scene of one object, and a caption that names the object, its colour and the place."""
    thing = Thing(kind, colour, "big", "standing" if kind in ANIMALS else None)
    text = f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {kind} {EN_PLACE[place]}"
    return Scene(place, (thing,)), Caption(text, "en", frozenset({"0.kind", "0.colour", "place"}))


def _failed(
    model: Model, params: judge.Params, pairs: list[tuple[Scene, Caption]], tries: int, seed: int
) -> list[tuple[Scene, Caption]]:
    """The pairs whose caption is right in none of `tries` images."""
    images = draw(model, [caption.text for _, caption in pairs], tries, seed, "combinations")
    repeated = [pair for pair in pairs for _ in range(tries)]
    named = judge.encode_facts(*zip(*repeated, strict=True))
    correct = correct_attributes(read_images(params, images), named)["all"].reshape(-1, tries)
    return [pair for pair, tried in zip(pairs, correct, strict=True) if not tried.any()]
