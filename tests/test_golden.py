"""Golden numbers of the first steps.

If a change should move no number and this test fails, the change is wrong. If it should move them (another
loss, initialization, data order or random stream), run the test, check that the new numbers are sensible,
copy them from its message, and say in the commit why they moved. `python benchmarks/golden.py --check`
compares whole presets to the last bit on one machine.
"""

import jax
import numpy as np
from conftest import tiny

from dallegan.data.pipeline import make_batches, make_dataset, make_source, make_tokenizer
from dallegan.optim import make_optimizer
from dallegan.parallel import make_runner
from dallegan.sampling import make_gan

GOLDEN = {
    "d_loss": [5.5066, 4.8847, 5.0185],
    "g_loss": [2.152, 2.711, 2.0107],
    "r1": [1.4526, 1.1395, 1.7515],
    "grad_norm_d": [19.0367, 17.8211, 15.7947],
    "grad_norm_g": [10.2763, 8.4045, 11.7031],
}


def test_the_first_steps_are_as_they_were():
    config = tiny(loss__diversity=2.0, augment__colour=0.5, text__prenorm=True, model__shrink=(2.0,))
    source = make_source(config)
    tokenizer = make_tokenizer(source, config)
    gan = make_gan(config, tokenizer.size)
    runner = make_runner(gan, make_optimizer(gan, config.optim, config.steps), config, jax.devices()[:1])
    state, found = runner.init(), {name: [] for name in GOLDEN}
    batches = make_batches(make_dataset(source, tokenizer, config), config, 0)
    for _ in range(3):
        state, metrics = runner.step(state, runner.put(next(batches)))
        for name in GOLDEN:
            found[name].append(round(float(metrics[name]), 4))
    for name, values in GOLDEN.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-3, err_msg=f"{name}: now {found}")
