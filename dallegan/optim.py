"""Optimizers and schedules. A schedule is a function of progress in [0, 1], the share of the run's images seen."""

import math
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dallegan.config import Config

HIDDEN = ("residual", "down", "subpixel")  # layers of the trunks that Muon is for: neither first nor last, neither embedding nor reader


def cosine(start: float, end: float, progress: jax.Array | float) -> jax.Array:
    """From start to end along half a cosine."""
    return end + (start - end) * 0.5 * (1 + jnp.cos(math.pi * jnp.clip(progress, 0, 1)))


def optimizer(config: Config) -> optax.GradientTransformation:
    """Adam (arXiv 1412.6980) for both players, each with its own learning rate (arXiv 1706.08500); with `optim.muon`, Muon for their hidden kernels."""
    players: dict[Hashable, Any] = {"generator": player(config, config.optim.lr), "discriminator": player(config, config.optim.lr_d)}
    return optax.multi_transform(players, {name: name for name in players})


def player(config: Config, lr: tuple[float, float]) -> optax.GradientTransformation:
    """The rule for the parameters of one player."""
    rest = optax.chain(adam(config, lr), scale_by_fan_in(config.optim.fan))
    if not config.optim.muon:
        return rest

    label = lambda params: jax.tree_util.tree_map_with_path(lambda path, _: "hidden" if is_hidden(path) else "rest", params)
    return optax.multi_transform({"hidden": muon(config, lr), "rest": rest}, label)


def is_hidden(path: Any) -> bool:
    """Whether a parameter, by its path in the tree, is a kernel of a trunk's hidden layer."""
    *layers, name = (step.key for step in path)
    return name == "kernel" and "encoder" not in layers and any(layer.startswith(HIDDEN) for layer in layers)


def scale_by_fan_in(fan: int) -> optax.GradientTransformation:
    """Multiplies the update of each kernel of a fan-in above `fan` by fan / fan-in; 0 for none.

    Adam moves all weights of a kernel alike, so that one step moves the layer's output in proportion to its fan-in. Wide
    layers are held back (arXiv 2203.03466, table 3): the discriminator then bears twice the learning rate (benchmarks/LOG.md).
    """

    def one(path: Any, update: jax.Array) -> jax.Array:
        is_kernel = fan and getattr(path[-1], "key", "") == "kernel"
        return update * min(1.0, fan / math.prod(update.shape[:-1])) if is_kernel else update

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(one, updates))


def muon(config: Config, lr: tuple[float, float]) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): each update is the gradient's average with its singular values made equal,
    times sqrt(fan-out / fan-in) where that is above 1, so that a layer's output moves alike at any width (arXiv 2409.20325)."""

    def one(update: jax.Array) -> jax.Array:
        x = update.reshape(-1, update.shape[-1])
        return (orthogonalize(x) * max(1.0, x.shape[1] / x.shape[0]) ** 0.5).reshape(update.shape)

    rate = lambda step: config.optim.muon * learning_rate(config, lr, step)
    # little momentum: it turns a game of simultaneous moves away from its equilibrium (arXiv 1807.04740)
    return optax.chain(optax.ema(0.5), optax.stateless(lambda updates, _: jax.tree.map(one, updates)), optax.scale_by_learning_rate(rate))


def orthogonalize(x_MN: jax.Array) -> jax.Array:
    """f32[M, N] -> f32[M, N]: a matrix with its singular values brought near 1 (0.7 to 1.2), by five steps of Newton and Schulz with Muon's coefficients.

    On the Gram matrix (https://tridao.me/blog/2026/gram-newton-schulz): each step multiplies X by a polynomial of XᵀX, and all of them become one N × N
    matrix first, at a third of the products that a 3×3 kernel takes in optax.contrib.scale_by_muon. In full float32, as a Gram matrix has the squares of the
    singular values.
    """
    if x_MN.shape[0] < x_MN.shape[1]:
        return orthogonalize(x_MN.T).T
    a, b, c = 3.4445, -4.775, 2.0315
    with jax.default_matmul_precision("float32"):
        x_MN = x_MN / (jnp.linalg.norm(x_MN) + 1e-8)  # no singular value is above 1, then
        gram, whole = x_MN.T @ x_MN, jnp.eye(x_MN.shape[1])
        for _ in range(5):
            step = a * jnp.eye(x_MN.shape[1]) + b * gram + c * gram @ gram
            gram, whole = step @ gram @ step, whole @ step
        return x_MN @ whole


def learning_rate(config: Config, lr: tuple[float, float], step: jax.Array) -> jax.Array:
    """Of a step of the run: a linear rise over the warm-up, times a cosine."""
    steps = config.steps
    return cosine(*lr, step / steps) * jnp.minimum(1.0, (step + 1) / max(1.0, config.optim.warmup * steps))


def adam(config: Config, lr: tuple[float, float]) -> optax.GradientTransformation:
    """Adam with the run's schedules of learning rate and β2."""
    o, steps = config.optim, config.steps
    rate = lambda step: learning_rate(config, lr, step)

    def beta2(step: jax.Array) -> jax.Array:
        return cosine(*o.beta2, step / steps / 0.2)

    if o.beta1:
        return optax.inject_hyperparams(optax.adam, static_args=("b1", "eps", "eps_root"))(learning_rate=rate, b1=o.beta1, b2=beta2, eps=o.eps)
    # with β1 = 0 the first moment is the gradient itself: RMSProp with Adam's bias correction is the same rule, and keeps no copy
    rule = optax.inject_hyperparams(optax.rmsprop, static_args=("eps", "initial_scale", "eps_in_sqrt", "centered", "nesterov", "bias_correction"))
    return rule(learning_rate=rate, decay=beta2, eps=o.eps, eps_in_sqrt=False, bias_correction=True)


def ema_decay(config: Config, step: jax.Array) -> jax.Array:
    """Decay of the generator's moving average at a step: 2^(-batch / half-life), the half-life ramping up as a share of
    the images seen (the `ema_rampup` of arXiv 2006.06676) to `optim.ema` of the run."""
    half_life = jnp.minimum(config.optim.ema * config.images, 0.1 * (step + 1) * config.batch)
    return 0.5 ** (config.batch / half_life)


def ema_update(ema: Any, params: Any, decay: jax.Array) -> Any:
    """decay * ema + (1 - decay) * params, in float32."""
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)
