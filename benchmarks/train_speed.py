"""Measures the speed of one train step against the machine's own matrix-multiply rate, in one run.

    python benchmarks/train_speed.py [PRESET] [--FIELD VALUE]... > FILE

FILE is benchmarks/results/train_speed_PRESET_DEVICE.json.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator

import hlo
import jax
import jax.numpy as jnp
import optax

from dallegan import losses
from dallegan.compile import TRAIN, options
from dallegan.config import Config
from dallegan.data.pipeline import HostBatch, make_batches, make_dataset, make_source, make_tokenizer
from dallegan.errors import UserError
from dallegan.io.cli import parse_config, run
from dallegan.models.gan import Gan
from dallegan.models.layers import to_float
from dallegan.optim import make_optimizer
from dallegan.parallel import Runner, make_runner
from dallegan.run.machine import about, restart_with_huge_pages
from dallegan.sampling import make_gan
from dallegan.state import GanState
from dallegan.steps import Batch

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


def parts(
    gan: Gan, adam: optax.GradientTransformation, config: Config, state: GanState, batch: Batch
) -> dict[str, float]:
    """Returns milliseconds of the parts of a step, each compiled alone; the rest is backward passes."""
    tokens, image, z = batch["tokens"], to_float(batch["image"]), jnp.ones((config.batch, gan.model.noise))
    stride = round(1 / config.loss.penalty_share)

    def penalties(params):
        text = jax.tree.map(lambda x: jnp.concatenate([x[::stride]] * 2), gan.encode_caption(params, tokens))
        few = jnp.concatenate([image[::stride]] * 2)
        return jnp.sum(
            losses.gradient_penalty(lambda x: gan.score(params, gan.image_features(params, x), text), few)
        )

    def update(state, grads):
        updates, opt = adam.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        return params, opt, optax.incremental_update(params["generator"], state.ema, 0.01)

    calls = {
        "generator_forward": (gan.synthesize, state.params, tokens, z),
        "discriminator_forward": (
            lambda p, x: gan.discriminate(p, x, jnp.concatenate([tokens] * 2)),
            state.params,
            jnp.concatenate([image] * 2),
        ),
        "penalties_and_gradient": (jax.grad(penalties), state.params),
        "update": (update, state, state.params),
    }
    if not max(config.loss.gamma):
        del calls["penalties_and_gradient"]
    times = {}
    for name, (function, *args) in calls.items():
        compiled = jax.jit(function).lower(*args).compile(compiler_options=options(TRAIN))
        times[name] = round(1e3 * median_seconds(lambda compiled=compiled, args=args: compiled(*args), 10), 1)
    return times


def build(config: Config) -> tuple[Gan, optax.GradientTransformation, Runner, Iterator[HostBatch]]:
    """What a run is made of."""
    source = make_source(config)
    tokenizer = make_tokenizer(source, config)
    gan = make_gan(config, tokenizer.size)
    adam = make_optimizer(gan, config.optim, config.steps)
    runner = make_runner(gan, adam, config)
    return gan, adam, runner, make_batches(make_dataset(source, tokenizer, config), config, 0)


def main() -> None:
    """Measures and prints JSON."""
    config = parse_config(sys.argv[1:], prog="train_speed.py")
    if config.parallel.strategy == "pmap":
        raise UserError("--parallel.strategy pmap: measure jit, whose step is the same")
    if config.parallel.accumulate > 1:
        raise UserError(
            "--parallel.accumulate: XLA counts the operations of one part alone; measure a step of one part"
        )
    gan, adam, runner, batches = build(config)
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
    gemm, rate = (before + after) / 2, hlo.flops(runner.executable) / step
    waited = 0.0
    start = time.perf_counter()
    for _ in range(STEPS):
        state, _ = runner.step(state, batch)
        since = time.perf_counter()
        batch = runner.put(next(batches))
        waited += time.perf_counter() - since
        jax.block_until_ready(state)
    data_wait = waited / (time.perf_counter() - start)
    split = parts(gan, adam, config, runner.view(state), batch)
    split["backward_and_rest"] = round(1e3 * step - sum(split.values()), 1)
    count = {
        name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in runner.abstract.params.items()
    }
    result = about() | {
        "dtype": str(gan.dtype),
        "parameters": count,
        "compile_seconds": round(compiled, 2),
        "step_ms": round(1e3 * step, 1),
        "step_parts_ms": split,
        "data_wait_share": round(data_wait, 4),
        "memory_mb": round(hlo.planned_bytes(runner.executable) / 1e6),
        "images_per_second": round(config.batch / step, 1),
        "gflop_per_image": round(hlo.flops(runner.executable) * jax.device_count() / config.batch / 1e9, 3),
        "gflop_per_second": round(rate / 1e9, 1),
        "gemm_gflop_per_second": round(gemm / 1e9, 1),
        "share_of_gemm": round(rate / gemm, 3),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(run(main))
