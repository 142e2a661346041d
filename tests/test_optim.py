import jax.numpy as jnp
import numpy as np
from conftest import tiny

from dallegan.optim import cosine, ema_decay, ema_update, optimizer


def test_cosine_ends():
    assert np.allclose([cosine(2.0, 1.0, p) for p in (0, 0.5, 1, 3)], [2, 1.5, 1, 1])


def test_schedules_scale_with_the_budget():
    for steps in (100, 1000):
        config = tiny(steps=steps, optim__lr=(4e-4, 1e-4), optim__warmup=0.1, optim__beta2=(0.9, 0.99))
        params = {"w": jnp.ones(3)}
        adam = optimizer(config)
        state = adam.init(params)
        rates, betas = [], []
        for _ in range(steps):
            _, state = adam.update({"w": jnp.ones(3)}, state, params)
            rates.append(float(state.hyperparams["learning_rate"]))
            betas.append(float(state.hyperparams["b2"]))
        assert np.isclose(rates[-1], 1e-4, rtol=0.02)
        assert np.isclose(max(rates), 4e-4, rtol=0.03)
        assert abs(np.argmax(rates) / steps - 0.1) < 0.02
        assert np.isclose(betas[0], 0.9)
        assert np.allclose(betas[steps // 5 :], 0.99)


def test_ema_halves_in_its_half_life():
    config = tiny(steps=1000, batch=64, optim__ema=0.01)
    step = 900  # past the ramp
    decay = ema_decay(config, jnp.array(step))
    steps = config.optim.ema * config.images / config.batch
    np.testing.assert_allclose(decay**steps, 0.5, rtol=1e-5)
    assert ema_decay(config, jnp.array(0)) < 2e-3  # the first step's parameters are taken as they are
    assert ema_update({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, 0.25)["w"] == 0.75
