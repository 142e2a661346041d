# %% [markdown]
# Train with a loss of your own: least squares (LSGAN, arXiv 1611.04076, eq. 9).
# Everything else is as in `quickstart`.
#
# An `Adversarial` holds what each player minimizes. `make_runner` takes it in place of the one that the
# configuration names.

# %%
import os

import jax.numpy as jnp

from dallegan.config import load_preset
from dallegan.data.pipeline import make_batches, make_dataset, make_source, make_tokenizer
from dallegan.losses import Adversarial
from dallegan.optim import make_optimizer
from dallegan.parallel import make_runner
from dallegan.sampling import make_gan

STEPS = int(os.environ.get("STEPS", "200"))

LEAST_SQUARES = Adversarial(
    # real images shall score 1 and generated ones 0
    discriminator=lambda real, fake: 0.5 * jnp.mean((real - 1) ** 2) + 0.5 * jnp.mean(fake**2),
    # generated images shall score 1
    generator=lambda real, fake: 0.5 * jnp.mean((fake - 1) ** 2),
)

# %%
config = load_preset("quickstart")
source = make_source(config)
tokenizer = make_tokenizer(source, config)
gan = make_gan(config, tokenizer.size)
optimizer = make_optimizer(gan, config.optim, config.steps)
runner = make_runner(gan, optimizer, config, adversarial=LEAST_SQUARES)  # on all devices
state = runner.init()
batches = make_batches(make_dataset(source, tokenizer, config), config, start=0)
for i in range(STEPS):
    state, metrics = runner.step(state, runner.put(next(batches)))
    if i % 50 == 0 or i == STEPS - 1:
        print(
            f"step {i}:", {name: round(float(metrics[name]), 3) for name in ("d_loss", "g_loss", "match_gap")}
        )
assert int(state.skipped) == 0
