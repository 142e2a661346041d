import jax
import jax.numpy as jnp
import numpy as np
import optax
from conftest import tiny

from dallegan.optim import adam, cosine, ema_decay, ema_update, optimizer


def test_cosine_ends():
    assert np.allclose([cosine(2.0, 1.0, p) for p in (0, 0.5, 1, 3)], [2, 1.5, 1, 1])


def test_schedules_scale_with_the_budget():
    for steps in (100, 1000):
        config = tiny(steps=steps, optim__lr=(4e-4, 1e-4), optim__warmup=0.1, optim__beta2=(0.9, 0.99))
        params = {"w": jnp.ones(3)}
        rule = adam(config, config.optim.lr)
        state = rule.init(params)
        rates, betas = [], []
        for _ in range(steps):
            _, state = rule.update({"w": jnp.ones(3)}, state, params)
            rates.append(float(state.hyperparams["learning_rate"]))
            betas.append(float(state.hyperparams["decay"]))
        assert np.isclose(rates[-1], 1e-4, rtol=0.02)
        assert np.isclose(max(rates), 4e-4, rtol=0.03)
        assert abs(np.argmax(rates) / steps - 0.1) < 0.02
        assert np.isclose(betas[0], 0.9)
        assert np.allclose(betas[steps // 5 :], 0.99)


def test_without_momentum_the_rule_is_adam():
    config = tiny(optim__lr=(1e-2, 1e-3), optim__warmup=0.0, steps=10)
    rule, reference = adam(config, config.optim.lr), optax.scale_by_adam(b1=0.0, b2=0.99)
    params = jnp.zeros(5)
    state, other = rule.init(params), reference.init(params)
    for step in range(10):
        gradient = jax.random.normal(jax.random.key(step), (5,)) * 3**step
        update, state = rule.update(gradient, state, params)
        expected, other = reference.update(gradient, other)
        np.testing.assert_allclose(update, -cosine(1e-2, 1e-3, step / 10) * expected, rtol=1e-5)
    assert sum(x.shape == (5,) for x in jax.tree.leaves(state)) == 1, "one moment is kept, not two"


def test_players_have_their_own_rates_and_kernels_of_large_fan_in_move_less():
    config = tiny(optim__lr=(1e-2, 1e-2), optim__lr_d=(3e-2, 3e-2), optim__warmup=0.0, optim__fan=8)
    side = {"a": {"kernel": jnp.ones((3, 3, 4, 2)), "bias": jnp.ones(2)}, "embed": {"embedding": jnp.ones((7, 2))}}
    params = {"generator": side, "discriminator": side}
    rule = optimizer(config)
    update, _ = rule.update(params, rule.init(params), params)  # Adam's first step is the learning rate
    g, d = (update[name] for name in params)
    np.testing.assert_allclose(g["a"]["kernel"], -1e-2 * 8 / 36, rtol=1e-4)
    for x in (g["a"]["bias"], g["embed"]["embedding"]):
        np.testing.assert_allclose(x, -1e-2, rtol=1e-4)
    np.testing.assert_allclose(d["a"]["kernel"], -3e-2 * 8 / 36, rtol=1e-4)
    for x in (d["a"]["bias"], d["embed"]["embedding"]):
        np.testing.assert_allclose(x, -3e-2, rtol=1e-4)
    params = {name: {"kernel": jnp.ones((6, 2))} for name in params}  # a fan-in below 8
    update, _ = rule.update(params, rule.init(params), params)
    np.testing.assert_allclose(update["generator"]["kernel"], -1e-2, rtol=1e-4)


def test_ema_halves_in_its_half_life():
    config = tiny(steps=1000, batch=64, optim__ema=0.01)
    step = 900  # past the ramp
    decay = ema_decay(config, jnp.array(step))
    steps = config.optim.ema * config.images / config.batch
    np.testing.assert_allclose(decay**steps, 0.5, rtol=1e-5)
    assert ema_decay(config, jnp.array(0)) < 2e-3  # the first step's parameters are taken as they are
    assert ema_update({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, 0.25)["w"] == 0.75
