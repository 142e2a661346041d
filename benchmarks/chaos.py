"""Kills runs of a small training at random moments and compares each with a run that was not disturbed.

python benchmarks/chaos.py [--runs 50] > benchmarks/results/chaos.json

A killed run (SIGKILL) is started again until it is complete. The moment is uniform over the time that the
undisturbed run takes, imports and compilation included. Every second run saves after every fifth step, so
that many kills fall into a save.
"""

import dataclasses
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from dallegan.io.cli import parse, run
from dallegan.optim import make_optimizer
from dallegan.run.checkpoint import load_state
from dallegan.run.machine import about
from dallegan.run.metrics_file import read_metrics
from dallegan.sampling import load
from dallegan.state import digest, init_state

ROOT = pathlib.Path(__file__).parent.parent
BATCH = 8
SMALL = f"""
    quickstart --steps 200 --batch {BATCH} --data.size 16 --text.vocab 600 --text.length 8 --text.width 16
    --model.width 16 --model.style 16 --model.noise 8 --model.blocks 1 --model.critic-widths 16 16
    --model.critic-blocks 0 1 --log.metrics 40 --log.samples 320 --log.evaluate 0
""".split()
EVERY = 5, 40  # steps between saves: of the runs with even numbers, and of those with odd ones


@dataclasses.dataclass(frozen=True)
class Args:
    """Kill and compare."""

    runs: int = 50
    seed: int = 0  # of the moments
    together: int = 2  # runs at a time


def final(workdir: pathlib.Path) -> str:
    """Returns the sha256 of a run's whole state: parameters, average, optimizer, counters."""
    model = load(workdir)
    optimizer = make_optimizer(model.gan, model.config.optim, model.config.steps)
    abstract = jax.eval_shape(lambda: init_state(model.gan, optimizer, model.config.seed))
    return digest(load_state(workdir, abstract))


def attempt(workdir: pathlib.Path, every: int, kill_after: float | None = None) -> tuple[bool, float]:
    """Starts the command once; returns whether it ended by itself, and its seconds."""
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, "--workdir", str(workdir)]
    command += ["--log.checkpoint", str(BATCH * every)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False, time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {errors}")
    return True, time.perf_counter() - start


def steps_done(workdir: pathlib.Path) -> tuple[int, int]:
    """Returns the step of the last line of metrics.jsonl and that of the newest checkpoint, or 0."""
    logged = [line["step"] for line in read_metrics(workdir / "metrics.jsonl")]
    saved = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    return max(logged, default=0), max(saved, default=0)


def main() -> None:
    """Kills, compares, and prints JSON."""
    args = parse(Args, "benchmarks/chaos.py")
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(args.together) as pool:
        folder = pathlib.Path(name)
        os.environ |= {  # most of a start is compilation, which is not what is tested
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/xla",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        attempt(folder / "first", 20)  # fills the compilation cache
        undisturbed = pool.map(lambda every: attempt(folder / f"undisturbed{every}", every)[1], EVERY)
        whole = dict(zip(EVERY, undisturbed, strict=True))
        wanted = final(folder / f"undisturbed{EVERY[0]}")

        def killed(i: int) -> dict[str, Any]:
            workdir, every = folder / str(i), EVERY[i % 2]
            moment = random.Random(f"{args.seed} {i}").uniform(0, whole[every])
            finished, spent = attempt(workdir, every, moment)
            logged, saved = steps_done(workdir)
            while not finished:
                finished, seconds = attempt(workdir, every)
                spent += seconds
            lost = round(spent - whole[every], 2)
            return {
                "saved_every": every,
                "logged": logged,
                "saved": saved,
                "seconds_lost": lost,
                "workdir": workdir,
            }

        rows = []
        for row in pool.map(killed, range(args.runs)):
            same = final(row.pop("workdir")) == wanted
            rows.append(row | {"same": same})
            print(json.dumps(rows[-1]), file=sys.stderr)
    lost = [row["seconds_lost"] for row in rows]
    report = {f"seconds_undisturbed_saving_every_{n}": round(seconds, 2) for n, seconds in whole.items()}
    report |= {
        "runs": len(rows),
        "identical": sum(row["same"] for row in rows),
        "seconds_lost_median": float(np.median(lost)),
        "seconds_lost_most": max(lost),
        "killed_before_the_first_line_of_metrics": sum(not row["logged"] for row in rows),
    }
    print(json.dumps(about() | report | {"each": rows}, indent=1))


if __name__ == "__main__":
    sys.exit(run(main))
