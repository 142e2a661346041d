"""The train step: both players move at once, from one pass; a pure function.

The objectives are those of docs/method.md, one function per player. Both players move at the same time
(simultaneous gradient descent, arXiv 1801.04406): images are generated once and the discriminator's forward
pass serves both players, which saves a fifth of the step.

Gradients are computed from a device's own rows of the global batch and averaged over the devices
(`parallel.py`). `Shard` says which rows those are. The update that follows is the same on any number of
devices.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from optax.microbatching import AccumulationType, microbatch

from dallegan import losses
from dallegan.augment import AugmentParams, augment, sample_params
from dallegan.config import AugmentConfig, Config, LossConfig
from dallegan.losses import Adversarial
from dallegan.models.discriminator import ImageFeatures
from dallegan.models.encoder import TextFeatures
from dallegan.models.gan import Gan, Params
from dallegan.models.layers import to_float
from dallegan.optim import cosine, ema_decay
from dallegan.state import GanState, Stream, stream

Batch = dict[str, jax.Array]  # image uint8[B, H, W, 3], tokens i32[B, T], negative i32[B, T]
Metrics = dict[str, jax.Array]
Step = Callable[[GanState, Batch], tuple[GanState, Metrics]]
Gradients = Callable[
    [Params, Batch, jax.Array, jax.Array], tuple[Params, Metrics]
]  # of (params, batch, seed, step)
DIVERSITY_STRIDE = 4  # every 4th caption gets a second image, for the diversity loss

stop_gradient = jax.lax.stop_gradient


@dataclasses.dataclass(frozen=True)
class Shard:
    """The rows of the global batch that a device has: by its place on `axis`, or all if `axis` is None."""

    axis: str | tuple[str, ...] | None = None

    @property
    def index(self) -> jax.Array | int:
        """The device's place on the axis."""
        return 0 if self.axis is None else jax.lax.axis_index(self.axis)

    def take(self, batch: Any, rows: int) -> Any:
        """Returns the device's `rows` of every array of the global batch."""
        if self.axis is None:
            return batch
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, self.index * rows, rows), batch)

    def gather(self, rows: Any) -> Any:
        """Returns the rows of all devices."""
        if self.axis is None:
            return rows
        # in float32, since the gradients of the copies are summed on the way back
        wide = lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
        return jax.tree.map(
            lambda x: jax.lax.all_gather(wide(x), self.axis, tiled=True).astype(x.dtype), rows
        )


class Game(NamedTuple):
    """What both objectives need to know of a run."""

    gan: Gan
    loss: LossConfig
    augment: AugmentConfig
    adversarial: Adversarial
    shard: Shard

    @property
    def reach(self) -> int:
        """Pixels that augmentation shifts an image by at most."""
        return int(self.gan.size * self.augment.shift)


class Pairs(NamedTuple):
    """A device's images and captions; `own` and `other` are encoded by the discriminator's encoder."""

    real: jax.Array  # f32[B, H, W, 3], augmented
    fake: jax.Array  # f32[B, H, W, 3], generated from the same captions, augmented alike
    own: TextFeatures  # the captions of the images
    other: TextFeatures  # false captions of the real images
    valid: jax.Array  # bool[B]: the false caption differs from the true one
    same: jax.Array  # bool[G, 2 G] over the global batch: caption j (true, then false ones) equals caption i


class RealScores(NamedTuple):
    """Scores of real images, which the relativistic pairing compares those of generated ones with."""

    own: jax.Array  # f32[B], with their own captions
    pairs: jax.Array | None  # f32[B / group], of two images of a caption at a time; None without `packing`


