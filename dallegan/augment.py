"""Differentiable augmentation: what the discriminator sees of real and generated pictures alike (arXiv 2006.10738)."""

import jax
import jax.numpy as jnp


def draw_offsets(key: jax.Array, count: int, reach: int) -> jax.Array:
    """i32[count, 2]: how far each picture is moved down and right, plus `reach`; uniform over -reach..reach pixels."""
    return jax.random.randint(key, (count, 2), 0, 2 * reach + 1)


def shift(image_BHWC: jax.Array, offset_B2: jax.Array, reach: int) -> jax.Array:
    """Moves each picture by its offset; edges are repeated.

    A discriminator that reads patches has gradients with the patches' period. As a picture meets that grid at a new place
    each time, the generator cannot lock on to it, and no pattern of the patch size grows in flat areas.
    """
    if not reach:
        return image_BHWC
    padded = jnp.pad(image_BHWC, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    return jax.vmap(lambda x, o: jax.lax.dynamic_slice(x, (o[0], o[1], 0), image_BHWC.shape[1:]))(padded, offset_B2)
