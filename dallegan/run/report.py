"""Runs on one HTML page, a file that holds everything it shows. Needs the extra `eval`.

The page of one run has its sample grids, curves, cost and settings; the page of several runs has their curves
in one chart each. `report.html.j2` lays the page out. Jinja escapes all text that comes from runs, and none
of it is in the charts.
"""

import base64
import contextlib
import importlib.util
import io
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dallegan.errors import UserError
from dallegan.io.files import parse_object, read_file, write_atomic, writing
from dallegan.run.metrics_file import Line, evaluated, read_metrics

NEEDED = "jinja2", "matplotlib"
GRIDS = 8  # most sample grids shown, evenly over the run
TEMPLATE = pathlib.Path(__file__).parent / "report.html.j2"
TITLES: dict[str, str] = {
    "alignment": "alignment: fraction of captions drawn with every attribute right",
    "diversity": "diversity: distance of drawn images of a caption, over that of real ones",
    "match_gap": "match gap: score of a real image with its own caption less that with another",
    "pair_gap": "pair gap: score of two real images of a caption less that of two drawn ones",
    "images_per_second": "images per second",
}
# the charts of one run: title and read-outs
CHARTS: dict[str, tuple[str, ...]] = {
    TITLES["alignment"]: (
        "alignment",
        *(f"alignment_{name}" for name in ("kind", "colour", "size", "place")),
    ),
    TITLES["diversity"]: ("diversity",),
    TITLES["match_gap"]: ("match_gap",),
    TITLES["pair_gap"]: ("pair_gap",),
    "losses": ("d_loss", "g_loss"),
    "gradient penalties": ("r1", "r2"),
    "gradient norms": ("grad_norm_d", "grad_norm_g"),
    TITLES["images_per_second"]: ("images_per_second",),
}
LOGARITHMIC = ("r1", "r2", "grad_norm_d", "grad_norm_g")
# of runs, or of the read-outs in a chart; matplotlib's first ten
COLORS = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
)
Curve = tuple[str, str, list[tuple[float, float]]]  # name in the legend, colour, points


class Run(NamedTuple):
    """A run, as its directory has it."""

    folder: pathlib.Path
    name: str
    color: str  # of its curves, beside those of other runs
    lines: list[Line]  # of metrics.jsonl, at least one
    evaluated: list[Line]
    settings: dict[str, Any]
    machine: dict[str, Any]


def can_report() -> bool:
    """Returns whether the packages that a report needs are installed."""
    return all(importlib.util.find_spec(name) for name in NEEDED)


def write_report(*folders: pathlib.Path, out: pathlib.Path | None = None) -> pathlib.Path:
    """Writes the page of one run, or of several, and returns its path.

    Args:
        *folders: run directories, at least one.
        out: the file; default: report.html in the run's directory or, for several runs, in the current one.

    Raises:
        UserError: if a directory holds no run, the extra `eval` is absent, or the file cannot be written.
    """
    if not can_report():
        raise UserError("a report needs the extra `eval`: pip install 'dallegan[eval]'")
    import jinja2

    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    colors = itertools.islice(itertools.cycle(COLORS), len(names))
    runs = [read_run(*args) for args in zip(folders, names, colors, strict=True)]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text("utf-8")).render(
        title=", ".join(names),
        runs=[(run.name, run.color, summarize(run)) for run in runs],
        details=describe(runs[0]) if len(runs) == 1 else None,
        charts=list(draw_charts(runs)),
    )
    path = out or (folders[0] if len(folders) == 1 else pathlib.Path()) / "report.html"
    with writing(path):
        write_atomic(path, page + "\n")
    return path


