"""Measures a model: do its images look real, are they diverse, do they obey their captions, how fast is it?

Distances are between features of real and of drawn images (`features.py`); they compare for one feature
network and one number of images. Obedience is what the judge reads (storybook only). Beside it stand two
calibrations: the judge on real images, and on drawn images with each other's captions.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dallegan.config import DataConfig
from dallegan.data.pairs import Alike
from dallegan.data.source import Example, Source
from dallegan.data.storybook import grammar
from dallegan.errors import UserError
from dallegan.evaluation import metrics
from dallegan.evaluation.drawing import choose_examples, choose_indices, draw, draw_one_each
from dallegan.evaluation.features import FeatureNetwork
from dallegan.evaluation.judge import Params, load_judge, log_likelihood
from dallegan.evaluation.obedience import (
    caption_facts,
    combinations,
    correct_attributes,
    fraction,
    is_readable,
    obedience,
    r_precision,
    read_images,
)
from dallegan.sampling import Model

LEAST = 50  # images that distances mean anything of
SUBSET = 1000  # images of each estimate of KID
WITHIN = (50, 8)  # captions, and images of each, that the diversity within a caption is measured on
MEMORIZABLE = 50_000  # images of the largest training set that copies are looked for in
BLOCK = 4096  # training images held at once
Report = dict[str, Any]


class Drawn(NamedTuple):
    """The drawn images of a split."""

    examples: list[Example]  # the real images, with the captions that were asked for
    images: np.ndarray  # uint8[N, S, S, 3]
    score: np.ndarray  # f32[N], how well each image fits its caption, for the judge or else the discriminator


def evaluate(
    model: Model,
    data: DataConfig,
    sources: Mapping[str, Source],
    n: int,
    seed: int = 0,
    features: FeatureNetwork | None = None,
) -> tuple[Report, Drawn]:
    """Measures a model on n captions of each split.

    Args:
        data: what `sources` were made from.
        sources: by split, from `measured_sources`.
        seed: seed of the drawn images, and of the choice among a folder's.
        features: without a feature network no distances are measured.

    Returns:
        The numbers, by split, and the drawn images of the first split.

    Raises:
        UserError: if n or the source is too small.
    """
    if n < LEAST:
        raise UserError(
            f"--n {n}: distances of fewer than {LEAST} images mean nothing; take at least {LEAST}"
        )
    if not 0 <= seed < 2**31:
        raise UserError(f"--seed {seed}: take a number from 0 to 2^31 - 1")
    judge = load_judge() if all(is_readable(source, data.size) for source in sources.values()) else None
    report: Report = {}
    first: Drawn | None = None
    for split, source in sources.items():
        examples = choose_examples(source, split, n, seed)
        if len(examples) < LEAST:
            raise UserError(
                f"{data.source} has {len(examples)} images: too few to measure, take at least {LEAST}"
            )
        if features is not None and features.frechet == "fid" and len(examples) <= features.size:
            least = f"FID needs more than {features.size} images; papers take 10000 to 50000"
            raise UserError(f"--n {n}: {least}")
        captions = [example.caption for example in examples]
        images, images_per_second = _draw_timed(model, captions, seed, split)
        found: Report = {"n": len(images), "images_per_second": images_per_second}
        score = None
        if judge is not None:
            obeyed, score = _measure_obedience(judge, examples, images)
            found |= obeyed
        if features is not None:
            real, fake = features.extract_cached(_stack(examples)), features.extract(images)
            found |= distances(real, fake, features.frechet) | clip_scores(features, real, fake, captions)
            if split == "train" and data.source == model.config.data.source and len(source) <= MEMORIZABLE:
                found["memorized"] = memorized(source, fake, features, data.flip)
        report[split] = found
        if first is None:
            if score is None:
                score = model.score(images, model.tokenizer.encode(captions, quiet=True))
            first = Drawn(examples, images, score)
            if features is not None:
                report |= diversity(model, source, seed, features)
    if judge is not None:
        report["combinations"] = combinations(model, judge, seed)
    assert first is not None
    return report, first


def _stack(examples: Sequence[Example]) -> np.ndarray:
    """The images of examples, uint8[N, S, S, 3]."""
    return np.stack([example.image for example in examples])


def _draw_timed(model: Model, captions: Sequence[str], seed: int, split: str) -> tuple[np.ndarray, float]:
    """An image of each caption, and images per second without compilation."""
    model.sample(captions[:1])  # compiles
    start = time.perf_counter()
    images = draw_one_each(model, captions, seed, split)
    return images, len(images) / (time.perf_counter() - start)


def _measure_obedience(
    judge: Params, examples: list[Example], images: np.ndarray
) -> tuple[Report, np.ndarray]:
    """What the judge says of drawn images, and a score f32[N] that puts images with any error last."""
    named, read = caption_facts(examples), read_images(judge, images)
    correct = correct_attributes(read, named)["all"]
    report = obedience(read, named) | {"r_precision": r_precision(read, named)}
    language = np.array([caption.language for _, caption in (example.truth for example in examples)])
    for name in grammar.LANGUAGES:
        report[f"alignment_{name}"] = fraction(correct[language == name])
    if np.any(named.count == 1):
        report |= {
            f"alignment_{name}": fraction(correct[named.count == k]) for k, name in enumerate(("one", "two"))
        }
    report["on_real"] = obedience(read_images(judge, _stack(examples)), named)
    report["on_shuffled"] = obedience(read, jax.tree.map(lambda x: np.roll(x, 1, 0), named))
    return report, np.asarray(log_likelihood(read, named)) - 1e3 * ~correct


def distances(real: np.ndarray, fake: np.ndarray, frechet: str = "fd") -> Report:
    """Measures how far apart the features f32[N, D] of real and of drawn images are.

    Returns KID and its deviation over subsets, the Fréchet distance under the name `frechet`, precision,
    recall, density and coverage. With fewer images than features the Fréchet distance means nothing: it is
    None.
    """
    a, b, n = jnp.asarray(real), jnp.asarray(fake), min(len(real), len(fake))
    size = min(SUBSET, n // 2)  # subsets of all images would all be the same
    kid = metrics.kernel_distance(jax.random.key(0), a, b, size=size)
    precision, recall = metrics.precision_recall(a, b)
    density, coverage = metrics.density_coverage(a, b)
    report = {"kid": jnp.mean(kid), "kid_deviation": jnp.std(kid)}
    report |= {frechet: metrics.frechet_distance(a, b) if n > a.shape[1] else None}
    report |= {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
    return {name: None if value is None else float(value) for name, value in report.items()}


def clip_scores(
    features: FeatureNetwork, real: np.ndarray, fake: np.ndarray, captions: Sequence[str]
) -> Report:
    """Returns the CLIPScore of drawn images, of real ones, and of drawn ones with each other's captions.

    Only English captions count, since the network reads no other language. The report is empty if the network
    reads no captions, or if fewer than two are English.
    """
    rows = [i for i, caption in enumerate(captions) if caption.isascii()]
    if features.embed_captions is None or len(rows) < 2:
        return {}
    text = jnp.asarray(features.embed_captions([captions[i] for i in rows]))
    drawn, truth, others = jnp.asarray(fake[rows]), jnp.asarray(real[rows]), jnp.roll(text, 1, 0)
    return {
        "clip_score": float(metrics.clip_score(drawn, text)),
        "clip_score_on_real": float(metrics.clip_score(truth, text)),
        "clip_score_on_shuffled": float(metrics.clip_score(drawn, others)),
    }


def memorized(source: Source, fake: np.ndarray, features: FeatureNetwork, flip: bool) -> float:
    """Returns the fraction of drawn images that copy an image of the training set (`metrics.memorized`).

    Args:
        fake: features f32[N, D] of the drawn images.
        flip: whether training mirrors images; then copies of mirror images count too.
    """
    rng, digests, directions = np.random.default_rng(0), set[bytes](), (1, -1) if flip else (1,)
    blocks: list[list[np.ndarray]] = []  # features of the different images, as they are and mirrored
    for start in range(0, len(source), BLOCK):
        different = []
        for i in range(start, min(start + BLOCK, len(source))):
            image = source.example(i, rng).image
            found = {hashlib.sha256(image[:, ::direction].tobytes()).digest() for direction in directions}
            if not found & digests:
                different.append(image)
            digests |= found
        if different:
            stacked = np.stack(different)
            blocks.append([features.extract_cached(stacked[:, :, ::direction]) for direction in directions])
    as_is, *mirrored = (jnp.asarray(np.concatenate(rows)) for rows in zip(*blocks, strict=True))
    return float(metrics.memorized(as_is, jnp.asarray(fake), *mirrored))


def diversity(model: Model, source: Source, seed: int, features: FeatureNetwork) -> Report:
    """Returns how far two images of a caption are apart, drawn ones, real ones, and their ratio.

    Files that have no two images of a caption are measured on those of the nearest captions (`Alike`).
    """
    rng, alike = np.random.default_rng(seed), Alike(source)
    indices, n = choose_indices(source, WITHIN[0], rng), WITHIN[1]
    mean = lambda x: float(metrics.diversity(jnp.asarray(x).reshape(len(indices), n, -1)))
    drawn = mean(features.extract(draw(model, [source.caption(i) for i in indices], n, seed, "diversity")))
    images = [example.image for i in indices for example in alike.several(i, n, rng)]
    real = mean(features.extract_cached(np.stack(images)))
    return {"diversity": drawn, "diversity_of_real": real, "diversity_ratio": drawn / real if real else None}
