"""Estimates what a preset's training takes on accelerators, from the arithmetic of its step.

Nothing runs on an accelerator.

python benchmarks/sizing.py [--presets NAME...] [--share 0.4] > benchmarks/results/sizing.json

The arithmetic is XLA's count for the program before it is optimized; of `quickstart` and `storybook64` that
is 4 to 5 % more than of the compiled one.
"""

import dataclasses
import json
import sys
from typing import Any

import jax

from dallegan.config import load_preset
from dallegan.io.cli import parse, run
from dallegan.optim import make_optimizer
from dallegan.run.machine import about
from dallegan.sampling import make_gan
from dallegan.state import init_state
from dallegan.steps import make_train_step

PEAK = {
    "TPU v5e": 197,
    "TPU v5p": 459,
    "A100": 312,
    "H100 SXM": 989,
}  # dense bfloat16 teraflop/s, as their makers state it


@dataclasses.dataclass(frozen=True)
class Args:
    """Estimate."""

    presets: tuple[str, ...] = ("storybook64", "base256", "large256")
    share: float = 0.4  # of a device's peak that a step is supposed to reach


def flops(name: str) -> tuple[float, int]:
    """Of a picture in a train step, and the pictures of the whole run."""
    config = load_preset(name)
    gan = make_gan(config, config.text.vocab)
    adam = make_optimizer(gan, config.optim, config.steps)
    rows = lambda shape, dtype: jax.ShapeDtypeStruct((config.batch, *shape), dtype)
    side, tokens = config.data.size, rows((config.text.ids,), "int32")
    state = jax.eval_shape(lambda: init_state(gan, adam, config.seed))
    lowered = jax.jit(make_train_step(gan, adam, config)).lower(
        state, {"image": rows((side, side, 3), "uint8"), "tokens": tokens, "negative": tokens}
    )
    cost: Any = lowered.cost_analysis()
    return cost["flops"] / config.batch, config.images


def main() -> None:
    """Counts and prints JSON."""
    args = parse(Args, "sizing.py")
    rows = []
    for name in args.presets:
        each, images = flops(name)
        row = {
            "preset": name,
            "gflop_per_image": round(each / 1e9, 1),
            "images_of_the_run_m": round(images / 1e6, 1),
        }
        for device, peak in PEAK.items():
            speed = args.share * peak * 1e12 / each
            row[device] = {
                "images_per_second": round(speed, 1),
                "hours_per_million_images": round(1e6 / speed / 3600, 3),
                "hours_of_the_run": round(images / speed / 3600, 1),
            }
        rows.append(row)
    print(json.dumps(about() | {"share": args.share, "rows": rows}, indent=1))


if __name__ == "__main__":
    sys.exit(run(main))
