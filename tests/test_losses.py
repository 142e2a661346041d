import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dallegan import losses

REAL, FAKE = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.0, 3.0, -1.0])


def softplus(x):
    return np.log1p(np.exp(np.asarray(x, np.float64)))


@pytest.mark.parametrize(
    ("kind", "d", "g"),
    [
        ("rpgan", softplus(FAKE - REAL).mean(), softplus(REAL - FAKE).mean()),
        ("nonsaturating", softplus(-REAL).mean() + softplus(FAKE).mean(), softplus(-FAKE).mean()),
        (
            "hinge",
            np.maximum(0, 1 - np.asarray(REAL)).mean() + np.maximum(0, 1 + np.asarray(FAKE)).mean(),
            -np.asarray(FAKE).mean(),
        ),
    ],
)
def test_closed_forms(kind, d, g):
    np.testing.assert_allclose(losses.adversarial(kind).discriminator(REAL, FAKE), d, rtol=1e-6)
    np.testing.assert_allclose(losses.adversarial(kind).generator(REAL, FAKE), g, rtol=1e-6)


def test_an_unknown_form_of_the_game_is_refused():
    with pytest.raises(
        ValueError, match="no adversarial loss 'nonsense': choose rpgan, hinge or nonsaturating"
    ):
        losses.adversarial("nonsense")


def test_players_pull_apart():
    for kind in ("rpgan", "hinge", "nonsaturating"):
        d = jax.grad(lambda f, k=kind: losses.adversarial(k).discriminator(REAL, f))(FAKE)
        g = jax.grad(lambda f, k=kind: losses.adversarial(k).generator(REAL, f))(FAKE)
        assert (d >= 0).all()
        assert (g < 0).all()


def test_matching_masks_equal_captions():
    valid = jnp.array([True, False, True])
    np.testing.assert_allclose(
        losses.matching_loss(REAL, FAKE, valid),
        (softplus(FAKE - REAL) * np.array([1, 0, 1])).mean(),
        rtol=1e-6,
    )


def test_contrast_is_the_cross_entropy_of_the_true_pairs():
    match = jax.random.normal(jax.random.key(0), (3, 5))
    m = np.asarray(match, np.float64)
    same = np.eye(3, 5, dtype=bool)
    by_picture = [np.log(np.exp(m[i]).sum()) - m[i, i] for i in range(3)]
    by_caption = [np.log(np.exp(m[:, i]).sum()) - m[i, i] for i in range(3)]
    np.testing.assert_allclose(
        losses.contrastive_loss(match, jnp.asarray(same)),
        (np.mean(by_picture) + np.mean(by_caption)) / 2,
        rtol=1e-5,
    )
    # a caption that reads as the picture's own is no negative: as if it were not there
    same[0, 3] = True
    by_picture[0] = np.log(np.exp(m[0, [0, 1, 2, 4]]).sum()) - m[0, 0]
    np.testing.assert_allclose(
        losses.contrastive_loss(match, jnp.asarray(same)),
        (np.mean(by_picture) + np.mean(by_caption)) / 2,
        rtol=1e-5,
    )
    gradient = jax.grad(losses.contrastive_loss)(match, jnp.asarray(same))
    # two pictures of the batch with the same caption: neither is the other's negative, in either direction
    same[0, 1] = same[1, 0] = True
    by_picture[:2] = np.log(np.exp(m[0, [0, 2, 4]]).sum()) - m[0, 0], np.log(np.exp(m[1, 1:]).sum()) - m[1, 1]
    by_caption[:2] = (np.log(np.exp(m[[0, 2], 0]).sum()) - m[0, 0], np.log(np.exp(m[1:, 1]).sum()) - m[1, 1])
    np.testing.assert_allclose(
        losses.contrastive_loss(match, jnp.asarray(same)),
        (np.mean(by_picture) + np.mean(by_caption)) / 2,
        rtol=1e-5,
    )
    assert jnp.isfinite(jax.grad(losses.contrastive_loss)(match, jnp.asarray(same))).all()
    assert jnp.isfinite(gradient).all()
    assert gradient[0, 3] == 0


def test_diversity_is_a_share_of_real_distance_and_ends_there():
    real = jax.random.uniform(jax.random.key(0), (6, 32, 32, 3), minval=-1)
    fake, other = jax.random.uniform(jax.random.key(1), (2, 4, 32, 32, 3), minval=-1)
    pooled = lambda x: np.asarray(x, np.float64).reshape(-1, 8, 4, 8, 4, 3).mean((2, 4))
    centred = lambda x: pooled(x) - pooled(x).mean((1, 2), keepdims=True)
    far = lambda a, b: np.abs(centred(a) - centred(b)).mean((1, 2, 3))
    loss = lambda again, apart: losses.diversity_loss(*map(losses.layout, (fake, again, real)), apart)
    scale = far(real, np.roll(real, 1, 0)).mean()
    np.testing.assert_allclose(loss(other, 4.0), -(far(fake, other) / (4 * scale)).mean(), rtol=1e-5)
    assert loss(other, 0.1) == -1
    assert loss(fake, 0.5) == 0
    alike = jnp.zeros((6, 8, 8, 3))
    assert jnp.isfinite(jax.grad(lambda x: losses.diversity_loss(x, alike, alike, 0.5))(alike)).all()
    # brightness is no diversity, nor are dots
    np.testing.assert_allclose(loss(fake + 0.3, 0.5), 0, atol=1e-6)
    np.testing.assert_allclose(loss(fake + 0.3 * (-1.0) ** jnp.arange(32)[:, None], 0.5), 0, atol=1e-6)


def test_gradient_penalty_of_a_quadratic():
    x = jax.random.normal(jax.random.key(0), (4, 5, 5, 3))
    a = jax.random.normal(jax.random.key(1), (5, 5, 3))
    norms = losses.gradient_penalty(lambda x: jnp.sum(a * x**2, (1, 2, 3)), x)
    np.testing.assert_allclose(norms, jnp.sum((2 * a * x) ** 2, (1, 2, 3)), rtol=1e-5)


def test_gradient_penalty_has_a_gradient():
    # d/da of |∇ (a·x)|² = 2a
    x = jnp.ones((1, 2, 2, 3))
    gradient = jax.grad(lambda a: losses.gradient_penalty(lambda x: jnp.sum(a * x, (1, 2, 3)), x)[0])(
        jnp.full((2, 2, 3), 3.0)
    )
    np.testing.assert_allclose(gradient, 6.0)
