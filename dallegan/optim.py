"""Optimizers and schedules. Progress in [0, 1] is the fraction of the run's images that were seen."""

import math
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dallegan.config import OptimConfig
from dallegan.models.gan import Gan

EPSILON = 1e-8  # added to the root of Adam's second moment


def cosine(start: float, end: float, progress: jax.Array | float) -> jax.Array:
    """Cosine decay from `start` at progress 0 to `end` at progress 1."""
    return end + (start - end) * 0.5 * (1 + jnp.cos(math.pi * jnp.clip(progress, 0, 1)))


def learning_rate(optim: OptimConfig, lr: tuple[float, float], step: jax.Array, steps: int) -> jax.Array:
    """Learning rate at `step` of `steps`: linear warm-up times cosine decay."""
    return cosine(*lr, step / steps) * jnp.minimum(1.0, (step + 1) / max(1.0, optim.warmup * steps))


def make_optimizer(gan: Gan, optim: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Returns Adam (arXiv 1412.6980) for both players, each with its own rate (arXiv 1706.08500).

    With `muon` above 0, Muon trains the hidden kernels (`gan.hidden`) and Adam the rest.
    """

    def player(lr: tuple[float, float]) -> optax.GradientTransformation:
        rest = optax.chain(adam(optim, lr, steps), scale_by_fan_in(optim.fan))
        if not optim.muon:
            return rest
        label = lambda path, _: "hidden" if tuple(key.key for key in path) in gan.hidden else "rest"
        labels = lambda params: jax.tree_util.tree_map_with_path(label, params)
        return optax.multi_transform({"hidden": muon(optim, lr, steps), "rest": rest}, labels)

    players: dict[Hashable, Any] = {"generator": player(optim.lr), "discriminator": player(optim.lr_d)}
    return optax.multi_transform(players, {name: name for name in players})


def adam(optim: OptimConfig, lr: tuple[float, float], steps: int) -> optax.GradientTransformation:
    """Adam at the run's learning rate; with β1 = 0, RMSProp with bias correction, which keeps one moment."""
    rate, (beta1, beta2) = lambda step: learning_rate(optim, lr, step, steps), optim.betas
    if beta1:
        return optax.adam(rate, beta1, beta2, EPSILON)
    return optax.rmsprop(rate, beta2, EPSILON, eps_in_sqrt=False, bias_correction=True)


def scale_by_fan_in(fan: int) -> optax.GradientTransformation:
    """Multiplies the update of each kernel with a fan-in above `fan` by fan / fan-in; 0 changes nothing.

    Adam moves all weights of a kernel alike, so one step moves the layer's output in proportion to its
    fan-in. The factor holds wide layers back (arXiv 2203.03466, table 3): the discriminator then bears
    twice the learning rate (benchmarks/LOG.md).
    """

    def one(path: Any, update: jax.Array) -> jax.Array:
        is_kernel = fan and getattr(path[-1], "key", "") == "kernel"
        return update * min(1.0, fan / math.prod(update.shape[:-1])) if is_kernel else update

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(one, updates))


def muon(optim: OptimConfig, lr: tuple[float, float], steps: int) -> optax.GradientTransformation:
    """Muon (https://kellerjordan.github.io/posts/muon) at `optim.muon` times the run's learning rate.

    Each update is the averaged gradient with equal singular values, times sqrt(fan-out / fan-in) if that is
    above 1, so that a layer's output moves alike at any width (arXiv 2409.20325).
    """

    def one(update: jax.Array) -> jax.Array:
        x = update.reshape(-1, update.shape[-1])
        return (orthogonalize(x) * max(1.0, x.shape[1] / x.shape[0]) ** 0.5).reshape(update.shape)

    rate = lambda step: optim.muon * learning_rate(optim, lr, step, steps)
    # little momentum: it turns a game of simultaneous moves away from its equilibrium (arXiv 1807.04740)
    return optax.chain(
        optax.ema(0.5),
        optax.stateless(lambda updates, _: jax.tree.map(one, updates)),
        optax.scale_by_learning_rate(rate),
    )


def orthogonalize(x_MN: jax.Array) -> jax.Array:
    """Brings the singular values of f32[M, N] near 1 (0.7 to 1.2), by Muon's five Newton-Schulz steps.

    Works on the Gram matrix (https://tridao.me/blog/2026/gram-newton-schulz): each step multiplies X by a
    polynomial of XᵀX, and all of them are first joined to one N × N matrix. For a 3×3 kernel that takes a
    third of the products of optax.contrib.scale_by_muon. Float32 throughout, as a Gram matrix squares
    singular values.
    """
    if x_MN.shape[0] < x_MN.shape[1]:
        return orthogonalize(x_MN.T).T
    a, b, c = 3.4445, -4.775, 2.0315
    with jax.default_matmul_precision("float32"):
        x_MN = x_MN / (jnp.linalg.norm(x_MN) + 1e-8)  # so that no singular value is above 1
        gram, whole = x_MN.T @ x_MN, jnp.eye(x_MN.shape[1])
        for _ in range(5):
            step = a * jnp.eye(x_MN.shape[1]) + b * gram + c * gram @ gram
            gram, whole = step @ gram @ step, whole @ step
        return x_MN @ whole


def ema_decay(optim: OptimConfig, step: jax.Array, steps: int, batch: int) -> jax.Array:
    """Decay of the generator's moving average at `step`: 2^(-batch / half-life).

    The half-life ramps up with the images seen (`ema_rampup` of arXiv 2006.06676) to `optim.ema` of the run.
    """
    half_life = jnp.minimum(optim.ema * steps * batch, 0.1 * (step + 1) * batch)
    return 0.5 ** (batch / half_life)
