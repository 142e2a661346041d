"""Does each metric move the right way? Real storybook pictures against real ones, as they are and spoiled in known ways.

python benchmarks/metric_sanity.py [--n N] [--size 32|64] > benchmarks/results/metric_sanity_SIZE.json
"""

import dataclasses
import itertools
import json
import sys
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from dallegan.data.storybook.grammar import OBJECTS
from dallegan.data.storybook.scenes import Storybook
from dallegan.evaluation import metrics
from dallegan.evaluation.features import make_features
from dallegan.evaluation.judge import load_judge
from dallegan.evaluation.measure import WITHIN, Judged, distances, render_again, said_by
from dallegan.io.cli import parse, run
from dallegan.run.machine import about, restart_with_huge_pages


@dataclasses.dataclass(frozen=True)
class Args:
    """Check the metrics on real pictures."""

    n: int = 2000
    size: Literal[32, 64] = 64


def main() -> None:
    """Measures and prints JSON."""
    args = parse(Args, "metric_sanity.py")
    extract, judge = make_features().extract, load_judge()
    source = Storybook(args.size, "test", 0, 2)
    examples = [source.example(i) for i in range(2 * args.n)]
    real, drawn = (np.stack([e.image for e in part]) for part in (examples[: args.n], examples[args.n :]))
    said = said_by(examples[args.n :])
    rng = np.random.default_rng(0)
    is_one = lambda i: all(OBJECTS.index(t.kind) % 4 == 0 for t in source.scene(i)[0].things)
    few = [source.example(i) for i in itertools.islice(filter(is_one, itertools.count(2 * args.n)), args.n)]
    blur = lambda images, radius: np.stack([np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(radius))) for x in images])
    noise = lambda images, deviation: np.clip(images + rng.normal(0, deviation, images.shape), 0, 255).round().astype(np.uint8)
    order = np.roll(np.arange(args.n), 1)
    again = render_again(source, examples[: WITHIN[0]], WITHIN[1])
    spoil = {
        "as they are": lambda x: x,
        "blurred, radius 1/64 of the side": lambda x: blur(x, args.size / 64),
        "blurred, radius 2/64 of the side": lambda x: blur(x, args.size / 32),
        "noise of deviation 10": lambda x: noise(x, 10),
        "noise of deviation 40": lambda x: noise(x, 40),
    }
    cases = {name: (spoilt(drawn), said, spoilt(again)) for name, spoilt in spoil.items()} | {
        "4 of the 16 kinds": (np.stack([e.image for e in few]), said_by(few), None),
        "captions shuffled": (drawn, said_by([examples[args.n + i] for i in order]), again.reshape(*WITHIN, *again.shape[1:]).swapaxes(0, 1)),
        "every 4th picture, four times": (
            np.repeat(drawn[::4], 4, 0),
            said_by([examples[args.n + i // 4 * 4] for i in range(args.n)]),
            np.repeat(again[::4], 4, 0),
        ),
    }
    features = extract(real)
    rows = {}
    for name, (images, captions, grouped) in cases.items():
        judged = Judged(judge, images)
        found = distances(features, extract(images)) | {"r_precision": judged.r_precision(captions)}
        found |= {k: v for k, v in judged.obedience(captions).items() if k in ("alignment", "binding")}
        if grouped is not None:
            found["diversity"] = float(metrics.diversity(extract(grouped.reshape(again.shape)).reshape(*WITHIN, -1)))
        rows[name] = {k: v if v is None else round(v, 6) for k, v in found.items()}
        print(name, rows[name], file=sys.stderr)
    print(json.dumps(about() | {"n": args.n, "size": args.size, "rows": rows}, indent=1))


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(run(main))
