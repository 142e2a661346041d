# %% [markdown]
# The four parts trained in a loop of your own: R3GAN's loss with R1, two optimizers, a moving average.

# %%
import os

import jax
import jax.numpy as jnp
import optax

from dallegan.config import load_preset
from dallegan.data.pipeline import make_batches, make_dataset, make_source, make_tokenizer
from dallegan.losses import discriminator_loss, generator_loss, gradient_penalty
from dallegan.models.layers import to_float
from dallegan.optim import ema_update
from dallegan.sampling import Model, make_gan

STEPS = int(os.environ.get("STEPS", "300"))
config = load_preset("quickstart")
source = make_source(config)
tokenizer = make_tokenizer(source, config)
batches = make_batches(make_dataset(source, tokenizer, config), config, 0)
gan = make_gan(config, tokenizer.size)
params = jax.jit(gan.init)(jax.random.key(0))  # {"generator": encoder, generator and decoder; "discriminator": ...}
ema, adam = params["generator"], optax.adam(2e-4, b1=0.0, b2=0.99)
state = {player: adam.init(params[player]) for player in params}


# %%
def losses(params, fixed, batch, noise):
    """The sum of both players' losses: `fixed` is `params` without gradients, so that each player sees its own."""
    tokens, real = batch["tokens"], to_float(batch["image"])
    fake = gan.synthesize(params, tokens, noise)
    score = lambda params, image: gan.discriminate(params, image, tokens)
    d = discriminator_loss("rpgan", score(params, real), score(params, jax.lax.stop_gradient(fake)))
    d += 0.5 * jnp.mean(gradient_penalty(lambda x: score(params, x), real))
    return d + generator_loss("rpgan", score(fixed, real), score(fixed, fake)), d


@jax.jit
def step(params, ema, state, batch, key):
    """One step of both players."""
    noise = jax.random.normal(key, (len(batch["tokens"]), gan.model.noise))
    gradients, d = jax.grad(losses, has_aux=True)(params, jax.lax.stop_gradient(params), batch, noise)
    for player in params:
        update, state[player] = adam.update(gradients[player], state[player])
        params[player] = optax.apply_updates(params[player], update)
    return params, ema_update(ema, params["generator"], 0.99), state, d


for i in range(STEPS):
    params, ema, state, d = step(params, ema, state, next(batches), jax.random.fold_in(jax.random.key(1), i))
    if i % 50 == 0 or i == STEPS - 1:
        print(f"step {i}: discriminator's loss {float(d):.3f}")

# %%
model = Model(gan, {"generator": ema, "discriminator": params["discriminator"]}, tokenizer, config)
print(model.sample("a big brown bear standing in the snow", n=4).shape)
