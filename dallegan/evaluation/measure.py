"""Measures a model: does it look real, is it diverse, does it obey the caption, how fast is it. `python -m dallegan.evaluate`.

Distances are between features of real and of drawn pictures (features.py), comparable for one network and one --n. Obedience is what
the judge reads (storybook only), between two calibrations: the same judge on real pictures, and on drawn pictures with each other's
captions.
"""

import hashlib
import random
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dallegan.config import Config
from dallegan.data.source import Example, Source
from dallegan.data.storybook import grammar
from dallegan.data.storybook.scenes import Storybook, redraw, render
from dallegan.errors import UserError
from dallegan.evaluation import metrics
from dallegan.evaluation.drawing import asked, choose, draw, draw_one_each
from dallegan.evaluation.features import Features
from dallegan.evaluation.judge import SIZES_READ, load_judge, log_likelihood
from dallegan.evaluation.obedience import Judged, combinations, said_by, share
from dallegan.sampling import Model

SUBSET = 1000  # of a KID estimate
CANDIDATES = 100  # captions that R-precision chooses from
WITHIN = (50, 8)  # captions, and pictures of each, for the diversity within a caption
COMBINATION, TRIES = frozenset({"0.kind", "0.colour", "place"}), 8  # what is named of one, and pictures of it at most
ENDLESS = 10**6  # pictures, from which on a source is not shuffled
MEMORIZABLE, BLOCK = 50_000, 4096  # most pictures of a source that copies are looked for in; those held at once
Report = dict[str, Any]






