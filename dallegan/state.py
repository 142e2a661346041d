"""Everything that a run knows, in one pytree, and the random streams that follow from it."""

import enum
import hashlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dallegan.models.gan import Gan, Params


class GanState(flax.struct.PyTreeNode):
    """State of training after `step` steps. Data order and all random numbers follow from (seed, step)."""

    seed: jax.Array  # u32[], an array so that runs with other seeds need no compilation
    step: jax.Array  # i32[], steps taken
    params: Params  # {"generator": ..., "discriminator": ...}, float32
    ema: Any  # moving average of params["generator"]
    opt: Any  # the optimizer's state
    skipped: jax.Array  # i32[], steps that were left out because a loss or gradient was not finite
    skipped_in_a_row: jax.Array  # i32[]


class Stream(enum.IntEnum):
    """What a random key is for. The numbers are part of a run's identity: append, never renumber."""

    INIT = 0
    NOISE = 1
    # 2 is sampling's (dallegan.sampling)
    AUGMENT = 3
    NOISE_AGAIN = 4


def stream(seed: int | jax.Array, step: int | jax.Array, name: Stream) -> jax.Array:
    """Returns the key of a stream at `step`, the same on any process and number of devices."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step), int(name))


def init_state(gan: Gan, optimizer: optax.GradientTransformation, seed: int) -> GanState:
    """Returns the state of a run that has not begun; `seed` is in [0, 2^32)."""
    seed_ = jnp.asarray(seed, jnp.uint32)
    params = gan.init(stream(seed_, 0, Stream.INIT))
    zero = jnp.zeros((), jnp.int32)
    return GanState(
        seed=seed_,
        step=zero,
        params=params,
        ema=jax.tree.map(jnp.copy, params["generator"]),
        opt=optimizer.init(params),
        skipped=jnp.copy(zero),  # copies, since a step donates its state and may donate each array once
        skipped_in_a_row=jnp.copy(zero),
    )


def digest(state: GanState) -> str:
    """Returns the sha256 of all arrays of a state: equal for two runs that are equal to the last bit."""
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(state))).hexdigest()
