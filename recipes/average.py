"""Averages the generators of trained models of one network, each of which was trained on from the one before.

python recipes/average.py MODEL... --weights WEIGHT... --out FOLDER

An average of weights along a training run lies in a flatter place than the run's end (SWA, arXiv 1803.05407;
model soups, arXiv 2203.05482). The discriminator and the settings are those of the last model.
"""

import pathlib
import sys
from dataclasses import dataclass, replace

import jax
import tyro

import dallegan
from dallegan.errors import UserError
from dallegan.io.cli import parse, run
from dallegan.sampling import Model


@dataclass(frozen=True)
class Args:
    """Average models."""

    models: tyro.conf.Positional[tuple[str, ...]]  # as for `dallegan.load`, the last one trained last
    weights: tuple[float, ...]  # weight of each model in the average; their sum is 1
    out: pathlib.Path  # folder for the average


def average(models: list[Model], weights: tuple[float, ...]) -> Model:
    """Returns the last model with the weighted average of all generators."""
    generators = [model.params["generator"] for model in models]
    mean = jax.tree.map(lambda *x: sum(w * part for w, part in zip(weights, x, strict=True)), *generators)
    return replace(models[-1], params=models[-1].params | {"generator": mean})


def main() -> None:
    """Parses the command line and writes a folder that `dallegan.load` takes."""
    args = parse(Args, "recipes/average.py")
    if len(args.weights) != len(args.models) or abs(sum(args.weights) - 1) > 1e-6:
        given = " ".join(map(str, args.weights))
        raise UserError(f"--weights {given}: give one for each of {len(args.models)} models, with a sum of 1")
    models = [dallegan.load(name) for name in args.models]
    shapes = [jax.tree.map(lambda x: x.shape, model.params["generator"]) for model in models]
    for name, model, shape in zip(args.models, models, shapes, strict=True):
        if shape != shapes[-1] or model.tokenizer.proto != models[-1].tokenizer.proto:
            raise UserError(f"{name}: has another network or tokenizer than {args.models[-1]}")
    average(models, args.weights).save(args.out)
    print(f"{args.out}: the average of {', '.join(args.models)}")


if __name__ == "__main__":
    sys.exit(run(main))
