"""Objectives of the two players, means over scores f32[B] in float32; each cites its equation."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dallegan.shapes import Bool, Float, Given, Images, Layouts, Scalar, Scores

softplus = jax.nn.softplus
MARGIN = 0.5  # diversity margin, as a fraction of the mean distance between real images


class Adversarial(NamedTuple):
    """A form of the game: what either player minimizes, given the scores of real and generated images."""

    discriminator: Callable[[Scores, Scores], Scalar]
    generator: Callable[[Scores, Scores], Scalar]


RPGAN = Adversarial(
    discriminator=lambda real, fake: jnp.mean(softplus(fake - real)),
    generator=lambda real, fake: jnp.mean(softplus(real - fake)),
)
"""Relativistic pairing (arXiv 1807.00734; R3GAN, arXiv 2501.05441, eq. 2).

E softplus(D(fake) - D(real)), and the same with real and fake exchanged.
"""

HINGE = Adversarial(
    discriminator=lambda real, fake: jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)),
    generator=lambda real, fake: -jnp.mean(fake),
)
"""Hinge loss (arXiv 1705.02894): E max(0, 1 - D(real)) + E max(0, 1 + D(fake)), and -E D(fake)."""

NONSATURATING = Adversarial(
    discriminator=lambda real, fake: jnp.mean(softplus(-real)) + jnp.mean(softplus(fake)),
    generator=lambda real, fake: jnp.mean(softplus(-fake)),
)
"""Cross-entropy (arXiv 1406.2661): E softplus(-D(real)) + E softplus(D(fake)), and E softplus(-D(fake))."""


def adversarial(kind: str) -> Adversarial:
    """Returns the form of the game that `--loss.adversarial` names. Raises ValueError for any other name."""
    match kind:
        case "rpgan":
            return RPGAN
        case "hinge":
            return HINGE
        case "nonsaturating":
            return NONSATURATING
        case _:
            raise ValueError(f"no adversarial loss {kind!r}: choose rpgan, hinge or nonsaturating")


def matching_loss(own: Scores, other: Scores, valid: Bool[Given, " B"]) -> Scalar:
    """Makes a real image prefer its own caption to a false one: E softplus(D(real, other) - D(real, own)).

    After the matching-aware discriminator of arXiv 1605.05396. `valid` bool[B] is false if the false caption
    equals the true one; such rows count as zero.
    """
    return jnp.mean(softplus(other - own) * valid)


def contrastive_loss(match: Float[Given, "B K"], same: Bool[Given, "B K"]) -> Scalar:
    """InfoNCE (arXiv 1807.03748, eq. 4) between images and captions, both ways (arXiv 2101.04702, eq. 3).

    Args:
        match: f32[B, K], K >= B, how well images fit captions. Caption i < B is image i's own; captions from
            B on are false.
        same: bool[B, K], true if a caption reads as the image's own and so is no negative. A different
            sentence that happens to be true counts as false, which is rare if captions say much.
    """
    b = match.shape[0]
    own = jnp.eye(*match.shape, dtype=bool)
    match = jnp.where(same & ~own, -jnp.inf, match)
    by_image, by_caption = jax.nn.log_softmax(match, 1), jax.nn.log_softmax(match[:, :b], 0)
    return -0.5 * (jnp.mean(jnp.diagonal(by_image)) + jnp.mean(jnp.diagonal(by_caption)))


def layout(image: Images) -> Float[jax.Array, "B 8 8 3"]:
    """Shrinks images f32[B, H, W, 3] to 8×8 and subtracts the mean colour. H and W are multiples of 8."""
    b, h, w, _ = image.shape
    small = jnp.mean(image.reshape(b, 8, h // 8, 8, w // 8, 3), (2, 4))
    return small - jnp.mean(small, (1, 2), keepdims=True)


def diversity_loss(
    fake: Layouts, again: Layouts, real: Float[Given, "N 8 8 3"], margin: float = MARGIN
) -> Scalar:
    """Rewards layouts that differ between images of one caption.

    -E min(1, |G(c, z) - G(c, z')| / (margin E |x - x'|)):
    the diversity-sensitive term of arXiv 1901.09024, eq. 4, scaled by the distance between real images. It
    compares layouts, since two images could as well differ by brightness or by dots.

    Args:
        fake: f32[N, 8, 8, 3], layouts of one image of each of N captions.
        again: f32[N, 8, 8, 3], layouts of another image of each.
        real: f32[B, 8, 8, 3], layouts of real images, mostly of different captions.
        margin: above 0; images farther apart than this fraction of the mean real distance add nothing.
    """
    distance = lambda a, b: jnp.mean(jnp.abs(a - b), (1, 2, 3))
    scale = margin * jnp.maximum(
        jnp.mean(distance(real, jnp.roll(real, 1, 0))), 1e-3
    )  # above 0 if all are alike
    return -jnp.mean(jnp.minimum(1.0, distance(fake, again) / scale))


def gradient_penalty(score: Callable[[jax.Array], jax.Array], image: Images) -> Float[jax.Array, " B"]:
    """Returns f32[B], the squared norm of each image's gradient ||∇x D(x)||².

    Zero-centred R1 at real images (arXiv 1801.04406, eq. 9) and R2 at generated ones. `score` maps
    f32[B, H, W, 3] to f32[B] and must not mix images.
    """
    gradient = jax.grad(lambda x: jnp.sum(score(x)))(image)
    return jnp.sum(jnp.square(gradient.astype(jnp.float32)), (1, 2, 3))
