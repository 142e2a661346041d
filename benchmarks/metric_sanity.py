"""Does each metric move the right way? Real storybook images against others, as they are and spoiled.

python benchmarks/metric_sanity.py [--n N] [--size 32|64] > benchmarks/results/metric_sanity_SIZE.json
"""

import dataclasses
import itertools
import json
import sys
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from dallegan.data.pairs import Alike
from dallegan.data.storybook.grammar import OBJECTS
from dallegan.data.storybook.scenes import Storybook
from dallegan.evaluation import metrics
from dallegan.evaluation.features import make_features
from dallegan.evaluation.judge import load_judge
from dallegan.evaluation.measure import WITHIN, distances
from dallegan.evaluation.obedience import caption_facts, obedience, r_precision, read_images
from dallegan.io.cli import parse, run
from dallegan.run.machine import about, restart_with_huge_pages


@dataclasses.dataclass(frozen=True)
class Args:
    """Check the metrics on real images."""

    n: int = 2000
    size: Literal[32, 64] = 64


def blur(images: np.ndarray, radius: float) -> np.ndarray:
    """Blurs images uint8[N, S, S, 3]; radius: px."""
    kernel = ImageFilter.GaussianBlur(radius)
    return np.stack([np.asarray(Image.fromarray(image).filter(kernel)) for image in images])


def main() -> None:
    """Measures and prints JSON."""
    args = parse(Args, "metric_sanity.py")
    extract, judge = make_features().extract, load_judge()
    source = Storybook(args.size, "test", 0, 2)
    examples = [source.example(i) for i in range(2 * args.n)]
    first, second = examples[: args.n], examples[args.n :]
    stack = lambda some: np.stack([example.image for example in some])
    real, others, named = stack(first), stack(second), caption_facts(second)
    rng = np.random.default_rng(0)

    def noise(images: np.ndarray, deviation: float) -> np.ndarray:
        return np.clip(images + rng.normal(0, deviation, images.shape), 0, 255).round().astype(np.uint8)

    has_few_kinds = lambda i: all(OBJECTS.index(t.kind) % 4 == 0 for t in source.scene(i)[0].things)
    rest = filter(has_few_kinds, itertools.count(2 * args.n))
    few = [source.example(i) for i in itertools.islice(rest, args.n)]
    alike = Alike(source)  # WITHIN[1] images of each of WITHIN[0] captions
    again = stack([e for i in range(WITHIN[0]) for e in alike.several(i, WITHIN[1], rng)])
    spoil = {
        "as they are": lambda x: x,
        "blurred, radius 1/64 of the side": lambda x: blur(x, args.size / 64),
        "blurred, radius 2/64 of the side": lambda x: blur(x, args.size / 32),
        "noise of deviation 10": lambda x: noise(x, 10),
        "noise of deviation 40": lambda x: noise(x, 40),
    }
    # images, what their captions name, and images to measure the diversity within a caption on
    cases = {name: (spoiled(others), named, spoiled(again)) for name, spoiled in spoil.items()}
    across_captions = again.reshape(*WITHIN, *again.shape[1:]).swapaxes(0, 1)
    cases |= {
        "4 of the 16 kinds": (stack(few), caption_facts(few), None),
        "captions shuffled": (others, caption_facts([second[-1], *second[:-1]]), across_captions),
        "every 4th image, four times": (
            np.repeat(others[::4], 4, 0),
            caption_facts([second[i // 4 * 4] for i in range(args.n)]),
            np.repeat(again[::4], 4, 0),
        ),
    }
    features, rows = extract(real), {}
    for name, (images, captions, grouped) in cases.items():
        read = read_images(judge, images)
        found = distances(features, extract(images)) | {"r_precision": r_precision(read, captions)}
        found |= {k: v for k, v in obedience(read, captions).items() if k in ("alignment", "binding")}
        if grouped is not None:
            within = extract(grouped.reshape(again.shape)).reshape(*WITHIN, -1)
            found["diversity"] = float(metrics.diversity(within))
        rows[name] = {k: v if v is None else round(v, 6) for k, v in found.items()}
        print(name, rows[name], file=sys.stderr)
    print(json.dumps(about() | {"n": args.n, "size": args.size, "rows": rows}, indent=1))


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(run(main))
