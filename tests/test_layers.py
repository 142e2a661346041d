import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from dallegan.models.layers import Residual, attend, depth_to_space, lrelu, shrink, space_to_depth, upsample

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
    np.testing.assert_array_equal(
        attend(q, k, v, mask, 2), attend(q, k.at[:, 3:].set(9), v.at[:, 3:].set(7), mask, 2)
    )


def test_residual_starts_as_identity_and_learns():
    block, x = Residual(8, depth=3), jax.random.normal(KEY, (2, 4, 4, 8))
    params = block.init(KEY, x)
    assert (block.apply(params, x) == x).all()
    gradient = jax.grad(lambda p: jnp.sum(block.apply(p, x) ** 2))(params)
    assert jnp.abs(gradient["params"]["conv1"]["conv"]["kernel"]).max() > 0


def test_lrelu():
    assert np.allclose(lrelu(jnp.array([-1.0, 2.0])), [-0.2, 2.0])


def haar_shrunk(x, thresholds):
    """The plain Haar transform of disjoint squares: their means, and three differences by the garrote."""
    (threshold, *coarser), squares = (
        thresholds,
        space_to_depth(x, 2).reshape(*x.shape[:1], x.shape[1] // 2, x.shape[2] // 2, 4, -1),
    )
    signs = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    mean, *differences = np.moveaxis(np.einsum("st,bhwtc->bhwsc", signs, squares) / 4, -2, 0)
    mean = haar_shrunk(mean, coarser) if coarser else mean
    kept = [
        mean,
        *(np.where(np.abs(c) > threshold, c - threshold**2 / np.where(c == 0, 1, c), 0) for c in differences),
    ]
    return np.asarray(
        depth_to_space(jnp.asarray(np.einsum("st,sbhwc->bhwtc", signs, kept).reshape(*mean.shape[:3], -1)), 2)
    )


def test_shrinkage_is_the_mean_of_haar_shrinkage_on_every_grid():
    x = np.round(np.random.default_rng(0).uniform(-0.9, 0.9, (2, 8, 16, 3)) * 8) / 8
    levels, side = (20.0, 12.0), 4
    padded, grids = np.pad(x, ((0, 0), (side, side), (side, side), (0, 0)), mode="edge"), []
    for i, j in itertools.product(range(side), repeat=2):
        shrunk = haar_shrunk(padded[:, i : i + 12, j : j + 20], [t / 127.5 for t in levels])
        grids.append(shrunk[:, side - i :, side - j :][:, :8, :16])
    np.testing.assert_allclose(
        shrink(jnp.asarray(x, jnp.float32), levels), np.clip(np.mean(grids, 0), -1, 1), atol=1e-6
    )


def test_shrinkage_flattens_noise_and_leaves_edges():
    noise = jax.random.normal(KEY, (1, 16, 16, 3)) / 127.5
    edge = jnp.where(jnp.arange(16) < 7, -0.8, 0.8)[None, None, :, None] * jnp.ones((1, 16, 16, 3))
    shrunk = shrink(edge + noise, (2.0, 1.0, 1.0))
    assert jnp.std(shrunk[:, :, :5]) < 0.6 * jnp.std(noise)
    np.testing.assert_allclose(jnp.median(shrunk[:, :, 7] - shrunk[:, :, 6]), 1.6, atol=0.02)
    np.testing.assert_allclose(shrink(noise, (0.0, 0.0)), noise, atol=1e-6)
    assert jnp.abs(shrink(jnp.sign(noise), (50.0,))).max() <= 1


def test_gradient_of_shrinkage():
    check_grads(
        lambda x: shrink(x, (3.0, 2.0)),
        (0.9 * jax.random.uniform(KEY, (1, 4, 4, 1), minval=-1),),
        order=1,
        modes=["rev"],
        eps=1e-3,
        rtol=2e-2,
    )
