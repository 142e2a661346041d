"""`dallegan train`: trains a preset, or resumes it."""

import sys
from collections.abc import Sequence

from dallegan.io.cli import Forgiving, parse_config
from dallegan.loop import train
from dallegan.run.processes import join


def main(argv: Sequence[str]) -> None:
    """Parses the command line, joins the other processes of the run if there are any, and trains."""
    config = parse_config(argv)
    sys.stdout = Forgiving(sys.stdout)  # what is trained is in the directory
    join(config.parallel)
    train(config)
