"""What doubling the pictures of a model gave: distances at the larger size, and, shrunk to half, at the smaller, beside other ways to enlarge.

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
    """uint8[N, side, side, 3]."""
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side), way)) for image in images])


def main() -> None:
    """Draws, measures and prints JSON."""
    args, features = parse(Args, "grown.py"), make_features()
    large, small = dallegan.load(args.model), dallegan.load(args.origin)
    side, half = large.config.data.size, small.config.data.size
    pictures = lambda size, start: [Storybook(size, "test").example(i) for i in range(start, start + args.n)]
    examples = pictures(side, 0)
    captions, real = [e.caption for e in examples], np.stack([e.image for e in examples])
    others, halves = (np.stack([e.image for e in pictures(size, start)]) for size, start in ((side, args.n), (half, 0)))
    drawn, before = large.sample(captions), small.sample(captions)
    noisy = np.clip(np.round(real + np.random.default_rng(0).normal(0, NOISE, real.shape)), 0, 255).astype(np.uint8)
    rows = {
        f"other real pictures of {side} px": others,
        f"real pictures with noise of deviation {NOISE:g}": noisy,
        "real pictures, shrunk and enlarged": resized(resized(real, half, Way.BOX), side, Way.BILINEAR),
        args.model: drawn,
        f"{args.model}, shrunk and enlarged": resized(resized(drawn, half, Way.BOX), side, Way.BILINEAR),
        **{f"{args.origin}, enlarged ({way.name.lower()})": resized(before, side, way) for way in (Way.NEAREST, Way.BILINEAR, Way.LANCZOS)},
    }
    shrunk = {f"{args.model}, shrunk to {half} px": resized(drawn, half, Way.BOX), f"{args.origin}, at {half} px": before}
    found = {}
    for truth, made in ((real, rows), (halves, shrunk)):
        seen = features.of_real(truth)
        for name, images in made.items():
            measured = distances(seen, features.extract(images), features.frechet)
            found[name] = {k: float(measured[k]) for k in SHOWN}
            print(name, found[name], file=sys.stderr, flush=True)
    print(json.dumps(about() | {"n": args.n, "rows": found}, indent=1))


if __name__ == "__main__":
    sys.exit(run(main))
