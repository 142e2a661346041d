"""Writes benchmarks/RESULTS.md from the JSON files in benchmarks/results: python benchmarks/results.py"""

import json
import pathlib
import statistics
from collections.abc import Iterable

from dallegan.evaluation.measure import table as show

WITHIN = 0.5  # a run whose pictures of one caption deviate by less (mean over pixels, of 255) has collapsed within captions
ACROSS = 10.0  # likewise, pictures of different captions; real ones deviate by about 60
FULL = 0.9  # share of a device's memory that a step may take
MEMORY = {"TPU v5e": 16, "TPU v4, v6e": 32, "A100 40 GB": 40, "A100, H100 80 GB": 80, "TPU v5p": 95}  # GiB of a device, as their makers state it
HERE = pathlib.Path(__file__).parent
Row = list[object]


def read(pattern: str) -> list[dict]:
    """The results that a name's pattern matches, in the order of their names, each with its file's."""
    paths = sorted((HERE / "results").glob(pattern))
    return [{"file": path.name, **json.loads(path.read_text().splitlines()[0] if path.suffix == ".jsonl" else path.read_text())} for path in paths]


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; floats to four digits."""
    show = lambda x: f"{x:.4g}" if isinstance(x, float) else "" if x is None else str(x)
    lines = [list(head), ["---"] * len(list(head)), *rows]
    return "".join("| " + " | ".join(show(x) for x in line) + " |\n" for line in lines)


def origin(result: dict) -> str:
    """Command, date, machine and versions, in a line."""
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    return f"\n`{result['command']}`, {result['date']}, {result['device']}, {versions}.\n\n"


def train_speed() -> str:
    """A row a preset and device."""
    keys = ("dtype", "step_ms", "images_per_second", "gflop_per_image", "gemm_gflop_per_second", "share_of_gemm", "compile_seconds")
    head = ["command", "device", *(k.replace("_", " ") for k in keys)]
    results = read("train_speed*.json")
    rows = [[f"`{r['command'].removeprefix('python benchmarks/')}`", r["device"], *(r[k] for k in keys)] for r in results]
    return table(head, rows) + "".join(map(origin, results))


def judge() -> str:
    """A row a set of renders."""
    (result,) = read("judge.json")
    names = list(next(iter(result["accuracy"].values())))
    about = f"{result['parameters']:,} parameters, {result['bytes']:,} bytes, trained by the two commands in `train_judge.py`.\n\n"
    return about + table(["real pictures", *names], ([k, *v.values()] for k, v in result["accuracy"].items())) + origin(result)


def metric_sanity() -> str:
    """A row a way of spoiling real pictures."""
    text = ""
    for result in read("metric_sanity*.json"):
        rows = result["rows"]
        names = list(next(iter(rows.values())))
        text += f"{result['n']} real pictures of {result['size']} px against {result['n']} others:\n\n"
        text += table(["the others", *names], ([k, *(v.get(name) for name in names)] for k, v in rows.items())) + origin(result)
    return text


def evaluation() -> str:
    """What `dallegan.evaluate` printed of each model."""
    return "".join(f"`{r['model']}`, {r['source']} at {r['size']} px (`{r['file']}`):\n\n```text\n{show(r)}\n```\n{origin(r)}" for r in read("evaluate_*.json"))


def quality() -> str:
    """A row a run of equal wall-clock budget, and its curve."""
    text = ""
    keys = ("alignment", "kind", "colour", "place", "kid", "fd", "precision", "recall", "density", "coverage")
    results = read("quality*.json")
    name = lambda r: f"`{r['command'].split('quality.py ')[1]}`"
    parts = [(r, split) for r in results for split in ("test", "heldout") if split in r["final"]]
    rows = [[name(r), split, r["seconds"], r["steps"], *(r["final"][split].get(k) for k in keys)] for r, split in parts]
    text += table(["preset", "split", "seconds", "steps", *keys], rows)
    for r in results:
        points = r["curve"]
        text += origin(r) + table(["seconds", *(p["seconds"] for p in points)], [["alignment", *(p["alignment"] for p in points)]])
    return text


def runs_of(whole: bool) -> list[dict]:
    """The lines of stability.jsonl: of the ablation, or of the short runs."""
    lines = [json.loads(line) for line in (HERE / "results" / "stability.jsonl").read_text().splitlines()]
    return [r for r in lines if r.get("whole", False) == whole]


def origins(lines: list[dict]) -> str:
    """Of every command and machine once."""
    return "".join(map(origin, {r["about"]["command"] + r["about"]["device"]: r["about"] for r in lines}.values()))


def ablation() -> str:
    """A row a case, over its seeds; a run that diverged counts as 0."""
    lines, rows = runs_of(whole=True), []
    if not lines:
        return ""
    number = lambda r, k: 0.0 if r["diverged"] else r[k]
    for case, steps in dict.fromkeys((r["case"], r["steps"]) for r in lines):
        runs = [r for r in lines if (r["case"], r["steps"]) == (case, steps)]
        of_each = [", ".join(f"{number(r, k):.3f}" for r in runs) for k in ("alignment", "kind", "pose")]
        rows.append([case, steps, *of_each, *(statistics.mean(number(r, k) for r in runs) for k in ("alignment", "within", "images_per_second"))])
    head = ["case", "steps of 32", "alignment, a seed each", "kind", "pose", "mean alignment", "deviation within captions", "images/s"]
    return table(head, rows) + origins(lines)


def stability() -> str:
    """A row a case, over its seeds."""
    lines, rows = runs_of(whole=False), []
    for case, steps in dict.fromkeys((r["case"], r["steps"]) for r in lines if r["case"] != "digits"):
        runs = [r for r in lines if (r["case"], r["steps"]) == (case, steps)]
        whole = [r for r in runs if not r["diverged"]]
        scores = [0.0 if r["diverged"] else r["alignment"] for r in runs]
        spread = [min(scores), statistics.median(scores), max(scores)]
        counts = [len(runs) - len(whole), sum(r["skipped"] > 0 for r in whole)]
        counts += [sum(r["within"] < WITHIN for r in whole), sum(r["across"] < ACROSS for r in whole)]
        deviations = [statistics.median(r[k] for r in whole) if whole else None for k in ("within", "across")]
        rows.append([case, len(runs), steps, *counts, *deviations, *spread])
    head = ["case", "seeds", "steps", "diverged", "with skipped steps", "collapsed within captions", "across captions"]
    head += ["deviation within captions", "across", "alignment: least", "median", "most"]
    digits = [[r["seed"], r["steps"], r["modes"], r["kl"]] for r in lines if r["case"] == "digits"]
    text = table(head, rows)
    if digits:
        text += "\nStacked digits, 1,000 modes, 25,600 pictures drawn:\n\n" + table(["seed", "steps", "modes", "KL"], digits)
    return text + origins(lines)


def best_of() -> str:
    """A row a model and split."""
    results = read("best_of*.json")
    counts = list(dict.fromkeys(k for r in results for k in r["alignment"]["test"]))
    rows = [[r["model"], split, *(found.get(k) for k in counts)] for r in results for split, found in r["alignment"].items()]
    return table(["model", "split", *(f"best of {k}" for k in counts)], rows) + "".join(map(origin, results))


def sample_speed() -> str:
    """A row a device."""
    results = read("sample_speed*.json")
    exported = lambda r: r.get("one_picture_exported_ms", {}).get("p50")
    values = lambda r: [*r["shell_to_png_seconds"].values(), *r["one_picture_ms"].values(), exported(r), max(r["images_per_second"].values())]
    head = ["device", "shell to PNG, s", "cached, s", "one picture p50, ms", "p95, ms", "exported, p50, ms", "best images/s of gan.synthesize, any batch"]
    return table(head, ([r["device"], *values(r)] for r in results)) + "".join(map(origin, results))


def data_speed() -> str:
    """A row a source."""
    (result,) = read("data_speed.json")
    measured = next(name for name in result if name.startswith("images_per_second"))
    return table(["source", measured.replace("_", " ").replace("images per second", "images/s")], result[measured].items()) + origin(result)


def grown() -> str:
    """A row a set of pictures."""
    (result,) = read("grown.json")
    keys = list(next(iter(result["rows"].values())))
    return table([f"of {result['n']:,} captions", *keys], ([k, *v.values()] for k, v in result["rows"].items())) + origin(result)


def numbers(pattern: str) -> str:
    """All plain numbers of a result, a row each."""
    (result,) = read(pattern)
    shown = lambda value: isinstance(value, int | float) or (isinstance(value, list) and not any(isinstance(v, dict) for v in value))
    rows = ([k.replace("_", " "), " / ".join(map(str, v)) if isinstance(v, list) else v] for k, v in result.items() if shown(v))
    return table(["", ""], rows) + origin(result)


def dryrun() -> str:
    """A row a preset and number of devices that share the parameters."""
    results = read("dryrun_*.json")
    keys = ("width", "fsdp", "parameters_m", "state_gib_of_a_device", "gib_of_a_device", "tflop_of_a_device", "compile_seconds", "refused")
    mb = lambda row, name: ", ".join(f"{kind} {n:g}" for kind, n in row.get(name, {}).items())
    about = lambda row: [*(row.get(k) for k in keys), mb(row, "collectives_mb"), mb(row, "expected_collectives_mb")]
    rows = [[r["command"].split()[2], r["topology"], r["batch"], *about(row)] for r in results for row in r["rows"]]
    head = ["preset", "slice", "batch", *(k.replace("_", " ") for k in keys), "arrays gathered, scattered, reduced in a step, MB", "each once"]
    return table(head, rows) + "".join(map(origin, results))


def largest() -> str:
    """A row a device kind: the largest of the networks compiled whose step takes at most so much of its memory."""
    (result,) = read("dryrun_large256.json")
    rows = [row for row in result["rows"] if "refused" not in row]
    ways = sorted({row["fsdp"] for row in rows})
    fits = lambda gib, fsdp: max((r["parameters_m"] for r in rows if r["fsdp"] == fsdp and r["gib_of_a_device"] <= FULL * gib), default=None)
    name = lambda millions: "none" if millions is None else f"{millions / 1000:.1f} B"
    about = f"on {result['topology']} at batch {result['batch']}, as XLA plans it for CPUs"
    text = f"Of `large256`'s widths above, the largest whose step takes at most {FULL:.0%} of a device's memory, {about}:\n\n"
    return text + table(
        ["device, GiB", *(f"fsdp {n}" for n in ways)], [[f"{kind}, {gib}", *(name(fits(gib, n)) for n in ways)] for kind, gib in MEMORY.items()]
    )


def sizing() -> str:
    """A row a preset and device."""
    results = read("sizing.json")
    head = ["preset", "GFLOP an image", "images of the run, million", "device", "images/s", "device-hours a million images", "of the run"]
    rows = []
    for r in results:
        for row in r["rows"]:
            rows += [[row["preset"], row["gflop_per_image"], row["images_of_the_run_m"], k, *v.values()] for k, v in row.items() if isinstance(v, dict)]
    note = "".join(f"An estimate: at {r['share']:.0%} of the peak that the makers state, which nobody has measured here.\n\n" for r in results)
    return note + table(head, rows) + "".join(map(origin, results))


def main() -> None:
    """Writes the file; a section is there where its results are."""
    sections = {
        "Models": ("evaluate_*.json", evaluation), "Training speed": ("train_speed*.json", train_speed),
        "Alignment by `--best-of`": ("best_of*.json", best_of),
        "From 32 to 64 pixels": ("grown.json", grown),
        "Quality for equal seconds": ("quality*.json", quality),
        "Ablation of quickstart": ("stability.jsonl", ablation), "Stability": ("stability.jsonl", stability),
        "Sampling speed": ("sample_speed*.json", sample_speed),
        "A thousand prompts from a file": ("sample_many.json", lambda: numbers("sample_many.json")), "Data speed": ("data_speed.json", data_speed),
        "Shards made by `prepare`": ("prepare_speed.json", lambda: numbers("prepare_speed.json")),
        "Training killed and started again": ("chaos.json", lambda: numbers("chaos.json")),
        "Compiled for slices that are not there": ("dryrun_*.json", dryrun), "Largest networks": ("dryrun_large256.json", largest),
        "What a run would take on accelerators": ("sizing.json", sizing),
        "Do the metrics move the right way?": ("metric_sanity*.json", metric_sanity), "The judge on real pictures": ("judge.json", judge),
    }  # fmt: skip
    text = "# Results\n\nGenerated from `results/` by `python benchmarks/results.py`; do not edit. What was tried and why: `LOG.md`.\n"
    for title, (pattern, section) in sections.items():
        if read(pattern) and (body := section()):
            text += f"\n## {title}\n\n{body}"
    (HERE / "RESULTS.md").write_text(text)


if __name__ == "__main__":
    main()
