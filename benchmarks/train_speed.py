"""Speed of one train step against the machine's own matrix-multiply rate, both measured in one run.

python benchmarks/train_speed.py [PRESET] [--FIELD VALUE]... > benchmarks/results/train_speed_PRESET_DEVICE.json
"""

import datetime
import importlib.metadata
import json
import platform
import statistics
import sys
import time

import jax
import jax.numpy as jnp

from dallegan.cli import parse_config, run
from dallegan.data.pipeline import make_batches, make_dataset, make_source, make_tokenizer
from dallegan.optim import optimizer
from dallegan.parallel import Runner
from dallegan.runtime import restart_with_huge_pages
from dallegan.sampling import make_gan
from dallegan.state import init_state
from dallegan.steps import make_train_step

STEPS = 30


def median_seconds(call, repeats: int) -> float:
    """Median wall seconds of a call that returns arrays."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def gemm_rate(dtype, n: int) -> float:
    """FLOP/s of an n x n x n matrix product."""
    a = jnp.ones((n, n), dtype)
    product = jax.jit(lambda a: a @ a)
    return 2 * n**3 / median_seconds(lambda: product(a), 15)


def cpu_name() -> str:
    """The processor's name, where the system tells."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main() -> None:
    """Measures and prints JSON."""
    config = parse_config(sys.argv[1:], prog="train_speed.py")
    source = make_source(config)
    tokenizer = make_tokenizer(source, config)
    gan, adam = make_gan(config, tokenizer.size), optimizer(config)
    runner = Runner(config, lambda: init_state(gan, adam, config), lambda axis: make_train_step(gan, adam, config, axis))
    batches = make_batches(make_dataset(source, tokenizer, config), config, 0)
    state, batch = runner.init(), runner.put(next(batches))
    start = time.perf_counter()
    runner.compile(state, batch)
    compiled = time.perf_counter() - start

    cpu = jax.default_backend() == "cpu"
    before = gemm_rate(gan.dtype, 2048 if cpu else 8192)
    for _ in range(3):
        state, _ = runner.step(state, batch)
    jax.block_until_ready(state)
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        state, _ = runner.step(state, batch)
        jax.block_until_ready(state)
        times.append(time.perf_counter() - start)
    step = statistics.median(times)
    after = gemm_rate(gan.dtype, 2048 if cpu else 8192)
    gemm, rate = (before + after) / 2, runner.flops() / step
    count = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in runner.abstract.params.items()}
    result = {
        "command": f"python benchmarks/train_speed.py {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processor": cpu_name(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "dtype": str(gan.dtype),
        "parameters": count,
        "compile_seconds": round(compiled, 2),
        "step_ms": round(1e3 * step, 1),
        "images_per_second": round(config.batch / step, 1),
        "gflop_per_image": round(runner.flops() / config.batch / 1e9, 3),
        "gflop_per_second": round(rate / 1e9, 1),
        "gemm_gflop_per_second": round(gemm / 1e9, 1),
        "share_of_gemm": round(rate / gemm, 3),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(run(main))
