"""How much obedience `--best-of K` adds: the discriminator picks one of K images, and the judge reads it.

python benchmarks/best_of.py [--model DIR] [--n N] > benchmarks/results/best_of_MODEL.json
"""

import dataclasses
import json
import sys

import dallegan
from dallegan.errors import UserError
from dallegan.evaluation.drawing import choose_examples, measured_sources
from dallegan.evaluation.judge import load_judge
from dallegan.evaluation.obedience import caption_facts, is_readable, obedience, read_images
from dallegan.io.cli import parse, run
from dallegan.run.machine import about
from dallegan.sampling import DEFAULT


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure what choosing by the discriminator adds, on the storybook."""

    model: str = DEFAULT
    n: int = 1000  # captions of each split
    k: tuple[int, ...] = (1, 2, 4, 8)  # images to choose from


def main() -> None:
    """Measures and prints JSON."""
    args = parse(Args, "best_of.py")
    model, judge, alignment = dallegan.load(args.model), load_judge(), {}
    for split, source in measured_sources(model.config).items():
        if not is_readable(source, model.config.data.size):
            raise UserError(f"--model {args.model}: the judge reads storybook images only")
        examples = choose_examples(source, split, args.n, seed=0)
        captions, named = [example.caption for example in examples], caption_facts(examples)
        alignment[split] = {}
        for k in args.k:
            images = model.sample(captions, best_of=k)
            alignment[split][str(k)] = obedience(read_images(judge, images), named)["alignment"]
    print(json.dumps(about() | {"model": args.model, "n": args.n, "alignment": alignment}, indent=2))


if __name__ == "__main__":
    sys.exit(run(main))
