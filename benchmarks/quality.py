"""Quality against seconds: trains a preset, for a wall-clock budget if one is given (schedules included), and measures what came of it.

python benchmarks/quality.py PRESET [--budget SECONDS] [--FIELD VALUE]... > benchmarks/results/quality_PRESET_SECONDS.json

The run goes to runs/quality-PRESET-SECONDS-SEED, unless --workdir says otherwise, and resumes there; a run of `train.py` is measured as it is.
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

from dallegan.config import Config, check, from_json
from dallegan.errors import UserError
from dallegan.evaluation.features import make_features
from dallegan.evaluation.measure import evaluate, table
from dallegan.io.cli import parse_config, run
from dallegan.loop import train
from dallegan.run.metrics_file import evaluated
from dallegan.run.processes import about, restart_with_huge_pages
from dallegan.sampling import load

POINTS = 12  # of the curve
WARMUP, MEASURED = 10, 60.0  # steps, and then seconds, that the speed is measured over
PICTURES = 2000  # of the final evaluation, of each split


def step_seconds(config: Config) -> float:
    """Mean wall seconds of a train step, with its data, over the minute after compilation: the first steps of a process are slower."""
    _, _, runner, batches = build(config)
    state, steps, start = runner.init(), 0, math.inf
    while time.perf_counter() - start < MEASURED:
        if steps == WARMUP:
            start = time.perf_counter()
        state, _ = runner.step(state, runner.put(next(batches)))
        jax.block_until_ready(state)
        steps += 1
    return (time.perf_counter() - start) / (steps - WARMUP)


def main() -> None:
    """Trains, measures, prints the table on stderr and JSON on stdout."""
    args, budget = sys.argv[1:], 0.0
    if "--budget" in args:
        i = args.index("--budget")
        try:
            budget = float(args[i + 1])
        except (ValueError, IndexError):
            raise UserError("--budget: takes seconds, for example: python benchmarks/quality.py quickstart --budget 1200") from None
        args = args[:i] + args[i + 2 :]
    config = parse_config(args, prog="quality.py")
    preset = pathlib.Path(config.workdir).name
    workdir = pathlib.Path(f"runs/quality-{preset}-{budget:.0f}-{config.seed}" if config.workdir == f"runs/{preset}" else config.workdir)
    check(config)
    if (workdir / "config.json").exists():
        old = from_json((workdir / "config.json").read_text())
        config = dataclasses.replace(config, steps=old.steps, workdir=str(workdir), log=old.log)  # `train` refuses what else differs
    else:
        steps = int(budget / step_seconds(config)) if budget else config.steps
        every = max(1, steps * config.batch // POINTS)
        log = dataclasses.replace(config.log, evaluate=every, metrics=every, samples=4 * every, checkpoint=4 * every)
        config = dataclasses.replace(config, steps=steps, workdir=str(workdir), log=log)
    with contextlib.redirect_stdout(sys.stderr):
        train(config)
    points = [{k: v for k, v in p.items() if k in ("images", "seconds") or "alignment" in k} for p in evaluated(workdir / "metrics.jsonl")]
    if not points or points[-1]["images"] != config.images:
        raise UserError(f"{workdir} was stopped before its end: the same command goes on")
    report, _ = evaluate(load(workdir), config, PICTURES, features=make_features())
    print(table(report), file=sys.stderr)
    size = {"budget_seconds": budget, "steps": config.steps, "batch": config.batch}
    print(json.dumps(about() | size | {"seconds": points[-1]["seconds"], "curve": points, "final": report}, indent=1))


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(run(main))
