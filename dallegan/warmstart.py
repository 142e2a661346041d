"""Fine-tuning: what may differ from the trained model, where its parameters go, how its images grow."""

import math
import operator
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from dallegan.config import Config, conflicts
from dallegan.errors import UserError
from dallegan.models.gan import Params
from dallegan.state import GanState


def free_settings(old: Config, new: Config) -> set[str]:
    """Returns the names of the settings in which a network may differ from the trained one that it continues.

    It may have more words, residual blocks and detail stages, a wider refinement, attention, a GRU's
    LayerNorm, longer captions, other shrinkage, and images whose side and patches are the same multiple of
    the old ones.
    """
    had, has = old.model, new.model
    free = {"text.vocab", "model.shrink"}  # shrinkage has no parameters, though it changes the images
    same_stages = len(has.critic_blocks) == len(had.critic_blocks)
    deeper = (
        has.blocks >= had.blocks
        and same_stages
        and all(map(operator.ge, has.critic_blocks, had.critic_blocks))
    )
    if deeper and has.refine >= had.refine:
        free |= {"model.blocks", "model.critic_blocks", "model.refine"}
    if not had.attention:
        free.add("model.attention")
    if has.detail[: len(had.detail)] == had.detail:
        free.add("model.detail")
    times = new.data.size // old.data.size
    grown = (has.patch, has.critic_patch) == (times * had.patch, times * had.critic_patch)
    if times > 1 and grown and has.recipe == "residual":
        free |= {"data.size", "model.patch", "model.critic_patch"}
    if new.text.encoder == "rnn":  # a GRU has no parameter per position
        free.add("text.length")
        if not old.text.prenorm:
            free.add("text.prenorm")
    return free


def check_origin(name: str, old: Config, new: Config) -> None:
    """Raises UserError if the network of `new` cannot continue the trained one, called `name`, of `old`."""
    free = free_settings(old, new)
    differ = {
        setting: pair
        for setting, pair in conflicts(old, new).items()
        if setting.startswith(("text.", "model.", "data.size")) and setting not in free
    }
    if differ:
        lines = "; ".join(f"{setting}: {a} -> {b}" for setting, (a, b) in differ.items())
        raise UserError(
            f"--init-from {name} is another network ({lines}): take its settings, or train from scratch"
        )


def start_from(state: GanState, params: Params) -> GanState:
    """Returns a fresh state with a trained model's parameters, its generator's also as the moving average.

    The network computes what the model did (Net2Net, arXiv 1511.05641), though it may have more: layers
    that the model lacks keep their initial values, which make them the identity (attention up to its
    LayerScale), and the model's layers get zero weights on new channels. New words are rows after the
    model's. There are two exceptions: a GRU that begins to read through a LayerNorm relearns its words in
    part, and other shrinkage changes the images.
    """
    # on the host, since arrays on one device do not combine with arrays on several
    trained = {path: np.asarray(x) for path, x in flax.traverse_util.flatten_dict(params).items()}
    flat: dict[tuple[str, ...], Any] = flax.traverse_util.flatten_dict(state.params)

    def take(path: tuple[str, ...], new: jax.Array) -> jax.Array:
        old = trained.get(path)
        if old is None or old.shape == new.shape:
            return jnp.array(new if old is None else old)  # a copy: a step donates its state, each array once
        grown = new.at[tuple(map(slice, old.shape))].set(old)
        if old.ndim < 2 or path[-1] == "embedding":  # nothing reads the rows of new words yet
            return grown
        return grown.at[..., old.shape[-2] :, : old.shape[-1]].set(0)

    params = flax.traverse_util.unflatten_dict({path: take(path, new) for path, new in flat.items()})
    return state.replace(params=params, ema=jax.tree.map(jnp.copy, params["generator"]))


def enlarge(params: Params, times: int) -> Params:
    """Returns parameters of the residual recipe for images and patches `times` as large on each side.

    The generator repeats each pixel in a square of times × times, and the discriminator takes the mean of
    such squares, so that both compute what they did. Growing as in arXiv 1710.10196, without its fading in.
    """
    if times == 1:
        return params
    flat: dict[tuple[str, ...], Any] = flax.traverse_util.flatten_dict(params)
    painted = flat["generator", "decoder", "head", "conv", "bias"].size  # p·p·3 numbers of a patch

    def spread(x: jax.Array, axis: int) -> jax.Array:
        """Repeats each pixel of a patch in a square: [..., p·p·3, ...] -> [..., (times·p)²·3, ...]."""
        side, x = math.isqrt(x.shape[axis] // 3), jnp.moveaxis(x, axis, -1)
        whole = x.reshape(*x.shape[:-1], side, side, 3).repeat(times, -3).repeat(times, -2)
        return jnp.moveaxis(whole.reshape(*x.shape[:-1], -1), -1, axis)

    for path, x in flat.items():
        match path:
            case ("generator", "decoder", *_, "head", "conv", _):
                flat[path] = spread(x, -1)
            case ("generator", "decoder", "refine", "down", "kernel"):  # reads features, then patches
                patches = spread(x[..., -painted:, :], -2) / times**2
                flat[path] = jnp.concatenate([x[..., :-painted, :], patches], -2)
            case (*_, "stem", "conv", "kernel"):
                flat[path] = spread(x, -2) / times**2
    return flax.traverse_util.unflatten_dict(flat)
