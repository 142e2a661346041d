import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from conftest import tiny

from dallegan.models.gan import Gan
from dallegan.optim import adam, cosine, ema_decay, ema_update, is_hidden, make_optimizer, orthogonalize


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
    rule = make_optimizer(gan, config.optim, config.steps)
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


def test_muon_moves_the_hidden_kernels_and_adam_the_others():
    config = tiny(optim__lr=(1e-2, 1e-3), optim__lr_d=(3e-2, 3e-2), optim__warmup=0.0, optim__muon=20.0, steps=4)
    kernels = {"residual0": (3, 3, 4, 6), "down1": (40, 8), "subpixel": (1, 1, 4, 16), "stem": (3, 3, 3, 8), "head": (8, 3)}
    side = {name: {"conv": {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[-1])}} for name, shape in kernels.items()}
    params, hidden = {"generator": side, "discriminator": side}, ("residual0", "down1", "subpixel")
    rule, plain = make_optimizer(gan, config.optim, config.steps), optimizer(dataclasses.replace(config, optim=dataclasses.replace(config.optim, muon=0.0)))
    reference = optax.contrib.scale_by_muon(beta=0.5, nesterov=False)
    states = rule.init(params), plain.init(params), [reference.init(jnp.zeros((np.prod(kernels[n][:-1]), kernels[n][-1]))) for n in hidden]
    for step in range(4):
        gradient = jax.tree.map(lambda x, step=step: 3.0**step * jax.random.normal(jax.random.key(step + x.size), x.shape), params)
        (update, one), (before, two), three = rule.update(gradient, states[0]), plain.update(gradient, states[1]), []
        for i, name in enumerate(hidden):
            matrix = lambda tree, name=name: tree[name]["conv"]["kernel"].reshape(-1, kernels[name][-1])
            expected, new = reference.update(matrix(gradient["generator"]), states[2][i])
            three.append(new)
            wide = 2.0 if name == "subpixel" else 1.0  # sqrt(fan-out / fan-in), where above 1
            for player, rate in (("generator", cosine(1e-2, 1e-3, step / 4)), ("discriminator", 3e-2)):
                moved = matrix(update[player]) / (-20 * rate * wide)
                np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-4)
                values = np.linalg.svd(moved, compute_uv=False)
                assert np.all((values > 0.6) & (values < 1.25)), (name, values)
        for player, name in itertools.product(params, kernels):
            for part in ("bias",) if name in hidden else ("bias", "kernel"):
                np.testing.assert_array_equal(update[player][name]["conv"][part], before[player][name]["conv"][part])
        states = one, two, three
    moments = [x.shape for x in jax.tree.leaves(states[0]) if x.ndim > 1]
    assert sorted(moments) == sorted(2 * [*kernels.values()]), "one moment of each kernel is kept"


def test_the_trunks_and_no_other_layers_are_hidden():
    config = tiny(text__encoder="transformer")
    shapes = jax.eval_shape(Gan(config.text, config.model, 32).init, jax.random.key(0))
    layers = {(path[0].key, *(step.key for step in path[1:-1])) for path, _ in jax.tree.leaves_with_path(shapes) if is_hidden(path)}
    assert {path[1:2] for path in layers} == {("up",), ("discriminator",)}
    assert ("generator", "up", "subpixel") in layers


def test_what_has_no_gradient_does_not_move_by_muon():
    """As a kernel behind one that starts at zero: no division by its own size, no amplified rounding."""
    np.testing.assert_array_equal(orthogonalize(jnp.zeros((8, 4))), np.zeros((8, 4)))
    thin = jnp.outer(jnp.arange(8.0), jnp.arange(4.0))  # of rank 1
    values = np.linalg.svd(orthogonalize(thin), compute_uv=False)
    assert 0.6 < values[0] < 1.25
    assert np.all(values[1:] < 1e-3)


def test_ema_halves_in_its_half_life():
    config = tiny(steps=1000, batch=64, optim__ema=0.01)
    step = 900  # past the ramp
    decay = ema_decay(config, jnp.array(step))
    steps = config.optim.ema * config.images / config.batch
    np.testing.assert_allclose(decay**steps, 0.5, rtol=1e-5)
    assert ema_decay(config, jnp.array(0)) < 2e-3  # the first step's parameters are taken as they are
    assert ema_update({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, 0.25)["w"] == 0.75
