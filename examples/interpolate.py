# %% [markdown]
# Goes from one caption to another, and from one noise to another. Every function takes batches, and
# works under `vmap` as well.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import dallegan
from dallegan.sampling import slerp

CAR, BEAR = "a small red car in the desert", "一只棕色的大熊站在雪地里"

model = dallegan.load()
gan, params = model.gan, model.params
frames = model.interpolate(CAR, BEAR, frames=8)  # in one call: uint8[8, H, W, 3]
print(frames.shape)

# %%
# the same by hand: sentence vectors move in a line, one caption's words fade out while the other's fade in
text = gan.encode(params, model.tokenizer.encode([CAR, BEAR]))
first, last = (jax.tree.map(lambda x, i=i: x[i : i + 1], text) for i in (0, 1))
noise = jax.random.normal(jax.random.key(0), (2, model.config.model.noise))


def at(t: jax.Array) -> jax.Array:
    """Returns f32[H, W, 3], the image at t in [0, 1]."""
    blended, z = first.between(last, t[None]), slerp(noise[0], noise[1], t[None])
    return gan.decode(params, gan.generate(params, blended, z))[0]


images = jax.jit(jax.vmap(at))(jnp.linspace(0, 1, 8))
change = jnp.abs(jnp.diff(images, axis=0)).mean((1, 2, 3)).max()
print(images.shape, "largest change from frame to frame:", float(change))
car = gan.synthesize(params, model.tokenizer.encode([CAR]), noise[:1])[0]
np.testing.assert_allclose(images[0], car, atol=1e-3)