def read_run(folder: pathlib.Path, name: str, color: str) -> Run:
    """Returns the run in a directory. Raises UserError if there is none."""
    path = folder / "metrics.jsonl"
    try:
        lines, with_alignment = read_metrics(path), evaluated(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not lines:
        raise UserError(f"{folder} has no metrics.jsonl with a line in it: name a run directory of train.py")
    beside: dict[str, dict[str, Any]] = {"config.json": {}, "machine.json": {}}
    for file in beside:
        with contextlib.suppress(OSError, ValueError):  # absent, damaged
            beside[file] = parse_object(read_file(folder / file))
    return Run(folder, name, color, lines, with_alignment, *beside.values())


def choose(paths: Sequence[Any], most: int) -> list[Any]:
    """Returns at most `most` paths, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int)
    return [paths[i] for i in np.unique(places)]


def number(value: object) -> str:
    """Returns a number with four digits, any other value as text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else str(value)


def summarize(run: Run) -> dict[str, str]:
    """Returns what one wants to know first of a run, by name."""
    last = run.lines[-1]
    known = lambda name: [line[name] for line in run.lines if line.get(name) is not None]
    scores, diversity, speeds = known("alignment"), known("diversity"), known("images_per_second")
    return {
        "steps": f"{last['step']:,} of {number(run.settings.get('steps'))}",
        "images": number(last.get("images")),
        "hours in all": f"{sum(last.get('seconds', {}).values()) / 3600:.2f}",
        "images per second, median": f"{np.median(speeds):.1f}" if speeds else "-",
        "alignment, last": f"{scores[-1]:.3f}" if scores else "-",
        "alignment, best": f"{max(scores):.3f}" if scores else "-",
        "diversity, last": f"{diversity[-1]:.2f}" if diversity else "-",
        "steps left out as not finite": number(last.get("skipped")),
    }


def describe(run: Run) -> dict[str, Any]:
    """Returns what the page of one run shows beside its summary and its curves."""
    last, data = run.lines[-1], run.settings.get("data")
    data = data if isinstance(data, dict) else {}
    device, date = run.machine.get("device", "on an unknown device"), run.machine.get("date", "")
    return {
        "about": f"{data.get('source', '?')} at {data.get('size', '?')} px; {device}; {date}",
        "grids": list(read_grids(choose(sorted(run.folder.glob("samples/*.png")), GRIDS))),
        "cost": cost(last),
        "last": [(name, number(value)) for name, value in last.items() if not isinstance(value, dict)],
        "settings": json.dumps(run.settings, indent=2, ensure_ascii=False),
        "machine": json.dumps(run.machine, indent=2, ensure_ascii=False),
    }


def cost(line: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns what the run's time was spent on, the most first: name, seconds and fraction."""
    spent = line.get("seconds", {})
    total = max(sum(spent.values()), 1e-9)
    most_first = sorted(spent.items(), key=lambda item: -item[1])
    return [(name, f"{value:,.0f}", f"{100 * value / total:.1f} %") for name, value in most_first]


def read_grids(paths: Sequence[pathlib.Path]) -> Iterator[tuple[str, str]]:
    """Yields the name of each sample grid, and the grid as a data: address."""
    for path in paths:
        try:
            with Image.open(path) as image:
                image.convert("RGB").save(file := io.BytesIO(), "WEBP", quality=90)
        except Exception:  # Pillow raises nearly anything for a damaged file, which is left out
            continue
        name = f"{int(path.stem):,} images" if path.stem.isdigit() else path.stem
        yield name, f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def draw_charts(runs: Sequence[Run]) -> Iterator[tuple[str, Any]]:
    """Yields the title and the SVG of each chart that the runs have points for.

    With one run, a chart has a group of read-outs; with several, it has one read-out of all runs.
    """
    for title, names in CHARTS.items():
        if len(runs) == 1:
            (run,) = runs
            colored = zip(names, COLORS, strict=False)
            curves = [(name, color, points(run.lines, "images", name)) for name, color in colored]
            yield from draw_chart(title, curves, "images", names[0] in LOGARITHMIC)
        else:
            for name in names:
                curves = [("", run.color, points(run.lines, "images", name)) for run in runs]
                yield from draw_chart(TITLES.get(name, name), curves, "images", name in LOGARITHMIC)
        if "alignment" in names:
            curves = [("", run.color, points(run.evaluated, "seconds", "alignment")) for run in runs]
            yield from draw_chart("alignment against time", curves, "seconds, all but compilation")


def points(lines: Sequence[Line], x: str, y: str) -> list[tuple[float, float]]:
    """Returns the points of a curve; none if all are 0, as for a penalty that is off."""
    found = [(line[x], line[y]) for line in lines if None not in (line.get(x), line.get(y))]
    return found if any(value for _, value in found) else []


def draw_chart(
    title: str, curves: Sequence[Curve], x: str, logarithmic: bool = False
) -> Iterator[tuple[str, Any]]:
    """Yields a chart's title and its SVG, which Jinja does not escape; nothing if no curve has points."""
    import matplotlib
    from markupsafe import Markup
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dallegan", "font.size": 9}):
        figure = Figure(figsize=(5.2, 3), layout="constrained")
        axis = figure.subplots()
        for name, color, found in curves:
            if found:
                marker = "." if len(found) < 30 else ""
                axis.plot(*zip(*found, strict=True), marker=marker, linewidth=1.2, color=color, label=name)
        if not axis.lines:
            return
        axis.set(xlabel=x, yscale="log" if logarithmic else "linear")
        axis.grid(alpha=0.3)
        if any(name for name, _, _ in curves):
            axis.legend()
        figure.savefig(file := io.StringIO(), format="svg", metadata={"Date": None})
        svg = file.getvalue()
        yield title, Markup(svg[svg.index("<svg") :])
