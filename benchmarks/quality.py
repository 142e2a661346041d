"""Quality against seconds: trains a preset and measures the model.

python benchmarks/quality.py PRESET [--budget SECONDS] [--FIELD VALUE]... > FILE

With a budget, the run has as many steps as fit in it, and its schedules shrink with them. The run is in
runs/quality-PRESET-SECONDS-SEED unless --workdir says otherwise, and resumes there. A finished run of
`train.py` is measured as it is.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import sys
import time

import jax
from train_speed import build

from dallegan.commands.evaluate import table
from dallegan.config import Config, check, from_json
from dallegan.errors import UserError
from dallegan.evaluation.drawing import measured_sources
from dallegan.evaluation.features import make_features
from dallegan.evaluation.measure import evaluate
from dallegan.io.cli import parse_config, run
from dallegan.loop import train
from dallegan.run.machine import about, restart_with_huge_pages
from dallegan.run.metrics_file import evaluated
from dallegan.sampling import load

POINTS = 12  # of the curve
WARMUP = 10  # steps before the speed is measured
MEASURED = 60.0  # seconds that the speed is measured over
IMAGES = 2000  # of the final evaluation, of each split


def step_seconds(config: Config) -> float:
    """Returns the mean wall-clock seconds of a train step with its data, over a minute.

    The first steps after compilation are slower and do not count.
    """
    _, _, runner, batches = build(config)
    state, steps, start = runner.init(), 0, math.inf
    while time.perf_counter() - start < MEASURED:
        if steps == WARMUP:
            start = time.perf_counter()
        state, _ = runner.step(state, runner.put(next(batches)))
        jax.block_until_ready(state)
        steps += 1
    return (time.perf_counter() - start) / (steps - WARMUP)


def split_budget(args: list[str]) -> tuple[list[str], float]:
    """Returns the command line without --budget, and the budget in seconds, or 0 if there is none."""
    if "--budget" not in args:
        return args, 0.0
    i = args.index("--budget")
    try:
        return args[:i] + args[i + 2 :], float(args[i + 1])
    except (ValueError, IndexError):
        example = "python benchmarks/quality.py quickstart --budget 1200"
        raise UserError(f"--budget: takes seconds, for example: {example}") from None


def make_config(args: list[str], budget: float) -> Config:
    """Returns the configuration to train: a run that was begun keeps its steps and its log settings."""
    config = parse_config(args, prog="quality.py")
    preset = pathlib.Path(config.workdir).name
    if config.workdir == f"runs/{preset}":
        config = dataclasses.replace(config, workdir=f"runs/quality-{preset}-{budget:.0f}-{config.seed}")
    check(config)
    path = pathlib.Path(config.workdir) / "config.json"
    if path.exists():
        old = from_json(path.read_text())
        return dataclasses.replace(config, steps=old.steps, log=old.log)  # `train` refuses other differences
    steps = int(budget / step_seconds(config)) if budget else config.steps
    every = max(1, steps * config.batch // POINTS)
    log = dataclasses.replace(
        config.log, evaluate=every, metrics=every, samples=4 * every, checkpoint=4 * every
    )
    return dataclasses.replace(config, steps=steps, log=log)


def main() -> None:
    """Trains, measures, prints the table on stderr and JSON on stdout."""
    args, budget = split_budget(sys.argv[1:])
    config = make_config(args, budget)
    with contextlib.redirect_stdout(sys.stderr):
        train(config)
    lines = evaluated(pathlib.Path(config.workdir) / "metrics.jsonl")
    if not lines or lines[-1]["images"] != config.images:
        raise UserError(f"{config.workdir} was stopped before its end: the same command resumes it")
    is_shown = lambda name: name in ("images", "seconds") or "alignment" in name
    curve = [{name: value for name, value in line.items() if is_shown(name)} for line in lines]
    model, sources = load(config.workdir), measured_sources(config)
    report, _ = evaluate(model, config.data, sources, IMAGES, features=make_features())
    print(table(report), file=sys.stderr)
    size = {"budget_seconds": budget, "steps": config.steps, "batch": config.batch}
    result = {"seconds": lines[-1]["seconds"], "curve": curve, "final": report}
    print(json.dumps(about() | size | result, indent=1))


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(run(main))
