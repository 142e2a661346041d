"""Optimizers and schedules. A schedule is a function of progress in [0, 1], the share of the run's images seen."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dallegan.config import Config


def cosine(start: float, end: float, progress: jax.Array | float) -> jax.Array:
    """From start to end along half a cosine."""
    return end + (start - end) * 0.5 * (1 + jnp.cos(math.pi * jnp.clip(progress, 0, 1)))


def optimizer(config: Config) -> optax.GradientTransformation:
    """Adam (arXiv 1412.6980) with the run's schedules of learning rate and β2."""
    o, steps = config.optim, config.steps

    def rate(step: jax.Array) -> jax.Array:
        p = step / steps
        return cosine(*o.lr, p) * (jnp.minimum(1.0, (step + 1) / max(1.0, o.warmup * steps)))

    def beta2(step: jax.Array) -> jax.Array:
        return cosine(*o.beta2, step / steps / 0.2)

    return optax.inject_hyperparams(optax.adam, static_args=("b1", "eps", "eps_root"))(learning_rate=rate, b1=o.beta1, b2=beta2, eps=o.eps)


def ema_decay(config: Config, step: jax.Array) -> jax.Array:
    """Decay of the generator's moving average at a step: 2^(-batch / half-life), the half-life ramping up as a share of
    the images seen (the `ema_rampup` of arXiv 2006.06676) to `optim.ema` of the run."""
    half_life = jnp.minimum(config.optim.ema * config.images, 0.1 * (step + 1) * config.batch)
    return 0.5 ** (config.batch / half_life)


def ema_update(ema: Any, params: Any, decay: jax.Array) -> Any:
    """decay * ema + (1 - decay) * params, in float32."""
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)
