"""Train a preset: python train.py [PRESET] [--workdir DIR] [--steps N] [--FIELD VALUE]...   (--help lists every field)"""

import sys

from dallegan.cli import parse_config, run
from dallegan.loop import train
from dallegan.runtime import join, restart_with_huge_pages


def main() -> None:
    """Parses the command line, joins the other processes where there are any, and trains."""
    config = parse_config(sys.argv[1:])
    join(config.parallel)
    train(config)


def command() -> int:
    """`dallegan-train`: the exit code."""
    restart_with_huge_pages()
    return run(main)


if __name__ == "__main__":
    sys.exit(command())
