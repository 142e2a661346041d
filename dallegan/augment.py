"""Differentiable augmentation: what the discriminator sees of real and generated pictures alike (arXiv 2006.10738)."""

import jax
import jax.numpy as jnp


def shift(image_BHWC: jax.Array, key: jax.Array, share: float) -> jax.Array:
    """Moves all pictures of a step by the same random offset, up to `share` of their side each way; edges are repeated.

    A discriminator that reads patches has gradients with the patches' period; as the offset changes from step to step,
    the generator cannot lock on to that grid, and no pattern of the patch size grows in flat areas.
    """
    reach = int(image_BHWC.shape[1] * share)
    if not reach:
        return image_BHWC
    padded = jnp.pad(image_BHWC, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    down, right = jax.random.randint(key, (2,), 0, 2 * reach + 1)
    return jax.lax.dynamic_slice(padded, (0, down, right, 0), image_BHWC.shape)
