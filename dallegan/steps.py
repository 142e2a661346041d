"""The train step: both players updated from one pass, and one moving average; a pure function, written once.

The players move at the same time (simultaneous gradient descent, arXiv 1801.04406), not in turns: pictures are drawn once
and the discriminator's forward pass serves both, which saves a fifth of the step.

Losses and their gradients are computed from a device's own rows of the global batch, then averaged over the devices, once each. `axis` names the
devices, for that and for what needs to know of other rows: noise, which is drawn for the global batch, and the contrastive and diversity terms, which
compare pictures. The update that follows is the same on any number of devices.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from dallegan import losses
from dallegan.augment import Draws, augment, draw
from dallegan.config import Config
from dallegan.models.discriminator import Seen
from dallegan.models.encoder import Text
from dallegan.models.gan import Gan, Params
from dallegan.models.layers import to_float
from dallegan.optim import cosine, ema_decay, ema_update
from dallegan.rng import Stream, stream
from dallegan.state import GanState

Batch = dict[str, jax.Array]  # image uint8[B, H, W, 3], tokens i32[B, T], negative i32[B, T]
Metrics = dict[str, jax.Array]
Step = Callable[[GanState, Batch], tuple[GanState, Metrics]]
Axis = str | tuple[str, ...] | None
Gradients = Callable[[Params, Batch, jax.Array, jax.Array], tuple[Params, Metrics]]  # parameters, batch, seed, step
TWICE = 4  # of so many captions one is drawn twice, where the diversity term is on


def penalty_stride(config: Config) -> int:
    """Every how many pictures the gradient penalties are computed."""
    return round(1 / config.loss.penalty_share)


def rows_fit(config: Config, devices: int) -> bool:
    """Whether each device has equally many rows in each part of the batch, of which those that are penalized and those that are drawn twice can be taken."""
    parts, stride = config.parallel.accumulate, penalty_stride(config) if max(config.loss.gamma) else 1
    rows = config.batch // (devices * parts)
    even = rows > 0 and config.batch == rows * devices * parts and not (config.loss.diversity and rows % TWICE)
    return even and rows * devices % stride == 0 and (rows % stride == 0 or stride % rows == 0)


def make_train_step(
    gan: Gan, optimizer: optax.GradientTransformation, config: Config, axis: Axis = None, spread: Callable[[Gradients], Gradients] | None = None
) -> Step:
    """The step of a run: of the global batch, or under `pmap` or `shard_map` of a device's rows, where `axis` names the devices. Where the step itself
    sees the global batch on several devices, `spread` turns gradients of a device's rows into those of the batch (parallel.spread_over)."""
    loss, stride, parts = config.loss, penalty_stride(config), config.parallel.accumulate
    regularized = max(loss.gamma) > 0
    reach = int(config.data.size * loss.shift)

    def mine(every: Any, rows: int) -> Any:
        """This device's rows of what was drawn for the global batch."""
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * rows, rows), every) if axis else every

    def everywhere(tree: Any) -> Any:
        """The rows of all devices."""
        if axis is None:
            return tree
        # in float32: the gradients of the copies are summed on the way back
        wide = lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
        return jax.tree.map(lambda x: jax.lax.all_gather(wide(x), axis, tiled=True).astype(x.dtype), tree)

    def both_losses(params: Params, batch: Batch, z: tuple[jax.Array, ...], draws: Draws, gamma: jax.Array) -> tuple[jax.Array, Metrics]:
        """The two losses' sum, whose gradient is each player's own: the other's parameters are behind a stop_gradient."""
        still = jax.lax.stop_gradient
        tokens, negative, b = batch["tokens"], batch["negative"], batch["tokens"].shape[0]
        twice = tokens[::TWICE] if loss.diversity else tokens[:0]
        image, drawn = to_float(batch["image"]), gan.draw(params, jnp.concatenate([tokens, twice]), jnp.concatenate(z))
        real, fake = (augment(x, draws, loss, reach) for x in (image, drawn[:b]))
        all_tokens, all_negatives = everywhere((tokens, negative))
        same = jnp.all(all_tokens[:, None] == jnp.concatenate([all_tokens, all_negatives]), -1)

        def contrast(params: Params, seen: Seen, own: Text, others: Text) -> jax.Array:
            whole, *sentences = everywhere((seen.whole, own.sentence, others.sentence))
            return losses.contrastive_loss(gan.match(params, whole, jnp.concatenate(sentences)), same)

        # discriminator
        text = gan.read(params, jnp.concatenate([tokens, negative]))
        own, other = (jax.tree.map(lambda x, s=s: x[s], text) for s in (slice(0, b), slice(b, None)))
        seen_real, seen_fake = gan.see(params, real), gan.see(params, still(fake))
        real_own, real_other, fake_own = gan.score(params, seen_real, own), gan.score(params, seen_real, other), gan.score(params, seen_fake, own)
        valid = jnp.any(tokens != negative, 1)
        loss_d = losses.discriminator_loss(loss.adversarial, real_own, fake_own)
        if loss.matching:
            loss_d += loss.matching * losses.matching_loss(real_own, real_other, valid)
        if loss.contrast[0]:
            loss_d += loss.contrast[0] * contrast(params, seen_real, own, other)
        r1 = r2 = jnp.zeros(())
        if regularized:
            every = min(stride, b)
            texts = jax.tree.map(lambda x: x[::every], own)
            # one gradient over real and generated pictures together
            images = real[::every]
            if loss.r2:
                images, texts = jnp.concatenate([images, still(fake)[::every]]), jax.tree.map(lambda x: jnp.concatenate([x, x]), texts)
            norms = losses.gradient_penalty(lambda x: gan.score(params, gan.see(params, x), texts), images)
            if every < stride and axis:  # a device with fewer rows than a share has: one in so many has a picture that counts
                norms *= (jax.lax.axis_index(axis) * b % stride == 0) * (stride / b)
            r1 = jnp.mean(norms[: b // every])
            r2 = jnp.mean(norms[b // every :]) if loss.r2 else r2
            loss_d += 0.5 * gamma * (r1 + r2)  # arXiv 2501.05441, eq. 3

        # encoder, generator and decoder; XLA merges this forward pass of the discriminator with the one above
        judge, own, other = still((params, own, other))
        seen_fake = gan.see(judge, fake)
        loss_g = losses.generator_loss(loss.adversarial, still(real_own), gan.score(judge, seen_fake, own))
        if loss.contrast[1]:
            loss_g += loss.contrast[1] * contrast(judge, seen_fake, own, other)
        if loss.diversity:
            once, again, truth = (losses.layout(x) for x in (drawn[:b:TWICE], drawn[b:], image))
            loss_g += loss.diversity * losses.diversity_loss(once, again, everywhere(truth), loss.apart)

        metrics = {"match_gap": jnp.mean((real_own - real_other) * valid), "score_real": jnp.mean(real_own), "score_fake": jnp.mean(fake_own)}
        return loss_d + loss_g, metrics | {"d_loss": loss_d, "g_loss": loss_g, "r1": r1, "r2": r2}

    def gradients(params: Params, batch: Batch, seed: jax.Array, step: jax.Array) -> tuple[Params, Metrics]:
        """Of the losses of a device's rows: means over the parts of a batch, one after the other: their activations need the memory of one."""
        rows = batch["image"].shape[0]
        gamma = cosine(*loss.gamma, step / config.steps)
        noise = lambda name, share=1: mine(jax.random.normal(stream(seed, step, name), (config.batch // share, gan.model.noise), jnp.float32), rows // share)
        z = (noise(Stream.NOISE), noise(Stream.NOISE_AGAIN, TWICE)) if loss.diversity else (noise(Stream.NOISE),)
        inputs = batch, z, mine(draw(stream(seed, step, Stream.AUGMENT), config.batch, reach), rows)
        grad = jax.grad(both_losses, has_aux=True)
        if parts == 1:
            return grad(params, *inputs, gamma)
        # a part is every so manieth row, so that it is the same rows on any number of devices
        split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), inputs)
        add = lambda total, part: jax.tree.map(jnp.add, total, grad(params, *part, gamma))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad, params, *jax.tree.map(lambda x: x[0], split), gamma))
        total, _ = jax.lax.scan(lambda total, part: (add(total, part), None), zeros, split)
        return jax.tree.map(lambda x: x / parts, total)

    def train_step(state: GanState, batch: Batch) -> tuple[GanState, Metrics]:
        here = state.params, batch, state.seed, state.step
        if spread:
            grads, metrics = spread(gradients)(*here)
        else:
            grads, metrics = jax.lax.pmean(gradients(*here), axis) if axis else gradients(*here)
        updates, opt = optimizer.update(grads, state.opt, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
        ema = ema_update(state.ema, params["generator"], ema_decay(config, state.step))

        norm_d, norm_g = optax.global_norm(grads["discriminator"]), optax.global_norm(grads["generator"])
        finite = jnp.isfinite(metrics["d_loss"] + metrics["g_loss"] + norm_d + norm_g)
        new = state.replace(params=params, ema=ema, opt=opt)
        state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        state = state.replace(
            step=state.step + 1,
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        metrics |= {"grad_norm_g": norm_g, "grad_norm_d": norm_d, "step": state.step, "skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}
        return state, metrics

    return train_step
