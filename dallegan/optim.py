"""Optimizers and schedules. A schedule is a function of progress in [0, 1], the share of the run's images seen."""

import math
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dallegan.config import Config


def cosine(start: float, end: float, progress: jax.Array | float) -> jax.Array:
    """From start to end along half a cosine."""
    return end + (start - end) * 0.5 * (1 + jnp.cos(math.pi * jnp.clip(progress, 0, 1)))


def optimizer(config: Config) -> optax.GradientTransformation:
    """Adam (arXiv 1412.6980) for both players, each with its own learning rate (arXiv 1706.08500)."""
    o = config.optim
    players: dict[Hashable, Any] = {
        name: optax.chain(adam(config, lr), scale_by_fan_in(o.fan)) for name, lr in (("generator", o.lr), ("discriminator", o.lr_d))
    }
    return optax.multi_transform(players, {name: name for name in players})


def scale_by_fan_in(fan: int) -> optax.GradientTransformation:
    """Multiplies the update of each kernel of a fan-in above `fan` by fan / fan-in; 0 for none.

    Adam moves all weights of a kernel alike, so that one step moves the layer's output in proportion to its fan-in. Wide
    layers are held back (arXiv 2203.03466, table 3): the discriminator then bears twice the learning rate (benchmarks/LOG.md).
    """

    def one(path: Any, update: jax.Array) -> jax.Array:
        is_kernel = fan and getattr(path[-1], "key", "") == "kernel"
        return update * min(1.0, fan / math.prod(update.shape[:-1])) if is_kernel else update

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(one, updates))


def adam(config: Config, lr: tuple[float, float]) -> optax.GradientTransformation:
    """Adam with the run's schedules of learning rate and β2."""
    o, steps = config.optim, config.steps

    def rate(step: jax.Array) -> jax.Array:
        p = step / steps
        return cosine(*lr, p) * (jnp.minimum(1.0, (step + 1) / max(1.0, o.warmup * steps)))

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
