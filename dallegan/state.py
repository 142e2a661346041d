"""All that a run knows, in one pytree."""

import hashlib
import math
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
    """A fresh state with a trained model's parameters, its generator's for the moving average too.

    The network may have more residual blocks than the model, a wider refinement, attention or stages of detail. Layers that the model lacks keep their
    initial values, which make them the identity (attention up to its LayerScale), and the model's own layers have zero weights on the new channels; so the
    network computes what the model did (Net2Net, arXiv 1511.05641). New words are rows behind the model's. There are two exceptions: a GRU that begins to
    read through a LayerNorm computes something else, and learns its words anew in part; and other shrinkage makes another picture of what is painted.
    """
    # on the host, since what is whole on one device cannot meet what lies on several
    trained = {path: np.asarray(x) for path, x in flax.traverse_util.flatten_dict(params).items()}
    flat: dict[tuple[str, ...], Any] = flax.traverse_util.flatten_dict(state.params)

    def take(path: tuple[str, ...], new: jax.Array) -> jax.Array:
        old = trained.get(path)
        if old is None or old.shape == new.shape:
            return jnp.array(new if old is None else old)  # a copy: a step donates its state, each array once
        grown = new.at[tuple(map(slice, old.shape))].set(old)
        if old.ndim < 2 or path[-1] == "embedding":  # new words are new rows, which nothing else reads
            return grown
        return grown.at[..., old.shape[-2] :, : old.shape[-1]].set(0)

    params = flax.traverse_util.unflatten_dict({path: take(path, new) for path, new in flat.items()})
    return state.replace(params=params, ema=jax.tree.map(jnp.copy, params["generator"]))


def enlarge(params: Params, times: int) -> Params:
    """Parameters of the residual recipe for pictures and patches `times` as large on each side. The generator repeats each pixel in a square of
    times × times, and the discriminator takes the mean of such squares, so that both compute what they did; growing as in arXiv 1710.10196, without a
    phase of fading in."""
    if times == 1:
        return params
    flat: dict[tuple[str, ...], Any] = flax.traverse_util.flatten_dict(params)
    painted = flat["generator", "decoder", "head", "conv", "bias"].size  # p·p·3 numbers of a patch

    def spread(x: jax.Array, axis: int) -> jax.Array:
        """[..., p·p·3, ...] -> [..., (times·p)·(times·p)·3, ...]: what a patch has of each pixel, for all pixels in its place."""
        side, x = math.isqrt(x.shape[axis] // 3), jnp.moveaxis(x, axis, -1)
        whole = x.reshape(*x.shape[:-1], side, side, 3).repeat(times, -3).repeat(times, -2)
        return jnp.moveaxis(whole.reshape(*x.shape[:-1], -1), -1, axis)

    for path, x in flat.items():
        match path:
            case ("generator", "decoder", *_, "head", "conv", _):
                flat[path] = spread(x, -1)
            case ("generator", "decoder", "refine", "down", "kernel"):  # reads features, then patches
                flat[path] = jnp.concatenate([x[..., :-painted, :], spread(x[..., -painted:, :], -2) / times**2], -2)
            case (*_, "stem", "conv", "kernel"):
                flat[path] = spread(x, -2) / times**2
    return flax.traverse_util.unflatten_dict(flat)


def digest(state: GanState) -> str:
    """sha256 of all arrays of a state that this process can see whole: equal where two runs are, to the last bit."""
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(state))).hexdigest()
