"""Differentiable augmentation (arXiv 2006.10738) of the images that the discriminator sees.

Real and generated images pass through augmentation, and the generator's gradient passes back through it, so
the generator is never punished for what augmentation does.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from dallegan.config import AugmentConfig
from dallegan.shapes import Float, Given, Images, Int


class AugmentParams(flax.struct.PyTreeNode):
    """The random numbers of each image's augmentation."""

    offset: Any  # i32[B, 2] in 0..2 reach, down and right
    colour: Any  # f32[B, 3] in [-1, 1]: brightness, saturation, contrast
    cutout: Any  # f32[B, 2] in [0, 1): centre of the blanked square


def sample_params(key: jax.Array, count: int, reach: int) -> AugmentParams:
    """Samples parameters for `count` images, with shifts of up to `reach` pixels."""
    offset = jax.random.randint(key, (count, 2), 0, 2 * reach + 1)
    colour = jax.random.uniform(jax.random.fold_in(key, 1), (count, 3), minval=-1)
    return AugmentParams(offset, colour, jax.random.uniform(jax.random.fold_in(key, 2), (count, 2)))


def augment(
    image_BHWC: Images, params: AugmentParams, config: AugmentConfig, reach: int
) -> Float[jax.Array, "B H W 3"]:
    """Applies the colour, shift and cutout that `config` turns on to images f32[B, H, W, 3] in [-1, 1]."""
    x = jnp.asarray(image_BHWC)
    x = colour(x, params.colour * config.colour) if config.colour else x
    x = shift(x, params.offset, reach) if reach else x
    return cutout(x, params.cutout, config.cutout) if config.cutout else x


def colour(image_BHWC: Images, strength_B3: Float[Given, "B 3"]) -> Float[jax.Array, "B H W 3"]:
    """Changes brightness, saturation and contrast by strengths f32[B, 3] in [-1, 1].

    Adds up to ±0.5 to all pixels, multiplies the distance from grey by 0 to 2, and the distance from the
    image's mean by 0.5 to 1.5.
    """
    brightness, saturation, contrast = (strength_B3[:, i, None, None, None] for i in range(3))
    x = image_BHWC + 0.5 * brightness
    grey = jnp.mean(x, 3, keepdims=True)
    x = grey + (x - grey) * (1 + saturation)
    mean = jnp.mean(x, (1, 2, 3), keepdims=True)
    return mean + (x - mean) * (1 + 0.5 * contrast)


def shift(image_BHWC: Images, offset_B2: Int[Given, "B 2"], reach: int) -> Float[jax.Array, "B H W 3"]:
    """Moves each image by its offset i32[B, 2] in 0..2 reach; edges are repeated.

    A discriminator that reads patches has gradients with the patches' period. Each image meets that grid at a
    new place every time, so the generator cannot lock on to it, and no pattern of the patch size grows.
    """
    padded = jnp.pad(image_BHWC, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    return jax.vmap(lambda x, o: jax.lax.dynamic_slice(x, (o[0], o[1], 0), image_BHWC.shape[1:]))(
        padded, offset_B2
    )


def cutout(image_BHWC: Images, centre_B2: Float[Given, "B 2"], side: float) -> Float[jax.Array, "B H W 3"]:
    """Blanks a square around a centre f32[B, 2] in [0, 1); its side is the fraction `side` of the image's."""
    near = [
        jnp.abs((jnp.arange(n) + 0.5) / n - centre_B2[:, i, None]) < side / 2
        for i, n in enumerate(image_BHWC.shape[1:3])
    ]
    return jnp.where((near[0][:, :, None] & near[1][:, None, :])[..., None], 0.0, image_BHWC)