def distances(real: np.ndarray, fake: np.ndarray, frechet: str = "fd") -> Report:
    """KID and its deviation over subsets, the Fréchet distance under the name `frechet` (None of fewer pictures than features, where it
    means nothing), precision, recall, density and coverage of features f32[N, D]."""
    a, b, n = jnp.asarray(real), jnp.asarray(fake), min(len(real), len(fake))
    kid = metrics.kernel_distance(jax.random.key(0), a, b, size=min(SUBSET, n // 2))  # of all rows each subset would be the same
    precision, recall = metrics.precision_recall(a, b)
    density, coverage = metrics.density_coverage(a, b)
    report = {"kid": jnp.mean(kid), "kid_deviation": jnp.std(kid), frechet: metrics.frechet_distance(a, b) if n > a.shape[1] else None}
    report |= {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
    return {name: None if value is None else float(value) for name, value in report.items()}












def evaluate(model: Model, config: Config, n: int, seed: int = 0, features: Features | None = None) -> tuple[Report, dict[str, Any]]:
    """The numbers, by split, and the pictures they are of: {"examples", "images", "score"} of the test split.

    config: the model's, its `data` what to draw. features: without them there are no distances. UserError where n is too small.
    """
    if n < 50:
        raise UserError(f"--n {n}: distances of fewer than 50 pictures mean nothing; take at least 50")
    if not 0 <= seed < 2**31:
        raise UserError(f"--seed {seed}: take a number from 0 to 2^31 - 1")
    storybook = config.data.source == "storybook"
    splits = ("test", "heldout") if config.data.source in ("storybook", "emoji") else ("train",)
    judge = load_judge() if storybook and config.data.size in SIZES_READ else None
    report: Report = {}
    shown: dict[str, Any] = {}
    for split in splits:
        source = asked(config, split)
        examples = choose(source, n, seed)
        if len(examples) < 50:
            raise UserError(f"{config.data.source} has {len(examples)} pictures: too few to measure")
        if features is not None and features.frechet == "fid" and len(examples) <= features.size:
            raise UserError(f"--n {n}: FID needs more than {features.size} pictures; papers take 10000 to 50000")
        real, captions = np.stack([e.image for e in examples]), [e.caption for e in examples]
        model.sample(captions[:1])  # compiles
        start = time.perf_counter()
        fake = draw_one_each(model, captions, seed, split)
        part: Report = {"n": len(fake), "images_per_second": len(fake) / (time.perf_counter() - start)}
        score = np.zeros(len(fake))
        if judge is not None:
            said, judged = said_by(examples), Judged(judge, fake)
            part |= judged.obedience(said) | {"r_precision": judged.r_precision(said)}
            right = judged.right(said)["all"]
            groups = [(e.truth[1].language, ("one", "two")[len(e.truth[0].things) - 1]) for e in examples]
            for name in (*grammar.LANGUAGES, *(("one", "two") if config.data.objects > 1 else ())):
                part[f"alignment_{name}"] = share(right, np.array([name in group for group in groups]))
            part["on_real"] = Judged(judge, real).obedience(said)
            part["on_shuffled"] = judged.obedience(jax.tree.map(lambda x: np.roll(x, 1, 0), said))
            score = np.asarray(log_likelihood(judged.seen, said)) - 1e3 * ~right
        elif not shown:
            score = model.score(fake, model.tokenizer.encode(captions, quiet=True))
        if features is not None:
            seen, drawn = features.of_real(real), features.extract(fake)
            part |= distances(seen, drawn, features.frechet) | clip_scores(features, seen, drawn, captions)
            if split == "train" and config.data.source == model.config.data.source and len(source) <= MEMORIZABLE:
                part["memorized"] = memorized(source, drawn, features, config.data.flip)
        report[split] = part
        if not shown:
            shown = {"examples": examples, "images": fake, "score": score}
            report |= within_captions(model, source, examples, seed, features)
    if judge is not None:
        report["combinations"] = combinations(model, judge, seed)
    return report, shown






def memorized(source: Source, drawn: np.ndarray, features: Features, flip: bool) -> float:
    """`metrics.memorized` of drawn features among all different pictures of a folder, mirrored ones too where training mirrors."""
    rng, digests, known, ways = np.random.default_rng(0), set[bytes](), [], (1, -1) if flip else (1,)
    for start in range(0, len(source), BLOCK):
        different = []
        for image in (source.example(i, rng).image for i in range(start, min(start + BLOCK, len(source)))):
            seen = {hashlib.sha256(image[:, ::way].tobytes()).digest() for way in ways}
            if not seen & digests:
                different.append(image)
            digests |= seen
        if different:
            known.append([features.of_real(np.stack(different)[:, :, ::way]) for way in ways])
    as_is, *mirrored = (jnp.asarray(np.concatenate(rows)) for rows in zip(*known, strict=True))
    return float(metrics.memorized(as_is, jnp.asarray(drawn), *mirrored))


def clip_scores(features: Features, real: np.ndarray, drawn: np.ndarray, captions: Sequence[str]) -> Report:
    """CLIPScore of English captions, that network reads no other; of real pictures, and of others' captions."""
    rows = [i for i, caption in enumerate(captions) if caption.isascii()]
    if features.read is None or len(rows) < 2:
        return {}
    text, a, b = (jnp.asarray(x) for x in (features.read([captions[i] for i in rows]), real[rows], drawn[rows]))
    pairs = {"clip_score": (b, text), "clip_score_on_real": (a, text), "clip_score_on_shuffled": (b, jnp.roll(text, 1, 0))}
    return {name: float(metrics.clip_score(*pair)) for name, pair in pairs.items()}


def within_captions(model: Model, source: Source, examples: list[Example], seed: int, features: Features | None) -> Report:
    """`diversity`: mean distance of two pictures of one caption, and of real ones that it is true of where the source can draw them."""
    if features is None:
        return {}
    few, n = examples[: WITHIN[0]], WITHIN[1]
    diversity = lambda seen: float(metrics.diversity(jnp.asarray(seen).reshape(len(few), n, -1)))
    report = {"diversity": diversity(features.extract(draw(model, [e.caption for e in few], n, seed, "diversity")))}
    if isinstance(source, Storybook):
        report["diversity_of_real"] = diversity(features.of_real(render_again(source, few, n)))
    return report


def render_again(source: Storybook, examples: Sequence[Example], n: int) -> np.ndarray:
    """uint8[examples * n, S, S, 3]: n real pictures that each caption is true of."""
    pictures = []
    for i, example in enumerate(examples):
        scene, said = example.truth
        pictures += [render(redraw(scene, said, source.split, random.Random(seed)), source.size, seed) for seed in range(1000 * i, 1000 * i + n)]
    return np.stack(pictures)
