# %% [markdown]
# Finds the noise that draws a given image: gradient descent through the generator and the decoder.

# %%
import os

import jax
import jax.numpy as jnp
import optax

import dallegan

STEPS = int(os.environ.get("STEPS", "300"))
CAPTION = "a small red car in the desert"

model = dallegan.load()
gan, params = model.gan, model.params
tokens = model.tokenizer.encode([CAPTION])
wanted = model.sample(CAPTION, seed=7).astype("float32") / 127.5 - 1  # f32[1, H, W, 3] in [-1, 1]


# %%
def loss(noise: jax.Array) -> jax.Array:
    """Returns the squared distance from the image, plus a small penalty that keeps the noise near 0."""
    return jnp.mean((gan.synthesize(params, tokens, noise) - wanted) ** 2) + 1e-3 * jnp.mean(noise**2)


adam = optax.adam(0.01)


@jax.jit
def step(noise, state):
    """Takes one step of Adam."""
    value, gradient = jax.value_and_grad(loss)(noise)
    update, state = adam.update(gradient, state)
    return noise + update, state, value


noise = jnp.zeros((1, model.config.model.noise))
state = adam.init(noise)
first = float(loss(noise))
for _ in range(STEPS):
    noise, state, value = step(noise, state)
print(f"squared distance: {first:.4f} at noise 0, {float(value):.4f} after {STEPS} steps")
assert float(value) < first
