"""All that a run knows, in one pytree."""

import hashlib
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dallegan.config import Config
from dallegan.models.gan import Gan, Params
from dallegan.rng import Stream, stream


class GanState(flax.struct.PyTreeNode):
    """State of training after `step` steps; the data order and every random number follow from (seed, step)."""

    seed: jax.Array  # u32[]; here and not in the program, so that runs of other seeds need no compilation
    step: jax.Array  # i32[], steps taken
    params: Params  # {"generator": ..., "discriminator": ...}, float32
    ema: Any  # moving average of params["generator"]
    opt: Any  # the optimizer's
    skipped: jax.Array  # i32[], steps whose update was not finite and was left out
    skipped_in_a_row: jax.Array  # i32[]


def init_state(gan: Gan, optimizer: optax.GradientTransformation, config: Config) -> GanState:
    """The state of a run that has not begun."""
    seed = jnp.asarray(config.seed, jnp.uint32)
    params = gan.init(stream(seed, 0, Stream.INIT))
    zero = jnp.zeros((), jnp.int32)
    return GanState(
        seed=seed,
        step=zero,
        params=params,
        ema=jax.tree.map(jnp.copy, params["generator"]),
        opt=optimizer.init(params),
        skipped=jnp.copy(zero),
        skipped_in_a_row=jnp.copy(zero),
    )


def start_from(state: GanState, params: Params) -> GanState:
    """A state that has not begun, with the parameters of a trained model, whose generator is the moving average too.

    The network may have more residual blocks than the model. They stay as they were initialized, the identity, with their own columns of the modulations
    behind the model's; so the network draws and judges as the model did (Net2Net, arXiv 1511.05641).
    """
    trained: dict[tuple[str, ...], Any] = flax.traverse_util.flatten_dict(params)
    flat: dict[tuple[str, ...], Any] = flax.traverse_util.flatten_dict(state.params)

    def take(path: tuple[str, ...], new: jax.Array) -> jax.Array:
        old = trained.get(path, new)
        # a copy: a step donates its state, each array once
        return jnp.copy(old) if old.shape == new.shape else new.at[tuple(map(slice, old.shape))].set(old)

    params = flax.traverse_util.unflatten_dict({path: take(path, new) for path, new in flat.items()})
    return state.replace(params=params, ema=jax.tree.map(jnp.copy, params["generator"]))


def digest(state: GanState) -> str:
    """sha256 of all arrays of a state that this process can see whole: equal where two runs are, to the last bit."""
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(state))).hexdigest()
