"""`dallegan report`: writes an HTML page about a run."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated

import tyro

from dallegan.io.cli import parse
from dallegan.run.report import write_report


@dataclasses.dataclass(frozen=True)
class Args:
    """Put a run's curves, sample grids, settings and cost on one HTML page."""

    run: Annotated[pathlib.Path, tyro.conf.Positional]  # a run directory, as train.py writes it
    out: pathlib.Path | None = None  # the file; default: report.html in the run


def main(argv: Sequence[str]) -> None:
    """Parses the command line and writes."""
    args = parse(Args, "dallegan report", args=argv)
    print(write_report(args.run, args.out))
