"""Objectives of the two players, on scores f32[B]; each cites its equation. All are means over pictures, in float32."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dallegan.shapes import Bool, Float, Given, Images, Layouts, Scalar, Scores

softplus = jax.nn.softplus


def discriminator_loss(kind: str, real: Scores, fake: Scores) -> Scalar:
    """What the discriminator minimizes, given scores of real and generated pictures of the same captions.

    rpgan: E softplus(D(fake) - D(real)), relativistic pairing (arXiv 1807.00734; R3GAN, arXiv 2501.05441, eq. 2).
    hinge: E max(0, 1 - D(real)) + E max(0, 1 + D(fake)) (arXiv 1705.02894).
    nonsaturating: E softplus(-D(real)) + E softplus(D(fake)), the cross-entropy of arXiv 1406.2661.
    """
    if kind == "rpgan":
        return jnp.mean(softplus(fake - real))
    if kind == "hinge":
        return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))
    return jnp.mean(softplus(-real)) + jnp.mean(softplus(fake))


def generator_loss(kind: str, real: Scores, fake: Scores) -> Scalar:
    """What encoder, generator and decoder minimize: the mirrored pairing (rpgan), -E D(fake) (hinge) or E softplus(-D(fake))."""
    if kind == "rpgan":
        return jnp.mean(softplus(real - fake))
    if kind == "hinge":
        return -jnp.mean(fake)
    return jnp.mean(softplus(-fake))


def matching_loss(own: Scores, other: Scores, valid: Bool[Given, " B"]) -> Scalar:
    """E softplus(D(real, other) - D(real, own)): a real picture prefers its caption to a false one, after the
    matching-aware discriminator of arXiv 1605.05396; `valid` bool[B] masks false captions equal to the true one."""
    return jnp.mean(softplus(other - own) * valid)


def contrastive_loss(match: Float[Given, "B K"], same: Bool[Given, "B K"]) -> Scalar:
    """InfoNCE (arXiv 1807.03748, eq. 4; between pictures and captions as in XMC-GAN, arXiv 2101.04702, eq. 3), mean of both directions.

    match f32[B, K], K >= B: pictures by captions, of which caption i is picture i's own and those from B on are false ones.
    same bool[B, K]: where a caption reads as the picture's own; such a one is no negative. Another sentence that happens to be
    true of the picture is taken for a false one: rare where captions say much.
    """
    b = match.shape[0]
    own = jnp.eye(*match.shape, dtype=bool)
    match = jnp.where(same & ~own, -jnp.inf, match)
    by_picture, by_caption = jax.nn.log_softmax(match, 1), jax.nn.log_softmax(match[:, :b], 0)
    return -0.5 * (jnp.mean(jnp.diagonal(by_picture)) + jnp.mean(jnp.diagonal(by_caption)))


def layout(image: Images) -> Float[jax.Array, "B 8 8 3"]:
    """f32[B, H, W, 3] -> f32[B, 8, 8, 3]: what is where; the picture shrunk to 8×8, less its mean colour. H, W: multiples of 8."""
    b, h, w, _ = image.shape
    small = jnp.mean(image.reshape(b, 8, h // 8, 8, w // 8, 3), (2, 4))
    return small - jnp.mean(small, (1, 2), keepdims=True)


def diversity_loss(fake: Layouts, again: Layouts, real: Float[Given, "N 8 8 3"], apart: float) -> Scalar:
    """-E min(1, |G(c, z) - G(c, z')| / (apart E |x - x'|)): the diversity-sensitive term of arXiv 1901.09024, eq. 4, with real pictures
    for its scale.

    On layouts, since two pictures of one caption could as well differ by brightness or by dots: fake, again f32[N, 8, 8, 3] of the same N
    captions, real f32[B, 8, 8, 3], of captions that differ for the most part.
    """
    far = lambda a, b: jnp.mean(jnp.abs(a - b), (1, 2, 3))
    scale = apart * jnp.maximum(jnp.mean(far(real, jnp.roll(real, 1, 0))), 1e-3)  # where all real pictures are alike
    return -jnp.mean(jnp.minimum(1.0, far(fake, again) / scale))


def gradient_penalty(score: Callable[[jax.Array], jax.Array], image: Images) -> Float[jax.Array, " B"]:
    """f32[B]: squared norm of each picture's gradient, ||∇x D(x)||²; zero-centred R1 at real pictures (arXiv 1801.04406,
    eq. 9) and R2 at generated ones. `score` maps f32[B, H, W, 3] to f32[B] and must not mix pictures."""
    gradient = jax.grad(lambda x: jnp.sum(score(x)))(image)
    return jnp.sum(jnp.square(gradient.astype(jnp.float32)), (1, 2, 3))
