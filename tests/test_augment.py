import jax
import jax.numpy as jnp
import numpy as np

from dallegan.augment import draw_offsets, shift

IMAGE = jax.random.normal(jax.random.key(0), (50, 16, 16, 3))


def test_each_picture_moves_by_its_own_offset():
    offsets = draw_offsets(jax.random.key(1), 50, 2)
    moved = shift(IMAGE, offsets, 2)
    for before, after, (down, right) in zip(np.asarray(IMAGE), np.asarray(moved), offsets.tolist(), strict=True):
        np.testing.assert_array_equal(after[2:-2, 2:-2], np.roll(before, (2 - down, 2 - right), (0, 1))[2:-2, 2:-2])
    assert {int(x) for x in offsets.ravel()} == {0, 1, 2, 3, 4}


def test_edges_are_repeated_and_zero_reach_does_nothing():
    flat = jnp.broadcast_to(IMAGE[:, :1, :1], IMAGE.shape)
    offsets = draw_offsets(jax.random.key(1), 50, 4)
    assert (shift(flat, offsets, 4) == flat).all()
    assert shift(IMAGE, draw_offsets(jax.random.key(1), 50, 0), 0) is IMAGE


def test_it_is_differentiable():
    offsets = draw_offsets(jax.random.key(1), 50, 4)
    gradient = jax.grad(lambda x: jnp.sum(shift(x, offsets, 4)))(IMAGE)
    np.testing.assert_allclose(gradient.sum(), IMAGE.size, rtol=1e-6)  # each pixel shown comes from one pixel
