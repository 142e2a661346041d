"""Curves of runs: what training wrote into metrics.jsonl, read back and drawn."""

import contextlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from dallegan.errors import UserError
from dallegan.io.files import writing


def plot(runs: Sequence[str], out: pathlib.Path) -> None:
    """Alignment of runs against images and against seconds, as a PNG. UserError where there is nothing to plot."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--plot needs the extra `eval`: pip install 'dallegan[eval]'") from None
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for name in runs:
        path = pathlib.Path(name) / "metrics.jsonl"
        try:
            path.stat()
            points = evaluated(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error}): name run directories of train.py") from None
        if not points:
            raise UserError(f"{path} has no `alignment`: train with --log.evaluate above 0 on storybook")
        for axis, column in zip(axes, ("images", "seconds"), strict=True):
            axis.plot([p[column] for p in points], [p["alignment"] for p in points], marker=".", label=pathlib.Path(name).name)
    for axis, label in zip(axes, ("images", "seconds, all but compilation"), strict=True):
        axis.set(xlabel=label, ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("alignment")
    axes[0].legend()
    with writing(out):
        figure.savefig(out, format="png", dpi=120)


def evaluated(path: pathlib.Path) -> list[dict[str, Any]]:
    """The evaluated lines of a metrics.jsonl, each with `seconds`: of the steps, evaluations and grids before it, all but compilation."""
    points, seconds, images = [], 0.0, 0
    for line in read_metrics(path):
        speed, drawn = line.get("images_per_second"), line.get("images")
        if not (isinstance(speed, int | float) and isinstance(drawn, int) and speed > 0):  # no line of a run's
            continue
        seconds += (drawn - images) / speed
        images = drawn
        if isinstance(line.get("alignment"), int | float):
            points.append(line | {"seconds": round(seconds, 1)})
    return points


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, none where there is no file; a kill, a full disk or a write in progress may have cut one."""
    lines = []
    for line in path.read_text("utf-8", "replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]
