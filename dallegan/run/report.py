"""A run on one page: python -m dallegan.report RUN [--out FILE]. A self-contained HTML file that opens from disk. Needs the extra `eval`."""

import base64
import html
import io
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from dallegan.errors import UserError
from dallegan.io.files import write_atomic, writing
from dallegan.run.metrics_file import read_metrics

GRIDS = 8  # sample grids shown, evenly over the run
CURVES = {
    "alignment: share of captions drawn with every attribute right": ("alignment", "alignment_kind", "alignment_colour", "alignment_size", "alignment_place"),
    "match gap: score of a real picture with its own caption less that with another": ("match_gap",),
    "losses": ("d_loss", "g_loss"),
    "gradient penalties": ("r1", "r2"),
    "gradient norms": ("grad_norm_d", "grad_norm_g"),
    "images a second": ("images_per_second",),
}
LOGARITHMIC = ("r1", "grad_norm_d")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; background: #fff; }
h1 { margin-bottom: 0; } h2 { margin-top: 2em; border-bottom: 1px solid #ddd; } .quiet { color: #666; }
.cards { display: flex; flex-wrap: wrap; gap: 1em; margin: 1.5em 0; }
.cards div { border: 1px solid #ddd; border-radius: 6px; padding: .5em 1em; } .cards b { display: block; font-size: 1.5em; }
.row { display: flex; flex-wrap: wrap; gap: 1em; } figure { margin: 0; } figcaption { color: #666; } img, svg { max-width: 100%; height: auto; }
.grids img { width: 510px; } table { border-collapse: collapse; } td, th { padding: .15em .8em; border-bottom: 1px solid #eee; text-align: right; }
td:first-child, th:first-child { text-align: left; } pre { background: #f6f6f6; padding: 1em; overflow: auto; }
"""




def write_report(folder: pathlib.Path, out: pathlib.Path | None = None) -> pathlib.Path:
    """Writes the page of a run and says where. UserError where there is no run, the extra `eval` is absent, or it cannot be written."""
    try:
        metrics = read_metrics(folder / "metrics.jsonl")
    except OSError as error:
        raise UserError(f"cannot read {folder / 'metrics.jsonl'}: {error.strerror}") from None
    if not metrics:
        raise UserError(f"{folder} has no metrics.jsonl with a line in it: name a run directory of train.py")
    settings, machine = (read_json(folder / name) for name in ("config.json", "machine.json"))
    path = out or folder / "report.html"
    page = make_page(folder.resolve().name, metrics, settings, machine, choose(sorted(folder.glob("samples/*.png")), GRIDS))
    with writing(path):
        write_atomic(path, page)
    return path


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a file; {} where there is none."""
    try:
        found = json.loads(path.read_text("utf-8", "replace"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def choose(paths: list[pathlib.Path], most: int) -> list[pathlib.Path]:
    """At most so many, evenly, the first and the last among them."""
    return [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int))] if paths else []


def make_page(name: str, metrics: list[dict[str, Any]], settings: Mapping[str, Any], machine: Mapping[str, Any], grids: list[pathlib.Path]) -> str:
    """The whole page."""
    last = metrics[-1]
    data = settings["data"] if isinstance(settings.get("data"), dict) else {}
    about = f"{data.get('source', '?')} at {data.get('size', '?')} px; {machine.get('device', 'on an unknown device')}; {machine.get('date', '')}"
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(name)}</title><style>{STYLE}</style>",
        f"<h1>{escape(name)}</h1><p class=quiet>{escape(about)}</p>",
        cards(metrics, settings),
        "<h2>Samples</h2>" + samples(grids),
        "<h2>Curves</h2><div class=row>" + "".join(curves(metrics)) + "</div>",
        "<h2>Cost</h2>" + cost(last),
        "<h2>The last line of metrics.jsonl</h2>" + table(("", ""), ((k, number(v)) for k, v in last.items() if not isinstance(v, dict))),
        f"<h2>Settings</h2><pre>{escape(json.dumps(settings, indent=2, ensure_ascii=False))}</pre>",
        f"<h2>Command, machine and versions</h2><pre>{escape(json.dumps(machine, indent=2, ensure_ascii=False))}</pre>",
    ]
    return "\n".join(parts) + "\n"


def escape(text: object) -> str:
    """For HTML."""
    return html.escape(str(text))


def number(value: object) -> str:
    """To four digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def cards(metrics: list[dict[str, Any]], settings: Mapping[str, Any]) -> str:
    """What one wants to know first."""
    last = metrics[-1]
    scores = [line["alignment"] for line in metrics if isinstance(line.get("alignment"), int | float)]
    speeds = [line["images_per_second"] for line in metrics if isinstance(line.get("images_per_second"), int | float)]
    seconds = sum(phases(last).values())
    shown = {"steps": f"{last['step']:,} of {number(settings.get('steps'))}", "images": number(last.get("images"))}
    shown |= {"hours in all": f"{seconds / 3600:.2f}", "images a second, median": f"{np.median(speeds):.1f}" if speeds else "-"}
    if scores:
        shown |= {"alignment, last": f"{scores[-1]:.3f}", "best": f"{max(scores):.3f}"}
    shown["steps left out as not finite"] = number(last.get("skipped"))
    return "<div class=cards>" + "".join(f"<div><b>{escape(v)}</b>{escape(k)}</div>" for k, v in shown.items()) + "</div>"


def phases(line: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by what they were spent on."""
    seconds = line.get("seconds")
    return {str(k): float(v) for k, v in seconds.items() if isinstance(v, int | float)} if isinstance(seconds, dict) else {}


def cost(line: Mapping[str, Any]) -> str:
    """Where the time went."""
    spent = phases(line)
    total = max(sum(spent.values()), 1e-9)
    rows = ((k, f"{v:,.0f}", f"{100 * v / total:.1f} %") for k, v in sorted(spent.items(), key=lambda item: -item[1]))
    return table(("", "seconds", "share"), rows)


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Rows of text."""
    line = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def samples(grids: list[pathlib.Path]) -> str:
    """Sample grids as they are, in the page."""
    shown = []
    for path in grids:
        try:
            with Image.open(path) as image:
                image.convert("RGB").save(file := io.BytesIO(), "WEBP", quality=90)
        except Exception:  # a damaged file costs its place in the page; Pillow raises nearly anything
            continue
        name = f"{int(path.stem):,} images" if path.stem.isdigit() else path.stem
        source = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
        shown.append(f"<figure><img alt='samples' src='{source}'><figcaption>{escape(name)}</figcaption></figure>")
    return f"<div class='row grids'>{''.join(shown)}</div>" if shown else "<p class=quiet>none yet</p>"


def curves(metrics: list[dict[str, Any]]) -> Iterable[str]:
    """An SVG for each group of read-outs that the run has."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("a report needs the extra `eval`: pip install 'dallegan[eval]'") from None
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dallegan", "font.size": 9}):
        for title, names in CURVES.items():
            figure = Figure(figsize=(5.2, 3), layout="constrained")
            axis = figure.subplots()
            for name in names:
                points = [(line["images"], line[name]) for line in metrics if isinstance(line.get(name), int | float) and "images" in line]
                if points and any(value for _, value in points):  # a penalty that is off is 0 throughout
                    axis.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else "", linewidth=1.2, label=name)
            if not axis.lines:
                continue
            axis.set(xlabel="images", yscale="log" if names[0] in LOGARITHMIC else "linear")
            axis.grid(alpha=0.3)
            axis.legend()
            figure.savefig(file := io.StringIO(), format="svg", metadata={"Date": None})
            drawing = file.getvalue()
            yield f"<figure>{drawing[drawing.index('<svg') :]}<figcaption>{escape(title)}</figcaption></figure>"
