"""The train step: one discriminator update, one generator update, one moving average; a pure function, written once.

It sees the global batch under `jit`, or its device's rows under `pmap`, where `axis` names the device axis and the
gradients are averaged over it; the numbers are the same.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dallegan import losses
from dallegan.augment import draw_offsets, shift
from dallegan.config import Config
from dallegan.models.gan import Gan, Params
from dallegan.optim import cosine, ema_decay, ema_update
from dallegan.rng import Stream, stream
from dallegan.state import GanState

Batch = dict[str, jax.Array]  # image uint8[B, H, W, 3], tokens i32[B, T], negative i32[B, T]
Metrics = dict[str, jax.Array]
Step = Callable[[GanState, Batch], tuple[GanState, Metrics]]


def to_float(image: jax.Array) -> jax.Array:
    """uint8 -> f32 in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1


def penalty_stride(config: Config) -> int:
    """Every how many pictures the gradient penalties are computed."""
    return round(1 / config.loss.penalty_share)


def make_train_step(gan: Gan, optimizer: optax.GradientTransformation, config: Config, axis: str | None = None) -> Step:
    """The step of a run; see the module's docstring for `axis`."""
    loss, stride = config.loss, penalty_stride(config)
    regularized = max(loss.gamma) > 0
    reach = int(config.data.size * loss.shift)

    def mean(tree: Any) -> Any:
        return jax.lax.pmean(tree, axis) if axis else tree

    def mine(every: jax.Array, rows: int) -> jax.Array:
        """This device's rows of what was drawn for the global batch."""
        return jax.lax.dynamic_slice_in_dim(every, jax.lax.axis_index(axis) * rows, rows) if axis else every

    def noise(step: jax.Array, name: Stream, rows: int) -> jax.Array:
        return mine(jax.random.normal(stream(config.seed, step, name), (config.batch, gan.model.noise)), rows)

    def split(params_d: Any, params_g: Any) -> Params:
        return {"generator": params_g, "discriminator": params_d}

    def d_loss(params_d: Any, params_g: Any, real: jax.Array, batch: Batch, gamma: jax.Array, z: jax.Array, offset: jax.Array) -> tuple[jax.Array, Metrics]:
        params = split(params_d, params_g)
        b = real.shape[0]
        real = shift(real, offset, reach)
        fake = jax.lax.stop_gradient(shift(gan.draw(params, batch["tokens"], z), offset, reach))
        seen = gan.see(params, jnp.concatenate([real, fake]))
        text = gan.read(params, jnp.concatenate([batch["tokens"], batch["negative"]]))
        own, other = (jax.tree.map(lambda x, s=s: x[s], text) for s in (slice(0, b), slice(b, None)))
        seen_real, seen_fake = (jax.tree.map(lambda x, s=s: x[s], seen) for s in (slice(0, b), slice(b, None)))
        real_own, real_other, fake_own = gan.score(params, seen_real, own), gan.score(params, seen_real, other), gan.score(params, seen_fake, own)
        valid = jnp.any(batch["tokens"] != batch["negative"], 1)
        total = losses.discriminator_loss(loss.adversarial, real_own, fake_own)
        if loss.matching:
            total += loss.matching * losses.matching_loss(real_own, real_other, valid)
        metrics = {"match_gap": jnp.mean((real_own - real_other) * valid), "score_real": jnp.mean(real_own), "score_fake": jnp.mean(fake_own)}
        r1 = r2 = jnp.zeros(())
        if regularized:
            some = jax.tree.map(lambda x: x[::stride], own)
            # one gradient over real and generated pictures together
            images, texts = real[::stride], some
            if loss.r2:
                images, texts = jnp.concatenate([images, fake[::stride]]), jax.tree.map(lambda x: jnp.concatenate([x, x]), some)
            norms = losses.gradient_penalty(lambda x: gan.score(params, gan.see(params, x), texts), images)
            r1 = jnp.mean(norms[: b // stride])
            r2 = jnp.mean(norms[b // stride :]) if loss.r2 else r2
            total += 0.5 * gamma * (r1 + r2)  # arXiv 2501.05441, eq. 3
        return total, metrics | {"r1": r1, "r2": r2}

    def g_loss(params_g: Any, params_d: Any, real: jax.Array, batch: Batch, z: jax.Array, offset: jax.Array) -> jax.Array:
        params = split(params_d, params_g)
        real = shift(real, offset, reach)
        fake = shift(gan.draw(params, batch["tokens"], z), offset, reach)
        text = gan.read(params, batch["tokens"])
        fake_own = gan.score(params, gan.see(params, fake), text)
        real_own = gan.score(params, gan.see(params, real), text) if loss.adversarial == "rpgan" else fake_own
        return losses.generator_loss(loss.adversarial, jax.lax.stop_gradient(real_own), fake_own)

    def train_step(state: GanState, batch: Batch) -> tuple[GanState, Metrics]:
        real = to_float(batch["image"])
        rows = real.shape[0]
        gamma = cosine(*loss.gamma, state.step / config.steps)
        g, d = state.params["generator"], state.params["discriminator"]

        offset = mine(draw_offsets(stream(config.seed, state.step, Stream.SHIFT), config.batch, reach), rows)
        z = noise(state.step, Stream.NOISE_D, rows)
        (loss_d, metrics), grad_d = mean(jax.value_and_grad(d_loss, has_aux=True)(d, g, real, batch, gamma, z, offset))
        update, opt_d = optimizer.update(grad_d, state.opt_d, d)
        new_d = optax.apply_updates(d, update)

        z = noise(state.step, Stream.NOISE_G, rows)
        loss_g, grad_g = mean(jax.value_and_grad(g_loss)(g, new_d, real, batch, z, offset))
        update, opt_g = optimizer.update(grad_g, state.opt_g, g)
        new_g = optax.apply_updates(g, update)

        ema = ema_update(state.ema, new_g, ema_decay(config, state.step))
        norm_d, norm_g = optax.global_norm(grad_d), optax.global_norm(grad_g)
        finite = jnp.isfinite(loss_d + loss_g + norm_d + norm_g)
        new = state.replace(params=split(new_d, new_g), ema=ema, opt_g=opt_g, opt_d=opt_d)
        state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        state = state.replace(
            step=state.step + 1,
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        metrics |= {"d_loss": loss_d, "g_loss": loss_g, "grad_norm_g": norm_g, "grad_norm_d": norm_d}
        return state, metrics | {"skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}

    return train_step
