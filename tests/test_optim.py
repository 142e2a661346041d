import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from conftest import tiny
from flax.traverse_util import flatten_dict

from dallegan.config import OptimConfig
from dallegan.models.gan import Gan
from dallegan.optim import adam, cosine, ema_decay, make_optimizer, orthogonalize

NOTHING_HIDDEN = types.SimpleNamespace(hidden=frozenset())  # a gan whose kernels Adam trains


def test_cosine_ends():
    assert np.allclose([cosine(2.0, 1.0, p) for p in (0, 0.5, 1, 3)], [2, 1.5, 1, 1])


@pytest.mark.parametrize("beta1", [0.0, 0.5])
def test_schedules_scale_with_the_budget(beta1):
    for steps in (100, 1000):
        rule = adam(OptimConfig(warmup=0.1, betas=(beta1, 0.99)), (4e-4, 1e-4), steps)
        state, rates = rule.init(jnp.ones(3)), []
        for _ in range(steps):
            update, state = rule.update(jnp.ones(3), state)
            rates.append(-float(update[0]))  # Adam's update of a constant gradient is the learning rate
        assert np.isclose(rates[-1], 1e-4, rtol=0.02)
        assert np.isclose(max(rates), 4e-4, rtol=0.03)
        assert abs(np.argmax(rates) / steps - 0.1) < 0.02


def test_without_momentum_the_rule_is_adam():
    rule, reference = adam(OptimConfig(warmup=0.0), (1e-2, 1e-3), 10), optax.scale_by_adam(b1=0.0, b2=0.99)
    params = jnp.zeros(5)
    state, other = rule.init(params), reference.init(params)
    for step in range(10):
        gradient = jax.random.normal(jax.random.key(step), (5,)) * 3**step
        update, state = rule.update(gradient, state, params)
        expected, other = reference.update(gradient, other)
        np.testing.assert_allclose(update, -cosine(1e-2, 1e-3, step / 10) * expected, rtol=1e-5)
    assert sum(x.shape == (5,) for x in jax.tree.leaves(state)) == 1, "one moment is kept, not two"


def test_players_have_their_own_rates_and_kernels_of_large_fan_in_move_less():
    settings = OptimConfig(lr=(1e-2, 1e-2), lr_d=(3e-2, 3e-2), warmup=0.0, fan=8)
    side = {
        "a": {"kernel": jnp.ones((3, 3, 4, 2)), "bias": jnp.ones(2)},
        "embed": {"embedding": jnp.ones((7, 2))},
    }
    params = {"generator": side, "discriminator": side}
    rule = make_optimizer(NOTHING_HIDDEN, settings, 100)
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
    settings = OptimConfig(lr=(1e-2, 1e-3), lr_d=(3e-2, 3e-2), warmup=0.0, muon=20.0)
    kernels = {
        "residual0": (3, 3, 4, 6),
        "down1": (40, 8),
        "subpixel": (1, 1, 4, 16),
        "stem": (3, 3, 3, 8),
        "head": (8, 3),
    }
    side = {
        name: {"conv": {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[-1])}}
        for name, shape in kernels.items()
    }
    params, hidden = {"generator": side, "discriminator": side}, ("residual0", "down1", "subpixel")
    gan = types.SimpleNamespace(
        hidden={(player, name, "conv", "kernel") for player in params for name in hidden}
    )
    rule, plain = (make_optimizer(gan, dataclasses.replace(settings, muon=muon), 4) for muon in (20.0, 0.0))
    reference = optax.contrib.scale_by_muon(beta=0.5, nesterov=False)
    states = (
        rule.init(params),
        plain.init(params),
        [reference.init(jnp.zeros((np.prod(kernels[n][:-1]), kernels[n][-1]))) for n in hidden],
    )
    for step in range(4):
        gradient = jax.tree.map(
            lambda x, step=step: 3.0**step * jax.random.normal(jax.random.key(step + x.size), x.shape), params
        )
        (update, one), (before, two), three = (
            rule.update(gradient, states[0]),
            plain.update(gradient, states[1]),
            [],
        )
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
                np.testing.assert_array_equal(
                    update[player][name]["conv"][part], before[player][name]["conv"][part]
                )
        states = one, two, three
    moments = [x.shape for x in jax.tree.leaves(states[0]) if x.ndim > 1]
    assert sorted(moments) == sorted(2 * [*kernels.values()]), "one moment of each kernel is kept"


def test_the_trunks_and_no_other_layers_are_hidden():
    config = tiny(text__encoder="transformer")
    gan = Gan(config.text, config.model, 32)
    kernels = {
        path for path in flatten_dict(jax.eval_shape(gan.init, jax.random.key(0))) if path[-1] == "kernel"
    }
    trunks = ("residual", "down", "subpixel")
    named = {
        path for path in kernels if "encoder" not in path and any(layer.startswith(trunks) for layer in path)
    }
    assert gan.hidden == named
    assert {path[1:2] for path in gan.hidden} == {("up",), ("discriminator",)}
    assert ("generator", "up", "subpixel", "kernel") in gan.hidden
    dcgan = Gan(config.text, dataclasses.replace(config.model, recipe="dcgan"), 32)
    assert not dcgan.hidden


def test_what_has_no_gradient_does_not_move_by_muon():
    """As a kernel behind one that starts at zero: no division by its own size, no amplified rounding."""
    np.testing.assert_array_equal(orthogonalize(jnp.zeros((8, 4))), np.zeros((8, 4)))
    thin = jnp.outer(jnp.arange(8.0), jnp.arange(4.0))  # of rank 1
    values = np.linalg.svd(orthogonalize(thin), compute_uv=False)
    assert 0.6 < values[0] < 1.25
    assert np.all(values[1:] < 1e-3)


def test_ema_halves_in_its_half_life():
    settings = OptimConfig(ema=0.01)
    decay = ema_decay(settings, jnp.array(900), 1000, 64)  # past the ramp
    np.testing.assert_allclose(decay ** (0.01 * 1000), 0.5, rtol=1e-5)
    assert (
        ema_decay(settings, jnp.array(0), 1000, 64) < 2e-3
    )  # the first step's parameters are taken as they are
