"""`dallegan evaluate`: measures a model."""

import dataclasses
import json
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from dallegan.config import Config
from dallegan.errors import UserError
from dallegan.evaluation.features import Features, make_features
from dallegan.evaluation.judge import SIZES_READ, VALUES
from dallegan.evaluation.measure import Report, evaluate
from dallegan.evaluation.networks import installed
from dallegan.io.cli import parse
from dallegan.io.files import check_writable, write_atomic, writing
from dallegan.io.image import grid, save_png
from dallegan.run.curves import plot
from dallegan.run.machine import about, restart_with_huge_pages
from dallegan.sampling import DEFAULT, load


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


def main(argv: Sequence[str]) -> None:
    """Parses the command line, measures or plots, prints and writes."""
    restart_with_huge_pages()
    args = parse(Args, "dallegan evaluate", args=argv)
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
            write_atomic(args.json, json.dumps(about() | what | {"features": features.about if features else "none"} | report, indent=2))
    if args.grid:
        with writing(args.grid):
            save_png(best_and_worst(shown), args.grid, {"model": args.model})
