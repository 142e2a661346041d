"""What doubling a model's images gave: distances at the larger size and, shrunk to half, at the smaller one.

Other ways to enlarge the smaller model's images stand beside it.

python benchmarks/grown.py > benchmarks/results/grown.json
"""

import dataclasses
import json
import sys

import numpy as np
from PIL import Image

import dallegan
from dallegan.data.storybook.scenes import Storybook
from dallegan.evaluation.features import make_features
from dallegan.evaluation.measure import distances
from dallegan.io.cli import parse, run
from dallegan.run.machine import about

SHOWN = ("kid", "precision", "recall", "coverage")
NOISE = 2.0  # deviation, of 255
Way = Image.Resampling


@dataclasses.dataclass(frozen=True)
class Args:
    """Compare a model with the one of half its size that it was grown from."""

    model: str = "storybook-64"
    origin: str = "storybook-32"
    n: int = 1000  # captions of `test`


def resized(images: np.ndarray, side: int, way: Way) -> np.ndarray:
    """Returns the images as uint8[N, side, side, 3]."""
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side), way)) for image in images])


def main() -> None:
    """Draws, measures and prints JSON."""
    args, features = parse(Args, "grown.py"), make_features()
    large, small = dallegan.load(args.model), dallegan.load(args.origin)
    side, half = large.config.data.size, small.config.data.size
    stack = lambda some: np.stack([example.image for example in some])
    examples_from = lambda start, size: [Storybook(size, "test").example(start + i) for i in range(args.n)]
    examples = examples_from(0, side)
    captions, real = [example.caption for example in examples], stack(examples)
    others, real_halves = stack(examples_from(args.n, side)), stack(examples_from(0, half))
    drawn, before = large.sample(captions), small.sample(captions)
    noise = np.random.default_rng(0).normal(0, NOISE, real.shape)
    noisy = np.clip(np.round(real + noise), 0, 255).astype(np.uint8)
    halved = resized(drawn, half, Way.BOX)
    full_size = {
        f"other real images of {side} px": others,
        f"real images with noise of deviation {NOISE:g}": noisy,
        "real images, shrunk and enlarged": resized(resized(real, half, Way.BOX), side, Way.BILINEAR),
        args.model: drawn,
        f"{args.model}, shrunk and enlarged": resized(halved, side, Way.BILINEAR),
    }
    for way in (Way.NEAREST, Way.BILINEAR, Way.LANCZOS):
        full_size[f"{args.origin}, enlarged ({way.name.lower()})"] = resized(before, side, way)
    half_size = {f"{args.model}, shrunk to {half} px": halved, f"{args.origin}, at {half} px": before}
    found = {}
    for truth, rows in ((real, full_size), (real_halves, half_size)):
        truth_features = features.extract_cached(truth)
        for name, images in rows.items():
            measured = distances(truth_features, features.extract(images), features.frechet)
            found[name] = {k: float(measured[k]) for k in SHOWN}
            print(name, found[name], file=sys.stderr, flush=True)
    print(json.dumps(about() | {"n": args.n, "rows": found}, indent=1))


if __name__ == "__main__":
    sys.exit(run(main))
