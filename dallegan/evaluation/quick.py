"""What a run measures of itself while it trains: diversity, and obedience if the judge reads its images."""

import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from dallegan.config import Config
from dallegan.data.pairs import Alike
from dallegan.data.source import Source, spread
from dallegan.evaluation import judge, metrics
from dallegan.evaluation.drawing import measured_sources
from dallegan.evaluation.obedience import caption_facts, is_readable, obedience, read_images
from dallegan.sampling import Model

REPORTED = ("kind", "colour", "size", "place")  # attributes that are logged beside the whole
WITHIN = (32, 8)  # captions, and images of each, that diversity is measured on
LEAST = 0.3  # diversity below which a run has collapsed
SIDE = 32  # most pixels of a side that distances are measured on
SEARCHED = 4096  # captions of files, among which the nearest are found
Report = dict[str, Any]
Quick = Callable[[Model], Report]


def make_quick(config: Config, source: Source, n: int = 256) -> Quick | None:
    """Returns the evaluation that a run repeats while it trains; None if `log.evaluate` is 0.

    The evaluation returns `diversity`, if real images of a caption differ, and warns once if it is below
    `LEAST`. If the judge can read the images, it also draws n captions of `test` and returns `alignment` and
    `alignment_NAME` of some attributes.

    Args:
        source: the run's own.
    """
    if not config.log.evaluate:
        return None
    if is_readable(source, config.data.size):
        test = measured_sources(config)["test"]
        parts = [alignment(test, n), diversity_within(test)]
    else:
        parts = [diversity_within(source)]
    warned = False

    def quick(model: Model) -> Report:
        nonlocal warned
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # captions too long for the model are cut in training too
            report = {name: value for part in parts for name, value in part(model).items()}
        if (diversity := report.get("diversity", 1.0)) < LEAST and not warned:
            warned = True
            hint = "--loss.packing and --loss.diversity are made for that (docs/faq.md)"
            text = f"diversity {diversity:.2f}: images of a caption are nearly alike; {hint}"
            warnings.warn(text, stacklevel=2)
        return report

    return quick


def alignment(test: Source, n: int) -> Quick:
    """Returns the function that draws n captions of the storybook and measures how many are obeyed."""
    params, rng = judge.load_judge(), np.random.default_rng(0)
    examples = [test.example(i, rng) for i in range(n)]
    captions, named = [example.caption for example in examples], caption_facts(examples)

    def measure(model: Model) -> Report:
        found = obedience(read_images(params, model.sample(captions)), named)
        return {"alignment": found["alignment"]} | {f"alignment_{name}": found[name] for name in REPORTED}

    return measure


def diversity_within(source: Source) -> Quick:
    """Returns the function that measures how much the images of a caption differ, as `diversity`.

    It is the mean distance of the pixels of two drawn images of a caption, over that of two real ones: 1 if
    drawn images differ as real ones do, 0 if all are alike. A source that cannot draw a caption twice (files)
    has, as real images of a caption, those with the same words or the nearest captions. The function returns
    nothing if these do not differ.
    """
    rng, alike = np.random.default_rng(0), Alike(source, SEARCHED)
    indices = spread(min(len(source), SEARCHED), WITHIN[0])
    captions = [source.caption(i) for i in indices]
    groups = [[example.image for example in alike.several(i, WITHIN[1], rng)] for i in indices]
    real = _distance(np.stack([np.stack(images) for images in groups]))

    def measure(model: Model) -> Report:
        if not real:
            return {}
        drawn = model.sample(captions, n=WITHIN[1])
        return {"diversity": _distance(drawn.reshape(len(captions), WITHIN[1], *drawn.shape[1:])) / real}

    return measure


def _distance(images: np.ndarray) -> float:
    """The mean distance of two images of a group of uint8[groups, n, H, W, 3], in pixels; 0 if n is 1."""
    step = max(1, images.shape[2] // SIDE)
    pixels = images[:, :, ::step, ::step].reshape(*images.shape[:2], -1).astype(np.float32)
    return float(metrics.diversity(jnp.asarray(pixels))) if images.shape[1] > 1 else 0.0
