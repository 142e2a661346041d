"""`dallegan evaluate`: measures a model."""

import dataclasses
import json
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from dallegan.errors import UserError
from dallegan.evaluation.drawing import measured_sources
from dallegan.evaluation.features import FeatureNetwork, make_features
from dallegan.evaluation.judge import VALUES
from dallegan.evaluation.measure import Drawn, Report, evaluate
from dallegan.evaluation.networks import is_installed
from dallegan.evaluation.obedience import is_readable
from dallegan.io.cli import parse
from dallegan.io.files import check_writable, write_atomic, writing
from dallegan.io.image import grid, save_png
from dallegan.run.machine import about
from dallegan.sampling import DEFAULT, load


@dataclasses.dataclass(frozen=True)
class Data:
    """The real images, and the captions to draw."""

    source: str | None = None  # default: what the model was trained on
    size: int | None = None  # px; default, and only choice: the model's
    objects: int | None = None  # most objects in a storybook scene; default: as the model was trained


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure a model."""

    # a model that ships with the package, a run directory (RUN@best, RUN@STEP), a folder that `Model.save`
    # wrote, gs://... or hf://org/name
    model: str = DEFAULT

    data: Data = dataclasses.field(default_factory=Data)
    n: int = 2000  # captions of each split
    seed: int = 0  # of the drawn images
    # network that distances are measured in; clip also gives the CLIPScore; auto: efficientnet-lite0, or none
    # if its extra is missing and the judge can read the images
    features: Literal["auto", "efficientnet-lite0", "inception", "clip", "none"] = "auto"
    weights: pathlib.Path | None = None  # the network's weights; default: its package's, or the usual cache
    json: pathlib.Path | None = None  # file to write the numbers to, as JSON
    grid: pathlib.Path | None = None  # file to write the best and the worst images to, as PNG


LABELS = {
    "n": "images",
    "kid": "KID x 1000",
    "kid_deviation": "  deviation of a subset",
    "fd": "FD",
    "fid": "FID",
    "clip_score": "CLIPScore",
    "clip_score_on_real": "  of real images",
    "clip_score_on_shuffled": "  of others' captions",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "memorized": "memorized",
    "alignment": "alignment",
    "on_real": "  of real images",
    "on_shuffled": "  of others' captions",
    "alignment_en": "  of English captions",
    "alignment_zh": "  of Chinese captions",
    "alignment_one": "  of one object",
    "alignment_two": "  of two objects",
    **{name: f"  {name}" for name in (*VALUES, "place", "count", "side")},
    "binding": "  binding",
    "r_precision": "R-precision",
    "images_per_second": "images/s",
}


def table(report: Report) -> str:
    """Returns a report as lines of text, with a column for each split."""
    splits = [key for key in report if key in ("test", "heldout", "train")]

    def show(numbers: Report, key: str) -> str:
        value = numbers.get(key)
        value = value["alignment"] if isinstance(value, dict) else value
        if value is None:
            return "-"
        value *= 1000 if key.startswith("kid") else 1
        return (
            str(value) if isinstance(value, int) else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
        )

    lines = [f"{'':24}" + "".join(f"{split:>10}" for split in splits)]
    for key, label in LABELS.items():
        shown = [show(report[split], key) for split in splits]
        if any(text != "-" for text in shown):
            lines.append(f"{label:24}" + "".join(f"{text:>10}" for text in shown))
    if "diversity" in report:
        real = f"   {show(report, 'diversity_ratio')} of real images' {show(report, 'diversity_of_real')}"
        lines.append(f"{'diversity in a caption':24}{show(report, 'diversity'):>10}{real}")
    if found := report.get("combinations"):
        tries = f"{found['right_in_tries']} in {found['tries']} tries"
        rest = f"of {found['of']} objects x colours x places, {tries}"
        lines.append(f"{'combinations right':24}{found['right']:>10}   {rest}")
    return "\n".join(lines)


def best_and_worst(drawn: Drawn, count: int = 8) -> Image.Image:
    """Returns a captioned grid of the images that fit their captions best, then of those that fit worst.

    The judge decides or, if it cannot read the images, the discriminator. A real image of the caption stands
    beside each.
    """
    chosen = np.argsort(-drawn.score)[np.r_[:count, -count:0]]
    examples = [drawn.examples[i] for i in chosen]
    rows = [[drawn.images[i], example.image] for i, example in zip(chosen, examples, strict=True)]
    return grid(rows, [example.caption for example in examples])


def choose_features(name: str, weights: pathlib.Path | None, judged: bool) -> FeatureNetwork | None:
    """Returns the network that `--features` names, or None if only obedience is measured.

    judged: whether the judge can read the images. Raises UserError if the network is missing, or if nothing
    would be measured without one.
    """
    if name == "auto":
        name = "efficientnet-lite0" if weights or is_installed() or not judged else "none"
        if name == "none":
            how = "pip install 'dallegan[eval]' for KID, recall, diversity and the others"
            warnings.warn(f"only obedience is measured: {how}", stacklevel=2)
    if name == "none" and not judged:
        reads = "the judge reads only storybook images of 32 and 64 px"
        raise UserError(f"--features none: nothing to measure, as {reads}")
    return None if name == "none" else make_features(name, weights)


def main(argv: Sequence[str]) -> None:
    """Measures a model, prints a table, and writes the files that the flags name."""
    args = parse(Args, "dallegan evaluate", args=argv)
    model = load(args.model)
    if args.data.size not in (None, model.config.data.size):
        size = model.config.data.size
        raise UserError(f"--data.size {args.data.size}: {args.model} draws {size} px; leave the flag out")
    for path in filter(None, (args.json, args.grid)):  # before minutes of work
        check_writable(path)
    changes = {name: value for name, value in vars(args.data).items() if value is not None}
    data = dataclasses.replace(model.config.data, **changes)
    sources = measured_sources(dataclasses.replace(model.config, data=data))
    judged = all(is_readable(source, data.size) for source in sources.values())
    features = choose_features(args.features, args.weights, judged)
    report, drawn = evaluate(model, data, sources, args.n, args.seed, features)
    print(table(report))
    if args.json:
        what: dict[str, Any] = {"model": args.model, "source": data.source, "size": data.size}
        what |= {
            "objects": data.objects,
            "seed": args.seed,
            "features": features.description if features else "none",
        }
        with writing(args.json):
            write_atomic(args.json, json.dumps(about() | what | report, indent=2))
    if args.grid:
        with writing(args.grid):
            save_png(best_and_worst(drawn), args.grid, {"model": args.model})
