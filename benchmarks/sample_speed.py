"""Speed of sampling: from the shell to a PNG, the latency of one picture, and the best throughput.

python benchmarks/sample_speed.py [--model DIR] > benchmarks/results/sample_speed_DEVICE.json
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

import dallegan
from dallegan.commands.export import artifact
from dallegan.io.cli import parse, run
from dallegan.parallel import compiled
from dallegan.run.machine import about
from dallegan.sampling import DEFAULT, to_uint8

PROMPT = "一只棕色的大熊站在雪地里"
SAMPLE = pathlib.Path(__file__).parent.parent / "sample.py"


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure sampling."""

    model: str = DEFAULT
    repeats: int = 5  # of a run from the shell


def shell(model: str, repeats: int, cache: str | None) -> float:
    """Median seconds of `sample.py PROMPT --n 1`, with a compilation cache that is filled first, or with none."""
    times = []
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} if cache else {}
    for i in range(repeats + bool(cache)):
        with tempfile.TemporaryDirectory() as out:
            start = time.perf_counter()
            subprocess.run([sys.executable, SAMPLE, PROMPT, "--n", "1", "--model", model, "--out", out], env=environment, check=True, capture_output=True)
            if i or not cache:
                times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    """Measures and prints JSON."""
    args = parse(Args, "sample_speed.py")
    model = dallegan.load(args.model)
    with tempfile.TemporaryDirectory() as cache:
        result = {"shell_to_png_seconds": {"cold": round(shell(args.model, args.repeats, None), 2), "cached": round(shell(args.model, args.repeats, cache), 2)}}

    def seconds(call, repeats: int) -> list[float]:
        call()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return times

    def at_once(batch: int) -> float:
        tokens = np.repeat(model.tokenizer.encode([PROMPT]), batch, 0)
        noise = jnp.ones((batch, model.gan.model.noise))
        draw = compiled(lambda params: to_uint8(model.gan.synthesize(params, tokens, noise)))
        return batch / float(np.median(seconds(lambda: np.asarray(draw(model.params)), 7)))

    one = 1e3 * np.array(seconds(lambda: model.sample([PROMPT]), 100))
    result["one_picture_ms"] = {"p50": round(float(np.percentile(one, 50)), 2), "p95": round(float(np.percentile(one, 95)), 2)}
    exported = jax.jit(jax.export.deserialize(bytearray(artifact(model))).call)
    token, noise = model.tokenizer.encode([PROMPT]), np.ones((1, model.gan.model.noise), np.float32)
    alone = 1e3 * np.array(seconds(lambda: np.asarray(exported(token, noise)), 100))
    result["one_picture_exported_ms"] = {"p50": round(float(np.percentile(alone, 50)), 2), "p95": round(float(np.percentile(alone, 95)), 2)}
    batches = (1, 4, 16, 64, 256) if jax.default_backend() == "cpu" else (1, 16, 256, 1024, 4096)
    result["images_per_second"] = {str(b): round(at_once(b), 1) for b in batches}
    print(json.dumps(about() | {"model": args.model, "size": model.config.data.size} | result, indent=2))


if __name__ == "__main__":
    sys.exit(run(main))
