"""Measures a model: does it look real, is it diverse, does it obey the caption, how fast is it. `python -m dallegan.evaluate`.

Distances are between features of real and of drawn pictures (features.py), comparable for one network and one --n. Obedience is what
the judge reads (storybook only), between two calibrations: the same judge on real pictures, and on drawn pictures with each other's
captions.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tqdm import tqdm

from dallegan import metrics
from dallegan.cli import parse, run
from dallegan.config import Config
from dallegan.curves import plot
from dallegan.data import grammar
from dallegan.data.pipeline import make_source
from dallegan.data.source import Example, Source
from dallegan.data.storybook import Storybook, names_triples, redraw, render
from dallegan.errors import UserError
from dallegan.features import Features, by_chunks, make_features
from dallegan.files import check_writable, write_whole, writing
from dallegan.image import grid, save_png
from dallegan.models.efficientnet import installed
from dallegan.models.judge import SIZES_READ, VALUES, Facts, facts, load_judge, log_likelihood, obeys, read
from dallegan.parallel import compiled
from dallegan.runtime import about, restart_with_huge_pages
from dallegan.sampling import DEFAULT, Model, load

SUBSET = 1000  # of a KID estimate
CANDIDATES = 100  # captions that R-precision chooses from
WITHIN = (50, 8)  # captions, and pictures of each, for the diversity within a caption
COMBINATION, TRIES = frozenset({"0.kind", "0.colour", "place"}), 8  # what is named of one, and pictures of it at most
ENDLESS = 10**6  # pictures, from which on a source is not shuffled
MEMORIZABLE, BLOCK = 50_000, 4096  # most pictures of a source that copies are looked for in; those held at once
Report = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Data:
    """What to draw."""

    source: str | None = None  # default: what the model was trained on
    size: int | None = None  # px; default, and only choice: the model's
    objects: int | None = None  # most objects in a storybook scene; default: as the model was trained


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure a model, or plot the curves of runs."""

    model: str = DEFAULT  # one that ships with the package, a run directory (RUN@best, RUN@STEP), a folder that `Model.save` wrote, gs://..., hf://org/name
    data: Data = dataclasses.field(default_factory=Data)
    n: int = 2000  # captions of each split
    seed: int = 0  # of the drawn pictures
    # network that distances are measured in: KID and FD; FID; CLIPScore; auto: the first, or none where its extra is missing and the judge alone can say much
    features: Literal["auto", "efficientnet-lite0", "inception", "clip", "none"] = "auto"
    weights: pathlib.Path | None = None  # file of that network's weights; default: the extra's own, or the usual cache
    json: pathlib.Path | None = None  # where to write the numbers as JSON
    grid: pathlib.Path | None = None  # where to write a PNG of the most and the least obedient pictures
    plot: tuple[str, ...] = ()  # run directories: draw their metrics.jsonl instead of measuring
    out: pathlib.Path = pathlib.Path("curves.png")  # of --plot


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


class Judged:
    """What the judge makes of pictures, and whether that is what captions say."""

    def __init__(self, judge: Any, images: np.ndarray) -> None:
        self.seen: Facts = by_chunks(functools.partial(compiled(read), judge), images, "judge")

    def right(self, said: Facts) -> dict[str, np.ndarray]:
        """`judge.obeys`, bool[N] for each attribute and "all"."""
        return {k: np.asarray(v) for k, v in obeys(self.seen, said).items()}

    def obedience(self, said: Facts) -> Report:
        """`alignment`: the share of pictures with all that their captions say; each attribute alone, where it is said; and `binding`:
        of captions with two colours, the share with each colour on its own object."""
        right = self.right(said)
        colours, count = np.asarray(said.things["colour"]), np.asarray(said.count)
        two = np.stack([count == 1, colours.min(1) >= 0, colours[:, 0] != colours[:, 1]]).all(0)
        asked = {k: (np.asarray(v) >= 0).any(1) for k, v in said.things.items()} | {"place": said.place >= 0, "side": count == 1}
        report = {"alignment": share(right["all"])} | {k: share(right[k], asked[k]) for k in asked} | {"count": share(right["count"])}
        return report | {"binding": share(right["colour"] & right["kind"], two)}

    def r_precision(self, said: Facts, seed: int = 0) -> float:
        """Of each picture, among its own caption and 99 others'."""
        n = len(said.count)
        others = np.random.default_rng(seed).integers(1, n, (n, min(CANDIDATES, n) - 1)) + np.arange(n)[:, None]
        candidates = np.concatenate([np.arange(n)[:, None], others % n], 1)
        each = jax.vmap(lambda column: log_likelihood(self.seen, jax.tree.map(lambda x: jnp.asarray(x)[column], said)), 1, 1)
        return float(metrics.r_precision(each(candidates)))


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


