"""Writes benchmarks/RESULTS.md from the JSON files in benchmarks/results.

python benchmarks/results.py
"""

import json
import pathlib
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from dallegan.commands.evaluate import table as evaluation_table
from dallegan.evaluation.quick import LEAST

# a run has collapsed if its images deviate by less than this (mean over pixels, of 255)
WITHIN = 0.5  # images of one caption
ACROSS = 10.0  # images of different captions; real images deviate by about 60
FULL = 0.9  # fraction of a device's memory that a step may take
# GiB of a device, as its maker states it
MEMORY = {"TPU v5e": 16, "TPU v4, v6e": 32, "A100 40 GB": 40, "A100, H100 80 GB": 80, "TPU v5p": 95}
HERE = pathlib.Path(__file__).parent
Result = dict[str, Any]


def read(pattern: str) -> list[Result]:
    """Returns the results whose file names match, sorted by name; `file` is a result's file name."""
    paths = sorted((HERE / "results").glob(pattern))
    text = lambda path: path.read_text().splitlines()[0] if path.suffix == ".jsonl" else path.read_text()
    return [{"file": path.name, **json.loads(text(path))} for path in paths]


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Returns a Markdown table; floats have four digits."""
    show = lambda x: f"{x:.4g}" if isinstance(x, float) else "" if x is None else str(x)
    lines = [list(head), ["---"] * len(list(head)), *rows]
    return "".join("| " + " | ".join(show(x) for x in line) + " |\n" for line in lines)


def origin(result: Result) -> str:
    """Returns a line with command, date, machine and versions."""
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    return f"\n`{result['command']}`, {result['date']}, {result['device']}, {versions}.\n\n"


def origins(results: Iterable[Result]) -> str:
    """Returns the origin of each result."""
    return "".join(map(origin, results))


def train_speed() -> str:
    """Returns a row for each preset and device."""
    keys = ("dtype", "step_ms", "images_per_second", "gflop_per_image", "gemm_gflop_per_second")
    keys += ("share_of_gemm", "compile_seconds")
    head = ["command", "device", *(k.replace("_", " ") for k in keys)]
    results = read("train_speed*.json")
    command = lambda r: f"`{r['command'].removeprefix('python benchmarks/')}`"
    rows = [[command(r), r["device"], *(r[k] for k in keys)] for r in results]
    return table(head, rows) + origins(results)


def judge() -> str:
    """Returns a row for each set of rendered images."""
    (result,) = read("judge.json")
    names = list(next(iter(result["accuracy"].values())))
    size = f"{result['parameters']:,} parameters, {result['bytes']:,} bytes"
    about = f"{size}, trained by the two commands in `train_judge.py`.\n\n"
    rows = ([k, *v.values()] for k, v in result["accuracy"].items())
    return about + table(["real images", *names], rows) + origin(result)


def metric_sanity() -> str:
    """Returns a row for each way of spoiling real images."""
    text = ""
    for result in read("metric_sanity*.json"):
        names = list(next(iter(result["rows"].values())))
        text += f"{result['n']} real images of {result['size']} px against {result['n']} others:\n\n"
        rows = ([k, *(v.get(name) for name in names)] for k, v in result["rows"].items())
        text += table(["the others", *names], rows) + origin(result)
    return text


def evaluation() -> str:
    """Returns what `dallegan evaluate` printed of each model."""
    text = ""
    for result in read("evaluate_*.json"):
        model = f"`{result['model']}`, {result['source']} at {result['size']} px (`{result['file']}`)"
        found = result.get("combinations", {})
        if "right" in found and "tries" not in found:  # measured with one image of each combination
            without = {k: v for k, v in result.items() if k != "combinations"}
            lines = f"{evaluation_table(without)}\n{'combinations right':24}{found['right']:>10}"
            lines += f"   of {found['of']} objects x colours x places"
        else:
            lines = evaluation_table(result)
        text += f"{model}:\n\n```text\n{lines}\n```\n{origin(result)}"
    return text


def quality() -> str:
    """Returns a row for each run of equal wall-clock budget, and its curve."""
    keys = ("alignment", "kind", "colour", "place", "kid", "fd", "precision", "recall", "density", "coverage")
    results = read("quality*.json")
    name = lambda r: f"`{r['command'].split('quality.py ')[1]}`"
    parts = [(r, split) for r in results for split in ("test", "heldout") if split in r["final"]]
    rows = [
        [name(r), split, r["seconds"], r["steps"], *(r["final"][split].get(k) for k in keys)]
        for r, split in parts
    ]
    text = table(["preset", "split", "seconds", "steps", *keys], rows)
    for r in results:
        points = r["curve"]
        alignment = [["alignment", *(p["alignment"] for p in points)]]
        text += origin(r) + table(["seconds", *(p["seconds"] for p in points)], alignment)
    return text


def stability_runs(whole: bool) -> list[Result]:
    """Returns the lines of stability.jsonl: the ablation if `whole`, else the short runs."""
    lines = [json.loads(line) for line in (HERE / "results" / "stability.jsonl").read_text().splitlines()]
    return [r for r in lines if r.get("whole", False) == whole]


def stability_origins(lines: list[Result]) -> str:
    """Returns the origins of runs, each command and machine once."""
    return origins({r["about"]["command"] + r["about"]["device"]: r["about"] for r in lines}.values())


def ablation() -> str:
    """Returns a row for each case, over its seeds; a run that diverged counts as 0."""
    lines, rows = stability_runs(whole=True), []
    if not lines:
        return ""
    number = lambda r, k: 0.0 if r["diverged"] else r[k]
    averaged = ("alignment", "within", "images_per_second")
    for case, steps in dict.fromkeys((r["case"], r["steps"]) for r in lines):
        runs = [r for r in lines if (r["case"], r["steps"]) == (case, steps)]
        of_each = [", ".join(f"{number(r, k):.3f}" for r in runs) for k in ("alignment", "kind", "pose")]
        means = [statistics.mean(number(r, k) for r in runs) for k in averaged]
        rows.append([case, steps, *of_each, *means])
    head = ["case", "steps of 32", "alignment, a seed each", "kind", "pose"]
    head += ["mean alignment", "deviation within captions", "images/s"]
    return table(head, rows) + stability_origins(lines)


def stability() -> str:
    """Returns a row for each case, over its seeds."""
    lines, rows = stability_runs(whole=False), []
    for case, steps in dict.fromkeys((r["case"], r["steps"]) for r in lines if r["case"] != "digits"):
        runs = [r for r in lines if (r["case"], r["steps"]) == (case, steps)]
        whole = [r for r in runs if not r["diverged"]]
        scores = [0.0 if r["diverged"] else r["alignment"] for r in runs]
        spread = [min(scores), statistics.median(scores), max(scores)]
        counts = [len(runs) - len(whole), sum(r["skipped"] > 0 for r in whole)]
        # early runs have no diversity
        alike = [r["within"] < WITHIN or r.get("diversity", 1) < LEAST for r in whole]
        counts += [sum(alike), sum(r["across"] < ACROSS for r in whole)]
        deviations = [statistics.median(r[k] for r in whole) if whole else None for k in ("within", "across")]
        rows.append([case, len(runs), steps, *counts, *deviations, *spread])
    head = ["case", "seeds", "steps", "diverged", "with skipped steps", "collapsed within captions"]
    head += ["across captions", "deviation within captions", "across", "alignment: least", "median", "most"]
    digits = [[r["seed"], r["steps"], r["modes"], r["kl"]] for r in lines if r["case"] == "digits"]
    text = table(head, rows)
    if digits:
        text += "\nStacked digits, 1,000 modes, 25,600 images drawn:\n\n"
        text += table(["seed", "steps", "modes", "KL"], digits)
    return text + stability_origins(lines)


def best_of() -> str:
    """Returns a row for each model and split."""
    results = read("best_of*.json")
    counts = list(dict.fromkeys(k for r in results for k in r["alignment"]["test"]))
    rows = [
        [r["model"], split, *(found.get(k) for k in counts)]
        for r in results
        for split, found in r["alignment"].items()
    ]
    return table(["model", "split", *(f"best of {k}" for k in counts)], rows) + origins(results)


def sample_speed() -> str:
    """Returns a row for each device."""
    results = read("sample_speed*.json")

    def row(r: Result) -> list[object]:
        times = [*r["shell_to_png_seconds"].values(), *r["one_picture_ms"].values()]
        exported = r.get("one_picture_exported_ms", {}).get("p50")
        return [r["device"], *times, exported, max(r["images_per_second"].values())]

    head = ["device", "shell to PNG, s", "cached, s", "one image p50, ms", "p95, ms", "exported, p50, ms"]
    head += ["best images/s of gan.synthesize, any batch"]
    return table(head, map(row, results)) + origins(results)


def data_speed() -> str:
    """Returns a row for each source."""
    (result,) = read("data_speed.json")
    measured = next(name for name in result if name.startswith("images_per_second"))
    title = measured.replace("_", " ").replace("images per second", "images/s")
    return table(["source", title], result[measured].items()) + origin(result)


def grown() -> str:
    """Returns a row for each set of images."""
    (result,) = read("grown.json")
    keys = list(next(iter(result["rows"].values())))
    rows = ([k, *v.values()] for k, v in result["rows"].items())
    return table([f"of {result['n']:,} captions", *keys], rows) + origin(result)


def numbers(pattern: str) -> str:
    """Returns all plain numbers of a result, a row each."""
    (result,) = read(pattern)

    def is_plain(value: object) -> bool:
        return isinstance(value, int | float) or (
            isinstance(value, list) and not any(isinstance(v, dict) for v in value)
        )

    show = lambda value: " / ".join(map(str, value)) if isinstance(value, list) else value
    rows = ([k.replace("_", " "), show(v)] for k, v in result.items() if is_plain(v))
    return table(["", ""], rows) + origin(result)


def dryrun() -> str:
    """Returns a row for each preset and number of devices that share the parameters."""
    results = read("dryrun_*.json")
    keys = ("width", "fsdp", "parameters_m", "state_gib_of_a_device", "gib_of_a_device", "tflop_of_a_device")
    keys += ("compile_seconds", "refused")
    mb = lambda row, name: ", ".join(f"{kind} {n:g}" for kind, n in row.get(name, {}).items())
    rows = []
    for r in results:
        preset = r["command"].split()[2]
        for row in r["rows"]:
            about = [preset, r["topology"], r["batch"], *(row.get(k) for k in keys)]
            rows.append([*about, mb(row, "collectives_mb"), mb(row, "expected_collectives_mb")])
    head = ["preset", "slice", "batch", *(k.replace("_", " ") for k in keys)]
    head += ["arrays gathered, scattered, reduced in a step, MB", "each once"]
    return table(head, rows) + origins(results)


def largest() -> str:
    """Returns the largest of the compiled networks whose step fits in the memory of each kind of device."""
    (result,) = read("dryrun_large256.json")
    rows = [row for row in result["rows"] if "refused" not in row]
    parts = sorted({row["fsdp"] for row in rows})

    def fits(gib: float, fsdp: int) -> str:
        sizes = [r["parameters_m"] for r in rows if r["fsdp"] == fsdp and r["gib_of_a_device"] <= FULL * gib]
        return f"{max(sizes) / 1000:.1f} B" if sizes else "none"

    where = f"on {result['topology']} at batch {result['batch']}, as XLA plans it for CPUs"
    which = f"the largest whose step takes at most {FULL:.0%} of a device's memory"
    head = ["device, GiB", *(f"fsdp {n}" for n in parts)]
    lines = [[f"{kind}, {gib}", *(fits(gib, n) for n in parts)] for kind, gib in MEMORY.items()]
    return f"Of `large256`'s widths above, {which}, {where}:\n\n" + table(head, lines)


def sizing() -> str:
    """Returns a row for each preset and device."""
    results = read("sizing.json")
    head = ["preset", "GFLOP an image", "images of the run, million", "device", "images/s"]
    head += ["device-hours a million images", "of the run"]
    rows = []
    for row in (row for r in results for row in r["rows"]):
        about = [row["preset"], row["gflop_per_image"], row["images_of_the_run_m"]]
        rows += [[*about, k, *v.values()] for k, v in row.items() if isinstance(v, dict)]
    peak = "of the peak that the makers state, which nobody has measured here"
    note = "".join(f"An estimate: at {r['share']:.0%} {peak}.\n\n" for r in results)
    return note + table(head, rows) + origins(results)


SECTIONS: dict[str, tuple[str, Callable[[], str]]] = {  # title: file names, text
    "Models": ("evaluate_*.json", evaluation),
    "Training speed": ("train_speed*.json", train_speed),
    "Alignment by `--best-of`": ("best_of*.json", best_of),
    "From 32 to 64 pixels": ("grown.json", grown),
    "Quality for equal seconds": ("quality*.json", quality),
    "Ablation of quickstart": ("stability.jsonl", ablation),
    "Stability": ("stability.jsonl", stability),
    "Sampling speed": ("sample_speed*.json", sample_speed),
    "A thousand prompts from a file": ("sample_many.json", lambda: numbers("sample_many.json")),
    "Data speed": ("data_speed.json", data_speed),
    "Shards made by `prepare`": ("prepare_speed.json", lambda: numbers("prepare_speed.json")),
    "Training killed and started again": ("chaos.json", lambda: numbers("chaos.json")),
    "Compiled for slices that are not there": ("dryrun_*.json", dryrun),
    "Largest networks": ("dryrun_large256.json", largest),
    "What a run would take on accelerators": ("sizing.json", sizing),
    "Do the metrics move the right way?": ("metric_sanity*.json", metric_sanity),
    "The judge on real images": ("judge.json", judge),
}


def main() -> None:
    """Writes RESULTS.md, with the sections that have results."""
    text = "# Results\n\nGenerated from `results/` by `python benchmarks/results.py`; do not edit. "
    text += "What was tried and why: `LOG.md`.\n"
    for title, (pattern, section) in SECTIONS.items():
        if read(pattern) and (body := section()):
            text += f"\n## {title}\n\n{body}"
    (HERE / "RESULTS.md").write_text(text)


if __name__ == "__main__":
    main()
