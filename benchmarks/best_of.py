"""How much obedience `--best-of K` adds: the discriminator picks one of K pictures, the judge reads it.

python benchmarks/best_of.py [--model DIR] [--n N] > benchmarks/results/best_of_MODEL.json
"""

import dataclasses
import json
import sys

import dallegan
from dallegan.errors import UserError
from dallegan.evaluation.judge import load_judge
from dallegan.evaluation.measure import Judged, asked, choose, said_by
from dallegan.io.cli import parse, run
from dallegan.run.machine import about
from dallegan.sampling import DEFAULT


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure what choosing by the discriminator adds, on the storybook."""

    model: str = DEFAULT
    n: int = 1000  # captions of each split
    k: tuple[int, ...] = (1, 2, 4, 8)  # pictures to choose from


def main() -> None:
    """Measures and prints JSON."""
    args = parse(Args, "best_of.py")
    model, judge, found = dallegan.load(args.model), load_judge(), {}
    if model.config.data.source != "storybook":
        raise UserError(f"--model {args.model}: the judge reads storybook pictures only")
    for split in ("test", "heldout"):
        examples = choose(asked(model.config, split), args.n, seed=0)
        captions, said = [e.caption for e in examples], said_by(examples)
        found[split] = {str(k): Judged(judge, model.sample(captions, best_of=k)).obedience(said)["alignment"] for k in args.k}
    print(json.dumps(about() | {"model": args.model, "n": args.n, "alignment": found}, indent=2))


if __name__ == "__main__":
    sys.exit(run(main))
