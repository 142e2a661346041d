"""How programs are compiled: XLA's options and the dtype of the computation, by device."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TRAIN: dict[str, Any] = {
    # XLA's YNNPACK fusions halve the speed of a 3×3 convolution's weight gradient, and win for plain products
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
    # compiles in 0.9 times the time to equally fast code (benchmarks/LOG.md, for both)
    "xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE",
}
# compiles in two thirds of the time; as fast if convolutions and matrix products dominate (benchmarks/LOG.md)
SAMPLE: dict[str, Any] = TRAIN | {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}
# for programs that run once: LLVM optimizes nothing
ONCE: dict[str, Any] = SAMPLE | {"xla_backend_optimization_level": 0}


def options(wanted: dict[str, Any]) -> dict[str, Any]:
    """Returns those of `wanted` that this version of XLA knows on a CPU; none on other devices."""
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in wanted.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options={name: value})
    except Exception:  # the type of an unknown option's exception is not stable
        return False
    return True


@functools.cache
def jit_sample(function: Callable[..., Any], static: tuple[int, ...] = ()) -> Callable[..., Any]:
    """Returns `function` under jit, compiled for a few hundred forward calls (`SAMPLE`)."""
    return jax.jit(function, static_argnums=static, compiler_options=options(SAMPLE))


def chunks(total: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the rows of each chunk of `total` rows, and how many of them count.

    Every chunk has `size` rows, so that one program is compiled for all of them: the last chunk is filled up
    with the last row.
    """
    for start in range(0, total, size):
        yield np.minimum(np.arange(start, start + size), total - 1), min(size, total - start)


def compute_dtype(precision: str) -> Any:
    """Returns the dtype of the computation; "auto" is bfloat16 on GPU and TPU, float32 on CPU."""
    if precision == "auto":
        precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(precision)
