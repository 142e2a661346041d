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


if __name__ == "__main__":
    restart_with_huge_pages()
    try:
        sys.exit(run(main))
    except Diverged as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(1)
