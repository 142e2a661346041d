"""Draw captions: python sample.py PROMPT... [--model NAME|DIR] [--n N] [--seed S] [--truncation T] [--best-of K] [--out DIR]"""

import dataclasses
import pathlib
import sys
from typing import Annotated

import tyro

import dallegan
from dallegan.cli import parse, run
from dallegan.errors import UserError
from dallegan.sampling import DEFAULT, write_samples


@dataclasses.dataclass(frozen=True)
class Args:
    """Draw pictures of captions with a trained model: one PNG a picture."""

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT...")] = ()  # captions, Chinese or English
    model: str = DEFAULT  # a model that ships with the package, a run directory, or a folder that `Model.save` wrote
    n: int = 4  # pictures of each prompt
    seed: int = 0  # the same seed gives the same pictures
    truncation: float = 1.0  # scale of the noise: below 1 less variety, more typical pictures
    best_of: int = 1  # draw so many for each picture and keep the one that the discriminator scores highest
    out: pathlib.Path = pathlib.Path("samples")  # directory for the PNGs


def main() -> None:
    """Parses the command line, loads the model, draws and writes."""
    args = parse(Args, "sample.py")
    if not args.prompts:
        raise UserError('no prompt: say what to draw, for example: python sample.py "a big brown bear standing in the snow"')
    if args.n < 1:
        raise UserError(f"--n {args.n}: must be at least 1")
    if args.best_of < 1:
        raise UserError(f"--best-of {args.best_of}: must be at least 1")
    if any(not prompt.strip() for prompt in args.prompts):
        raise UserError("a prompt is empty: say what to draw")
    model = dallegan.load(args.model)
    for path in write_samples(model, args.prompts, args.out, args.n, args.seed, args.truncation, args.best_of):
        print(path)


if __name__ == "__main__":
    sys.exit(run(main))
