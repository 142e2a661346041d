"""`dallegan report`: writes an HTML page about one run, or about several."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated

import tyro

from dallegan.errors import UserError
from dallegan.io.cli import parse
from dallegan.io.text import say
from dallegan.run.report import write_report

RUNS = tyro.conf.arg(metavar="RUN [RUN ...]")


@dataclasses.dataclass(frozen=True)
class Args:
    """Put a run's curves, sample grids, settings and cost on one HTML page, or the curves of several runs."""

    runs: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional, RUNS]  # as `dallegan train` writes them
    out: pathlib.Path | None = None  # the file; default: report.html, of one run in its directory


def main(argv: Sequence[str]) -> None:
    """Writes the page and prints its path."""
    args = parse(Args, "dallegan report", args=argv)
    if not args.runs:
        raise UserError("name a run directory: dallegan report RUN [RUN...]")
    say(write_report(*args.runs, out=args.out))
