import jax
import jax.numpy as jnp
import numpy as np

from dallegan.augment import augment, colour, cutout, sample_params, shift
from dallegan.config import AugmentConfig

IMAGE = jax.random.normal(jax.random.key(0), (50, 16, 16, 3))


def test_each_picture_moves_by_its_own_offset():
    offsets = sample_params(jax.random.key(1), 50, 2).offset
    moved = shift(IMAGE, offsets, 2)
    for before, after, (down, right) in zip(
        np.asarray(IMAGE), np.asarray(moved), offsets.tolist(), strict=True
    ):
        np.testing.assert_array_equal(
            after[2:-2, 2:-2], np.roll(before, (2 - down, 2 - right), (0, 1))[2:-2, 2:-2]
        )
    assert {int(x) for x in offsets.ravel()} == {0, 1, 2, 3, 4}


def test_edges_are_repeated_and_zero_reach_does_nothing():
    flat = jnp.broadcast_to(IMAGE[:, :1, :1], IMAGE.shape)
    offsets = sample_params(jax.random.key(1), 50, 4).offset
    assert (shift(flat, offsets, 4) == flat).all()
    assert augment(IMAGE, sample_params(jax.random.key(1), 50, 0), AugmentConfig(shift=0.0), 0) is IMAGE


def test_it_is_differentiable():
    offsets = sample_params(jax.random.key(1), 50, 4).offset
    gradient = jax.grad(lambda x: jnp.sum(shift(x, offsets, 4)))(IMAGE)
    np.testing.assert_allclose(gradient.sum(), IMAGE.size, rtol=1e-6)  # each pixel shown comes from one pixel


def test_colour():
    grey = jnp.mean(IMAGE, 3)
    by = lambda *strength: colour(IMAGE, jnp.tile(jnp.asarray(strength, float), (50, 1)))
    np.testing.assert_allclose(by(0, 0, 0), IMAGE, atol=1e-6)
    np.testing.assert_allclose(by(1, 0, 0), IMAGE + 0.5, atol=1e-5)
    np.testing.assert_allclose(
        by(0, -1, 0), jnp.broadcast_to(grey[..., None], IMAGE.shape), atol=1e-5
    )  # no colour is left
    np.testing.assert_allclose(jnp.mean(by(0, 1, 0), 3), grey, atol=1e-5)
    np.testing.assert_allclose(by(0, 0, 1).std((1, 2, 3)), 1.5 * IMAGE.std((1, 2, 3)), rtol=1e-4)


def test_cutout_blanks_a_square():
    whole = jnp.ones((3, 16, 16, 3))
    cut = np.asarray(cutout(whole, jnp.asarray([[0.5, 0.5], [0.25, 0.75], [0.0, 0.0]]), 0.5))
    assert [int((x[..., 0] == 0).sum()) for x in cut] == [64, 64, 16]
    assert (cut[0, 4:12, 4:12] == 0).all()
    assert (cut[1, 0:8, 8:16] == 0).all()


def test_real_and_generated_pictures_are_changed_alike():
    config = AugmentConfig(colour=1.0, cutout=0.5)
    params = sample_params(jax.random.key(3), 50, 2)
    once = augment(IMAGE, params, config, 2)
    np.testing.assert_array_equal(once, augment(IMAGE, params, config, 2))
    assert (once != IMAGE).any((1, 2, 3)).all()
    assert -1 <= params.colour.min() < -0.9 < 0.9 < params.colour.max() <= 1
