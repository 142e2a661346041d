"""`dallegan train`: trains a preset, or resumes it."""

from collections.abc import Sequence

from dallegan.io.cli import forgive_stdout, parse_config
from dallegan.loop import train
from dallegan.run.processes import join


def main(argv: Sequence[str]) -> None:
    """Parses the command line, joins the other processes of the run if there are any, and trains."""
    config = parse_config(argv)
    forgive_stdout()
    join(config.parallel)
    train(config)
