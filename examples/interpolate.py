# %% [markdown]
# From caption to caption, and from noise to noise: every function takes batches, and works under `vmap` as well.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import dallegan
from dallegan.sampling import slerp

model = dallegan.load()
gan, params = model.gan, model.params
way = model.interpolate("a small red car in the desert", "一只棕色的大熊站在雪地里", frames=8)  # in one call: uint8[8, H, W, 3]
print(way.shape)

# %%
# the same by hand: sentence vectors move in a line, the words of one caption fade out as those of the other fade in
text = gan.encode(params, model.tokenizer.encode(["a small red car in the desert", "一只棕色的大熊站在雪地里"]))
first, last = (jax.tree.map(lambda x, i=i: x[i : i + 1], text) for i in (0, 1))
noise = jax.random.normal(jax.random.key(0), (2, model.config.model.noise))


def at(t: jax.Array) -> jax.Array:
    """f32[H, W, 3]: the picture at t, from 0 to 1."""
    between, z = first.between(last, t[None]), slerp(noise[0], noise[1], t[None])
    return gan.decode(params, gan.generate(params, between, z), between, z)[0]


pictures = jax.jit(jax.vmap(at))(jnp.linspace(0, 1, 8))
print(pictures.shape, "largest change from frame to frame:", float(jnp.abs(jnp.diff(pictures, axis=0)).mean((1, 2, 3)).max()))
np.testing.assert_allclose(pictures[0], gan.synthesize(params, model.tokenizer.encode(["a small red car in the desert"]), noise[:1])[0], atol=1e-3)
