# %% [markdown]
# Train the four boxes in a loop of your own: R3GAN's loss with R1, one Adam per player, a moving average.

# %%
import os

import jax
import jax.numpy as jnp
import optax

from dallegan.config import load_preset
from dallegan.data.pipeline import make_batches, make_dataset, make_source, make_tokenizer
from dallegan.losses import RPGAN, gradient_penalty
from dallegan.models.layers import to_float
from dallegan.sampling import Model, make_gan

STEPS = int(os.environ.get("STEPS", "300"))
config = load_preset("quickstart")
source = make_source(config)
tokenizer = make_tokenizer(source, config)
batches = make_batches(make_dataset(source, tokenizer, config), config, start=0)
gan = make_gan(config, tokenizer.size)
params = jax.jit(gan.init)(jax.random.key(0))  # one entry per player: "generator" and "discriminator"
ema, adam = params["generator"], optax.adam(2e-4, b1=0.0, b2=0.99)
opt = {player: adam.init(params[player]) for player in params}


# %%
def objective(params, frozen, batch, noise):
    """Returns the sum of both players' losses, and the discriminator's.

    `frozen` is `params` without gradients: each player's loss sees the other player through it.
    """
    tokens, real = batch["tokens"], to_float(batch["image"])
    fake = gan.synthesize(params, tokens, noise)
    score = lambda params, image: gan.discriminate(params, image, tokens)
    d = RPGAN.discriminator(score(params, real), score(params, jax.lax.stop_gradient(fake)))
    d += 0.5 * jnp.mean(gradient_penalty(lambda x: score(params, x), real))
    return d + RPGAN.generator(score(frozen, real), score(frozen, fake)), d


@jax.jit
def step(params, ema, opt, batch, key):
    """Updates both players once."""
    noise = jax.random.normal(key, (len(batch["tokens"]), gan.model.noise))
    gradients, d = jax.grad(objective, has_aux=True)(params, jax.lax.stop_gradient(params), batch, noise)
    for player in params:
        update, opt[player] = adam.update(gradients[player], opt[player])
        params[player] = optax.apply_updates(params[player], update)
    return params, optax.incremental_update(params["generator"], ema, 0.01), opt, d


for i in range(STEPS):
    params, ema, opt, d = step(params, ema, opt, next(batches), jax.random.fold_in(jax.random.key(1), i))
    if i % 50 == 0 or i == STEPS - 1:
        print(f"step {i}: discriminator's loss {float(d):.3f}")

# %%
model = Model(gan, {"generator": ema, "discriminator": params["discriminator"]}, tokenizer, config)
print(model.sample("a big brown bear standing in the snow", n=4).shape)
