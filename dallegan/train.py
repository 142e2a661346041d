"""Train a preset: python train.py [PRESET] [--workdir DIR] [--steps N] [--FIELD VALUE]...   (--help lists every field)"""

import sys

from dallegan.cli import parse_config, run
from dallegan.loop import Diverged, train
from dallegan.runtime import join, restart_with_huge_pages


def main() -> None:
    """Parses the command line, joins the other processes where there are any, and trains."""
    config = parse_config(sys.argv[1:])
    join(config.parallel)
    train(config)


def command() -> int:
    """`dallegan-train`: the exit code, 1 where the run has diverged."""
    restart_with_huge_pages()
    try:
        return run(main)
    except Diverged as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(command())
