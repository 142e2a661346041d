"""Runs of a small training, each killed (SIGKILL) at a random moment and started again until it is done: does each end as if nothing had been?

python benchmarks/chaos.py [--runs 50] > benchmarks/results/chaos.json

The moment is uniform over the time that the undisturbed run takes, imports and compilation included; every second run saves after every fifth step, so
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

import numpy as np

from dallegan.io.cli import parse, run
from dallegan.run.machine import about
from dallegan.sampling import load, load_state
from dallegan.state import digest

ROOT = pathlib.Path(__file__).parent.parent
SMALL = [
    "quickstart", "--steps", "200", "--batch", "8", "--data.size", "16", "--text.vocab", "600", "--text.length", "8", "--text.width", "16",
    "--text.heads", "2", "--model.width", "16", "--model.style", "16", "--model.noise", "8", "--model.base", "4", "--model.blocks", "1",
    "--model.critic-widths", "16", "16", "--model.critic-blocks", "0", "1", "--log.metrics", "40", "--log.samples", "320", "--log.evaluate", "0",
]  # fmt: skip

EVERY = 5, 40  # steps between saves, in turns


@dataclasses.dataclass(frozen=True)
class Args:
    """Kill and compare."""

    runs: int = 50
    seed: int = 0  # of the moments
    together: int = 2  # runs at a time


def final(workdir: pathlib.Path) -> str:
    """sha256 of a run's whole state: parameters, average, optimizer, counters."""
    model = load(workdir)
    return digest(load_state(workdir, model.gan, model.config))


def attempt(workdir: pathlib.Path, every: int, kill_after: float | None = None) -> tuple[bool, float]:
    """One start of the command; whether it ended by itself, and its seconds."""
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, "--workdir", str(workdir), "--log.checkpoint", str(8 * every)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, told = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False, time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {told}")
    return True, time.perf_counter() - start


def steps_done(workdir: pathlib.Path) -> tuple[int, int]:
    """(the last step that the log tells of, the step of the newest checkpoint)."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines() if (workdir / "metrics.jsonl").exists() else []
    saved = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    return max([json.loads(line)["step"] for line in lines if line.endswith("}")], default=0), max(saved, default=0)


def main() -> None:
    """Kills, compares and prints JSON."""
    args = parse(Args, "benchmarks/chaos.py")
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(args.together) as pool:
        folder = pathlib.Path(name)
        # most of a start is compilation, which is not what is tested
        os.environ |= {"JAX_COMPILATION_CACHE_DIR": f"{folder}/xla", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        attempt(folder / "first", 20)  # fills the compilation cache
        whole = dict(zip(EVERY, pool.map(lambda every: attempt(folder / f"undisturbed{every}", every)[1], EVERY), strict=True))
        wanted = final(folder / f"undisturbed{EVERY[0]}")

        def struck(i: int) -> dict[str, Any]:
            workdir, every = folder / str(i), EVERY[i % 2]
            finished, spent = attempt(workdir, every, random.Random(f"{args.seed} {i}").uniform(0, whole[every]))
            logged, saved = steps_done(workdir)
            while not finished:
                finished, seconds = attempt(workdir, every)
                spent += seconds
            return {"saved_every": every, "logged": logged, "saved": saved, "seconds_lost": round(spent - whole[every], 2), "workdir": workdir}

        found = []
        for row in pool.map(struck, range(args.runs)):
            same = final(row.pop("workdir")) == wanted
            found.append(row | {"same": same})
            print(json.dumps(found[-1]), file=sys.stderr)
    lost = [run["seconds_lost"] for run in found]
    report = {f"seconds_undisturbed_saving_every_{n}": round(seconds, 2) for n, seconds in whole.items()} | {
        "runs": len(found),
        "identical": sum(run["same"] for run in found),
    }
    early = sum(not run["logged"] for run in found)
    report |= {"seconds_lost_median": float(np.median(lost)), "seconds_lost_most": max(lost), "killed_before_the_first_line_of_metrics": early}
    print(json.dumps(about() | report | {"each": found}, indent=1))


if __name__ == "__main__":
    sys.exit(run(main))
