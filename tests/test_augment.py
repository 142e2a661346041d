import jax
import jax.numpy as jnp
import numpy as np

from dallegan.augment import shift

IMAGE = jax.random.normal(jax.random.key(0), (3, 16, 16, 3))


def test_all_pictures_move_together_by_at_most_the_share():
    seen = set()
    for i in range(60):
        moved = shift(IMAGE, jax.random.key(i), 0.125)
        offsets = [
            (dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if np.array_equal(jnp.roll(IMAGE, (dy, dx), (1, 2))[:, 2:-2, 2:-2], moved[:, 2:-2, 2:-2])
        ]
        assert len(offsets) == 1
        seen.add(offsets[0])
    assert len(seen) > 15
    assert {dy for dy, _ in seen} == set(range(-2, 3))


def test_edges_are_repeated_and_zero_share_does_nothing():
    flat = jnp.broadcast_to(IMAGE[:, :1, :1], IMAGE.shape)
    assert (shift(flat, jax.random.key(1), 0.25) == flat).all()
    assert shift(IMAGE, jax.random.key(1), 0.0) is IMAGE


def test_it_is_differentiable():
    gradient = jax.grad(lambda x: jnp.sum(shift(x, jax.random.key(1), 0.25)))(IMAGE)
    np.testing.assert_allclose(gradient.sum(), IMAGE.size, rtol=1e-6)  # each pixel shown comes from one pixel
