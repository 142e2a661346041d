"""Reads a run's metrics.jsonl back."""

import contextlib
import json
import pathlib
from typing import Any

Line = dict[str, Any]  # a line of metrics.jsonl


def read_metrics(path: pathlib.Path) -> list[Line]:
    """Returns the lines of a metrics.jsonl, or none if there is no such file.

    Incomplete lines are left out: a kill, a full disk or a write in progress may have cut one.
    Raises OSError if the file cannot be read.
    """
    lines = []
    for line in path.read_text("utf-8", "replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]


def evaluated(path: pathlib.Path) -> list[Line]:
    """Returns the lines of a metrics.jsonl that have an `alignment`; their `seconds` is one number.

    `seconds` counts everything up to the line but compilation: steps, evaluations and sample grids.
    Raises OSError if the file cannot be read.
    """
    found, seconds, images = [], 0.0, 0
    for line in read_metrics(path):
        speed, total = line.get("images_per_second"), line.get("images")
        if not (isinstance(speed, int | float) and isinstance(total, int) and speed > 0):
            continue  # a line that no run wrote
        seconds += (total - images) / speed
        images = total
        if isinstance(line.get("alignment"), int | float):
            found.append(line | {"seconds": round(seconds, 1)})
    return found