def penalized(loss: LossConfig) -> tuple[int, int]:
    """Returns (k, n), if the first n rows of every k-th group have penalties (lazy regularization).

    Without packing a group is one row. With packing n is at least 2, so that pairs are penalized whole.
    """
    stride, least = round(1 / loss.penalty_share), 2 if loss.packing else 1
    return max(1, stride * least // loss.group), max(least, loss.group // stride)


def contrastive(game: Game, params: Params, seen: ImageFeatures, pairs: Pairs) -> jax.Array:
    """Contrastive loss over the global batch, of images against true and false captions."""
    whole, *sentences = game.shard.gather((seen.whole, pairs.own.sentence, pairs.other.sentence))
    return losses.contrastive_loss(game.gan.match(params, whole, jnp.concatenate(sentences)), pairs.same)


def penalties(game: Game, params: Params, pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    """R1 and R2: mean squared gradient norms at the `penalized` ones of real and of generated images."""
    gan, loss = game.gan, game.loss
    (stride, n), groups = penalized(loss), len(pairs.real) // loss.group
    every = min(stride, groups)
    take = lambda x: x.reshape(groups, -1, *x.shape[1:])[::every, :n].reshape(-1, *x.shape[1:])
    text = jax.tree.map(lambda x: jnp.concatenate([take(x)] * 2), pairs.own)
    image = jnp.concatenate([take(pairs.real), take(pairs.fake)])  # one gradient for both kinds

    def score(x: jax.Array) -> jax.Array:
        seen = gan.image_features(params, x)
        own = gan.score(params, seen, text)
        return jnp.append(own, loss.packing * packed_scores(gan, params, seen, n)) if loss.packing else own

    norms = losses.gradient_penalty(score, image)
    if every < stride and game.shard.axis:
        # fewer groups on a device than the stride: only the devices at its multiples have one that counts
        norms *= (game.shard.index * groups % stride == 0) * (stride / groups)
    real, fake = jnp.split(norms, 2)
    return jnp.mean(real), jnp.mean(fake)


def packed_scores(gan: Gan, params: Params, seen: ImageFeatures, group: int) -> jax.Array:
    """Returns f32[B / group], the scores of the two images of one caption that each group begins with."""
    first_two = lambda x: x.reshape(-1, group, *x.shape[1:])[:, :2].reshape(-1, *x.shape[1:])
    return gan.score_pairs(params, jax.tree.map(first_two, seen))


def discriminator_objective(
    game: Game, params: Params, pairs: Pairs, gamma: jax.Array
) -> tuple[jax.Array, RealScores, Metrics]:
    """The discriminator's loss: adversarial, matching, contrastive, and R1 and R2 (arXiv 2501.05441, eq. 3).

    Returns the loss, the scores of real images, and metrics.
    """
    gan, loss = game.gan, game.loss
    seen_real, seen_fake = (gan.image_features(params, x) for x in (pairs.real, stop_gradient(pairs.fake)))
    real_own, real_other = (gan.score(params, seen_real, text) for text in (pairs.own, pairs.other))
    fake_own = gan.score(params, seen_fake, pairs.own)
    total = game.adversarial.discriminator(real_own, fake_own)
    metrics, real_pairs = {}, None
    if loss.packing:
        # the head reads features that other terms train: a trunk trained by it learns captions later (LOG)
        seen_pairs = stop_gradient((seen_real, seen_fake))
        real_pairs, fake_pairs = (packed_scores(gan, params, seen, loss.group) for seen in seen_pairs)
        total += loss.packing * game.adversarial.discriminator(real_pairs, fake_pairs)
        metrics["pair_gap"] = jnp.mean(real_pairs - fake_pairs)
    if loss.matching:
        total += loss.matching * losses.matching_loss(real_own, real_other, pairs.valid)
    if loss.contrast[0]:
        total += loss.contrast[0] * contrastive(game, params, seen_real, pairs)
    r1 = r2 = jnp.zeros(())
    if max(loss.gamma):
        r1, r2 = penalties(game, params, pairs._replace(fake=stop_gradient(pairs.fake)))
        total += 0.5 * gamma * (r1 + r2)
    metrics |= {"match_gap": jnp.mean((real_own - real_other) * pairs.valid)}
    metrics |= {"score_real": jnp.mean(real_own), "score_fake": jnp.mean(fake_own), "r1": r1, "r2": r2}
    return total, RealScores(real_own, real_pairs), metrics


def generator_objective(game: Game, params: Params, pairs: Pairs, real: RealScores) -> jax.Array:
    """The loss of encoder, generator and decoder: adversarial and contrastive, by the frozen discriminator.

    real: the discriminator's scores of the real images. XLA merges this forward pass of the discriminator
    with the one of `discriminator_objective`, whose values are the same.
    """
    gan, loss = game.gan, game.loss
    frozen, own, other, real = stop_gradient((params, pairs.own, pairs.other, real))
    seen_fake = gan.image_features(frozen, pairs.fake)
    total = game.adversarial.generator(real.own, gan.score(frozen, seen_fake, own))
    if real.pairs is not None:
        total += loss.packing * game.adversarial.generator(
            real.pairs, packed_scores(gan, frozen, seen_fake, loss.group)
        )
    if loss.contrast[1]:
        total += loss.contrast[1] * contrastive(game, frozen, seen_fake, pairs._replace(own=own, other=other))
    return total


def objectives(
    game: Game, params: Params, batch: Batch, noise: Any, augmentation: AugmentParams, gamma: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Returns the sum of both players' losses, and metrics.

    The gradient of the sum is each player's own: a player's loss sees the other's parameters behind a
    stop_gradient. noise: f32[B, Z], and for the second images another, of which every
    DIVERSITY_STRIDE-th row is used.
    """
    gan, loss, shard = game.gan, game.loss, game.shard
    tokens, negative, b = batch["tokens"], batch["negative"], len(batch["tokens"])
    again = tokens[::DIVERSITY_STRIDE] if loss.diversity else tokens[:0]
    noise = [noise[0], *(x[::DIVERSITY_STRIDE] for x in noise[1:])]
    image = to_float(batch["image"])
    generated = gan.synthesize(params, jnp.concatenate([tokens, again]), jnp.concatenate(noise))
    real, fake = (augment(x, augmentation, game.augment, game.reach) for x in (image, generated[:b]))
    text = gan.encode_caption(params, jnp.concatenate([tokens, negative]))
    own, other = (jax.tree.map(lambda x, rows=rows: x[rows], text) for rows in (slice(b), slice(b, None)))
    all_tokens, all_negatives = shard.gather((tokens, negative))
    same = jnp.all(all_tokens[:, None] == jnp.concatenate([all_tokens, all_negatives]), -1)
    pairs = Pairs(real, fake, own, other, jnp.any(tokens != negative, 1), same)

    loss_d, real_scores, metrics = discriminator_objective(game, params, pairs, gamma)
    loss_g = generator_objective(game, params, pairs, real_scores)
    if loss.diversity:
        first, second = losses.layout(generated[:b:DIVERSITY_STRIDE]), losses.layout(generated[b:])
        all_real = shard.gather(losses.layout(image))
        loss_g += loss.diversity * losses.diversity_loss(first, second, all_real)
    return loss_d + loss_g, metrics | {"d_loss": loss_d, "g_loss": loss_g}


def make_gradients(gan: Gan, config: Config, shard: Shard, adversarial: Adversarial) -> Gradients:
    """Returns the function that computes both players' gradients from a device's rows of the batch.

    Noise and augmentation are drawn for the global batch, so that they do not depend on the number of
    devices. With `parallel.accumulate`, micro-batches run one at a time, so that only one micro-batch of
    activations is held; micro-batch i has every k-th row from row i on (or group, with packing), the same on
    any number of devices.
    """
    game = Game(gan, config.loss, config.augment, adversarial, shard)
    grad, parts = jax.grad(functools.partial(objectives, game), has_aux=True), config.parallel.accumulate

    def gradients(params: Params, batch: Batch, seed: jax.Array, step: jax.Array) -> tuple[Params, Metrics]:
        rows = len(batch["image"])

        def normal(name: Stream, stride: int = 1) -> jax.Array:
            shape = (config.batch // stride, gan.model.noise)
            return shard.take(jax.random.normal(stream(seed, step, name), shape, jnp.float32), rows // stride)

        noise = (normal(Stream.NOISE),)
        if config.loss.diversity:
            # repeated to a row per image, since micro-batches take equally many rows of every input
            again = normal(Stream.NOISE_AGAIN, DIVERSITY_STRIDE).reshape(-1, parts, gan.model.noise)
            noise = (*noise, jnp.repeat(again, DIVERSITY_STRIDE, 0).reshape(rows, -1))
        augmentation = sample_params(stream(seed, step, Stream.AUGMENT), config.batch, game.reach)
        gamma = cosine(*config.loss.gamma, step / config.steps)
        inputs = batch, noise, shard.take(augmentation, rows)
        if parts == 1:
            return grad(params, *inputs, gamma)
        group = config.loss.group
        split = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), inputs)
        join = functools.partial(jax.tree.map, lambda x: x.reshape(-1, *x.shape[2:]))
        each = microbatch(
            lambda params, inputs: grad(params, *join(inputs), gamma),
            argnums=1,
            microbatch_size=rows // group // parts,
            accumulator=AccumulationType.MEAN,
        )
        return each(params, split)

    return gradients


def make_train_step(
    gan: Gan,
    optimizer: optax.GradientTransformation,
    config: Config,
    average: Callable[[Gradients], Gradients] = lambda gradients: gradients,
    shard: Shard = Shard(),
    adversarial: Adversarial | None = None,
) -> Step:
    """Returns the train step of a run, (state, batch) -> (state, metrics).

    Args:
        average: turns gradients of a device's rows into gradients of the global batch; `parallel.py` has one
            for a mesh and one for pmap. The default is right for a single device.
        shard: the rows that a device has.
        adversarial: the form of the game; default: the one that `config.loss.adversarial` names.
    """
    adversarial = losses.adversarial(config.loss.adversarial) if adversarial is None else adversarial
    gradients = average(make_gradients(gan, config, shard, adversarial))

    def train_step(state: GanState, batch: Batch) -> tuple[GanState, Metrics]:
        grads, metrics = gradients(state.params, batch, state.seed, state.step)
        updates, opt = optimizer.update(grads, state.opt, state.params)
        params = cast(Params, optax.apply_updates(state.params, updates))
        decay = ema_decay(config.optim, state.step, config.steps, config.batch)
        ema = optax.incremental_update(params["generator"], state.ema, 1 - decay)

        norm_d, norm_g = optax.global_norm(grads["discriminator"]), optax.global_norm(grads["generator"])
        finite = jnp.isfinite(metrics["d_loss"] + metrics["g_loss"] + norm_d + norm_g)
        moved = state.replace(params=params, ema=ema, opt=opt)
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, state)
        state = state.replace(
            step=state.step + 1,
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        metrics |= {"grad_norm_g": norm_g, "grad_norm_d": norm_d, "step": state.step}
        return state, metrics | {"skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}

    return train_step
