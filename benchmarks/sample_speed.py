"""Speed of sampling: from the shell to a PNG, the latency of one image, and the throughput by batch size.

python benchmarks/sample_speed.py [--model DIR] > benchmarks/results/sample_speed_DEVICE.json
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

import dallegan
from dallegan.commands import ModelName
from dallegan.commands.export import artifact
from dallegan.compile import jit_sample
from dallegan.io.cli import parse, run
from dallegan.run.machine import about
from dallegan.sampling import DEFAULT, Model, to_uint8

PROMPT = "一只棕色的大熊站在雪地里"
BATCHES = {"cpu": (1, 4, 16, 64, 256)}
LARGE_BATCHES = (1, 16, 256, 1024, 4096)  # of other devices


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure sampling."""

    model: ModelName = DEFAULT
    repeats: int = 5  # of a run from the shell


def shell(model: str, repeats: int, cache: str | None) -> float:
    """Returns the median seconds of `dallegan sample PROMPT --n 1`.

    The compilation cache is the folder `cache`, which one more run fills first; None is no cache.
    """
    times = []
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    if cache:
        environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "dallegan", "sample", PROMPT, "--n", "1", "--model", model]
    for i in range(repeats + bool(cache)):
        with tempfile.TemporaryDirectory() as out:
            start = time.perf_counter()
            subprocess.run([*command, "--out", out], env=environment, check=True, capture_output=True)
            if i or not cache:
                times.append(time.perf_counter() - start)
    return float(np.median(times))


def seconds(call: Callable[[], Any], repeats: int) -> list[float]:
    """Returns the seconds of each of `repeats` calls, after a first one that compiles."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def percentiles(call: Callable[[], Any]) -> dict[str, float]:
    """Returns the median and the 95th percentile of 100 calls, in milliseconds."""
    times = 1e3 * np.array(seconds(call, 100))
    return {f"p{p}": round(float(np.percentile(times, p)), 2) for p in (50, 95)}


def throughput(model: Model, batch: int) -> float:
    """Returns images per second in batches of that size."""
    tokens = np.repeat(model.tokenizer.encode([PROMPT]), batch, 0)
    noise = jnp.ones((batch, model.gan.model.noise))
    draw = jit_sample(lambda params: to_uint8(model.gan.synthesize(params, tokens, noise)))
    return round(batch / float(np.median(seconds(lambda: np.asarray(draw(model.params)), 7))), 1)


def main() -> None:
    """Measures and prints JSON."""
    args = parse(Args, "benchmarks/sample_speed.py")
    model = dallegan.load(args.model)
    with tempfile.TemporaryDirectory() as cache:
        cold, cached = (round(shell(args.model, args.repeats, folder), 2) for folder in (None, cache))
    exported = jax.jit(jax.export.deserialize(bytearray(artifact(model))).call)
    token, noise = model.tokenizer.encode([PROMPT]), np.ones((1, model.gan.model.noise), np.float32)
    batches = BATCHES.get(jax.default_backend(), LARGE_BATCHES)
    result = {
        "model": args.model,
        "size": model.config.data.size,
        "shell_to_png_seconds": {"cold": cold, "cached": cached},
        "one_picture_ms": percentiles(lambda: model.sample([PROMPT])),
        "one_picture_exported_ms": percentiles(lambda: np.asarray(exported(token, noise))),
        "images_per_second": {str(batch): throughput(model, batch) for batch in batches},
    }
    print(json.dumps(about() | result, indent=2))


if __name__ == "__main__":
    sys.exit(run(main))