def share(right: Any, of: Any = None) -> float | None:
    """The mean over the rows asked of; None where there are none."""
    rows = right if of is None else right[of]
    return float(np.mean(rows)) if len(rows) else None


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


def said_by(examples: Iterable[Example]) -> Facts:
    """What the captions of storybook examples say."""
    scenes, captions = zip(*(e.truth for e in examples), strict=True)
    return facts(scenes, captions)


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


def combinations(model: Model, judge: Any, seed: int) -> Report:
    """Of all object x colour x place combinations (a tenth of them never seen in training), how many come out right, asked for once, and in one of `TRIES`."""

    def ask(kind: str, colour: str, place: str) -> tuple[grammar.Scene, grammar.Caption]:
        scene = grammar.Scene(place, (grammar.Thing(kind, colour, "big", "standing" if kind in grammar.ANIMALS else None),))
        return scene, grammar.Caption(f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {kind} {grammar.EN_PLACE[place]}", "en", COMBINATION)

    def missed(pairs: list[Any], tries: int) -> list[Any]:
        images = draw(model, [caption.text for _, caption in pairs], tries, seed, "combinations")
        right: Any = Judged(judge, images).right(facts(*zip(*[pair for pair in pairs for _ in range(tries)], strict=True)))["all"]
        return [pair for i, pair in enumerate(pairs) if not right[i * tries : (i + 1) * tries].any()]

    all_of_them = list(itertools.starmap(ask, itertools.product(grammar.OBJECTS, grammar.COLOURS, grammar.PLACES)))
    once, n = missed(all_of_them, 1), len(all_of_them)
    return {"right": n - len(once), "right_in_tries": n - len(missed(once, TRIES) if once else once), "tries": TRIES, "of": n}


def make_quick(config: Config, n: int = 256) -> Callable[[Model], Report] | None:
    """What training asks of its model now and then, for n captions of `test`: `alignment`, and that of kind, colour, size and place
    alone. None where the judge cannot read the pictures or `log.evaluate` is 0."""
    if config.data.source != "storybook" or config.data.size not in SIZES_READ or not config.log.evaluate:
        return None
    judge, source = load_judge(), asked(config, "test")
    rng = np.random.default_rng(0)
    examples = [source.example(i, rng) for i in range(n)]
    captions, said = [e.caption for e in examples], said_by(examples)

    def quick(model: Model) -> Report:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # captions too long for the model are cut in training too
            images = model.sample(captions)
        found = Judged(judge, images).obedience(said)
        return {"alignment": found["alignment"]} | {f"alignment_{name}": found[name] for name in ("kind", "colour", "size", "place")}

    return quick


ROWS = {
    "n": "pictures", "kid": "KID x 1000", "kid_deviation": "  deviation of a subset", "fd": "FD", "fid": "FID", "clip_score": "CLIPScore",
    "clip_score_on_real": "  of real pictures", "clip_score_on_shuffled": "  of others' captions",
    "precision": "precision", "recall": "recall", "density": "density", "coverage": "coverage", "memorized": "memorized",
    "alignment": "alignment", "on_real": "  of real pictures", "on_shuffled": "  of others' captions",
    "alignment_en": "  of English captions", "alignment_zh": "  of Chinese captions", "alignment_one": "  of one object", "alignment_two": "  of two objects",
    **{name: f"  {name}" for name in (*VALUES, "place", "count", "side")},
    "binding": "  binding", "r_precision": "R-precision", "images_per_second": "images/s",
}  # fmt: skip


def table(report: Report) -> str:
    """The report as lines of text."""
    splits = [k for k in report if k in ("test", "heldout", "train")]

    def show(part: Report, key: str) -> str:
        value = part.get(key)
        value = value["alignment"] if isinstance(value, dict) else value
        if value is None:
            return "-"
        value *= 1000 if key.startswith("kid") else 1
        return str(value) if isinstance(value, int) else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"

    lines = [f"{'':24}" + "".join(f"{s:>10}" for s in splits)]
    for key, label in ROWS.items():
        shown = [show(report[s], key) for s in splits]
        if any(text != "-" for text in shown):
            lines.append(f"{label:24}" + "".join(f"{text:>10}" for text in shown))
    if "diversity" in report:
        real = f"   of real pictures {show(report, 'diversity_of_real')}" if "diversity_of_real" in report else ""
        lines.append(f"{'diversity in a caption':24}{show(report, 'diversity'):>10}{real}")
    if c := report.get("combinations"):
        tries = f", {c['right_in_tries']} in {c['tries']} tries" if "tries" in c else ""  # not counted before 2026-11-29
        lines.append(f"{'combinations right':24}{c['right']:>10}   of {c['of']} objects x colours x places{tries}")
    return "\n".join(lines)


def best_and_worst(shown: dict[str, Any], count: int = 8) -> Image.Image:
    """A captioned grid: pictures that the judge (where it cannot read them, the discriminator) finds likeliest under their captions, then
    those it finds unlikeliest; beside each a real one."""
    chosen = [(shown["images"][i], shown["examples"][i]) for i in np.argsort(-shown["score"])[np.r_[:count, -count:0]]]
    return grid([[image, example.image] for image, example in chosen], [example.caption for _, example in chosen])


def choose_features(name: str, weights: pathlib.Path | None, config: Config) -> Features | None:
    """The network of --features. UserError where it is missing, or where without one there would be nothing to measure."""
    judged = config.data.source == "storybook" and config.data.size in SIZES_READ
    if name == "auto":
        name = "efficientnet-lite0" if weights or installed() or not judged else "none"
        if name == "none":
            warnings.warn("only obedience is measured: pip install 'dallegan[eval]' for KID, recall, diversity and the others", stacklevel=2)
    if name == "none" and not judged:
        raise UserError("--features none: nothing to measure, as the judge reads only storybook pictures of 32 and 64 px")
    return None if name == "none" else make_features(name, weights)


def main() -> None:
    """Parses the command line, measures or plots, prints and writes."""
    args = parse(Args, "python -m dallegan.evaluate")
    if args.plot and (args.json or args.grid):
        raise UserError("--plot draws curves of runs and measures nothing: leave --json and --grid out")
    if args.plot:
        plot(args.plot, args.out)
        print(args.out)
        return
    model = load(args.model)
    if args.data.size not in (None, model.config.data.size):
        raise UserError(f"--data.size {args.data.size}: {args.model} draws {model.config.data.size} px; leave the flag out")
    for path in filter(None, (args.json, args.grid)):  # before minutes of work
        check_writable(path)
    config = dataclasses.replace(model.config, data=dataclasses.replace(model.config.data, **{k: v for k, v in vars(args.data).items() if v is not None}))
    features = choose_features(args.features, args.weights, config)
    report, shown = evaluate(model, config, args.n, args.seed, features)
    print(table(report))
    if args.json:
        what = {"model": args.model, **{name: getattr(config.data, name) for name in ("source", "size", "objects")}, "seed": args.seed}
        with writing(args.json):
            write_whole(args.json, json.dumps(about() | what | {"features": features.about if features else "none"} | report, indent=2))
    if args.grid:
        with writing(args.grid):
            save_png(best_and_worst(shown), args.grid, {"model": args.model})


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(run(main))
