"""Averages the generators of trained models of one network: runs on from one another, whose errors differ more than what they have learned.

python benchmarks/average.py MODEL... --shares SHARE... --out FOLDER

Averages of weights along a run lie in flatter places than its end (SWA, arXiv 1803.05407; model soups, arXiv 2203.05482). The discriminator is the last
model's.
"""

import dataclasses
import pathlib
import sys

import jax
import tyro

import dallegan
from dallegan.errors import UserError
from dallegan.io.cli import parse, run


@dataclasses.dataclass(frozen=True)
class Args:
    """Average models."""

    models: tyro.conf.Positional[tuple[str, ...]]  # as of `dallegan.load`, each begun from the one before
    shares: tuple[float, ...]  # of each in the average
    out: pathlib.Path  # folder for the average


def main() -> None:
    """Averages, and writes a folder that `dallegan.load` takes."""
    args = parse(Args, "average.py")
    if len(args.shares) != len(args.models) or abs(sum(args.shares) - 1) > 1e-6:
        raise UserError(f"--shares {' '.join(map(str, args.shares))}: one for each of {len(args.models)} models, 1 in all")
    models = [dallegan.load(name) for name in args.models]
    *others, last = models
    shape = lambda m: jax.tree.map(lambda x: x.shape, m.params["generator"])
    for name, model in zip(args.models, others, strict=False):
        if shape(model) != shape(last) or model.tokenizer.proto != last.tokenizer.proto:
            raise UserError(f"{name}: another network or tokenizer than {args.models[-1]}")
    generator = jax.tree.map(lambda *x: sum(share * part for share, part in zip(args.shares, x, strict=True)), *(m.params["generator"] for m in models))
    dataclasses.replace(last, params=last.params | {"generator": generator}).save(args.out)


if __name__ == "__main__":
    sys.exit(run(main))
