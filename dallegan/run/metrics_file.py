"""Reads a run's metrics.jsonl back."""

import contextlib
import pathlib
from typing import Any

from dallegan.io.files import parse_object, read_file

Line = dict[str, Any]  # a line of metrics.jsonl
MAX_BYTES = 2**28  # of the file: half a million lines
LARGEST = 1e100  # what is beyond can neither be drawn nor added


def read_metrics(path: pathlib.Path) -> list[Line]:
    """Returns the lines of a metrics.jsonl, or none if there is no such file.

    Incomplete lines are left out: a kill, a full disk or a write in progress may have cut one. So is every
    value that no run writes: each is a number or None, `step` is an integer, `seconds` a dict of numbers.
    Raises OSError if the file cannot be read.
    """
    lines = []
    for line in read_file(path, MAX_BYTES).splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            lines.append(_clean(parse_object(line)))
    return [line for line in lines if isinstance(line.get("step"), int)]


def _clean(line: dict[str, Any]) -> Line:
    seconds = line.get("seconds")
    kept = {name: x for name, x in line.items() if x is None or is_number(x)}
    if isinstance(seconds, dict):
        kept["seconds"] = {name: x for name, x in seconds.items() if is_number(x)}
    return kept


def is_number(value: object) -> bool:
    """Returns whether a value is a number that can be drawn: finite, and not true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def evaluated(path: pathlib.Path) -> list[Line]:
    """Returns the lines of a metrics.jsonl that have an `alignment`; their `seconds` is one number.

    `seconds` counts everything up to the line but compilation: steps, evaluations and sample grids.
    Raises OSError if the file cannot be read.
    """
    found, seconds, images = [], 0.0, 0
    for line in read_metrics(path):
        speed, total = line.get("images_per_second"), line.get("images")
        if not speed or speed < 0 or total is None:
            continue  # a line that no run wrote
        seconds += (total - images) / speed
        images = total
        if line.get("alignment") is not None:
            found.append(line | {"seconds": round(seconds, 1)})
    return found
