import jax
import jax.numpy as jnp
import numpy as np

from dallegan.models.layers import Residual, attend, depth_to_space, lrelu, space_to_depth, upsample

KEY = jax.random.key(0)


def test_depth_to_space_places_pixels_in_raster_order_and_inverts():
    x = jax.random.normal(KEY, (2, 3, 5, 12))
    y = depth_to_space(x, 2)
    assert y.shape == (2, 6, 10, 3)
    assert (y[0, 1, 0] == x[0, 0, 0, 6:9]).all()  # row 1, column 0 of the patch
    assert (space_to_depth(y, 2) == x).all()


def test_upsample_repeats():
    x = jax.random.normal(KEY, (2, 3, 5, 4))
    assert (upsample(x) == x.repeat(2, 1).repeat(2, 2)).all()


def test_attention_against_the_formula():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, n, 4)) for i, n in ((0, 3), (1, 5), (2, 5)))
    mask = jnp.array([[True, True, False, True, False]])
    weights = np.exp(np.asarray(q[0] @ k[0].T) / 2) * np.asarray(mask)
    expected = (weights / weights.sum(1, keepdims=True)) @ np.asarray(v[0])
    np.testing.assert_allclose(attend(q, k, v, mask, 1)[0], expected, rtol=1e-5)


def test_masked_tokens_change_nothing():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, n, 8)) for i, n in ((0, 3), (1, 5), (2, 5)))
    mask = jnp.array([[True, True, True, False, False]])
    np.testing.assert_array_equal(attend(q, k, v, mask, 2), attend(q, k.at[:, 3:].set(9), v.at[:, 3:].set(7), mask, 2))


def test_residual_starts_as_identity_and_learns():
    block, x = Residual(8, depth=3), jax.random.normal(KEY, (2, 4, 4, 8))
    params = block.init(KEY, x)
    assert (block.apply(params, x) == x).all()
    gradient = jax.grad(lambda p: jnp.sum(block.apply(p, x) ** 2))(params)
    assert jnp.abs(gradient["params"]["conv1"]["conv"]["kernel"]).max() > 0


def test_lrelu():
    assert np.allclose(lrelu(jnp.array([-1.0, 2.0])), [-0.2, 2.0])
