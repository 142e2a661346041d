import jax
import jax.numpy as jnp
import numpy as np
import prdc
import pytest
import scipy.linalg
from sklearn.metrics.pairwise import polynomial_kernel

from dallegan.evaluation import metrics

KEY = jax.random.key(0)


def sets(n=700, m=500, d=40, seed=0):
    """Two overlapping clouds of unequal size, far from the origin, with correlated axes of unequal scale."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) * rng.uniform(0.1, 3, d)
    real = rng.normal(size=(n, d)) @ mix + 7
    fake = rng.normal(size=(m, d)) @ mix * 0.8 + 7.5
    return real.astype(np.float32), fake.astype(np.float32)


@pytest.mark.parametrize(("n", "m"), [(700, 500), (30, 35)])  # more and fewer rows than dimensions
def test_frechet_distance_is_scipys(n, m):
    real, fake = (x.astype(np.float64) for x in sets(n, m))
    a, b = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    trace = np.sqrt(np.maximum(scipy.linalg.eigvals(a @ b).real, 0)).sum()
    wanted = np.sum((real.mean(0) - fake.mean(0)) ** 2) + np.trace(a) + np.trace(b) - 2 * trace
    assert float(metrics.frechet_distance(real, fake)) == pytest.approx(wanted, rel=1e-3)


def test_frechet_distance_of_shifted_gaussians_is_the_shift():
    real, _ = sets()
    shift = np.linspace(0, 1, real.shape[1], dtype=np.float32)
    assert float(metrics.frechet_distance(real, real + shift)) == pytest.approx(np.sum(shift**2), rel=1e-3)


def test_kernel_distance_is_the_unbiased_mmd():
    real, fake = (x / 3 for x in sets(300, 300))
    kernel = lambda x, y: polynomial_kernel(x.astype(np.float64), y.astype(np.float64), degree=3, coef0=1)
    a, b, n = kernel(real, real), kernel(fake, fake), 300
    wanted = (
        (a.sum() - np.trace(a)) / (n * (n - 1))
        + (b.sum() - np.trace(b)) / (n * (n - 1))
        - 2 * kernel(real, fake).mean()
    )
    np.testing.assert_allclose(metrics.kernel_distance(KEY, real, fake, 3, 300), wanted, rtol=1e-3)


def test_subsets_larger_than_the_sets_are_refused():
    with pytest.raises(ValueError, match="subsets of 1000"):
        metrics.kernel_distance(KEY, *sets())


def test_kernel_distance_of_one_distribution_is_zero_within_its_spread():
    real, _ = sets(4000)
    values = np.asarray(metrics.kernel_distance(KEY, real[:2000], real[2000:], 50, 500))
    assert abs(values.mean()) < 0.5 * values.std()
    assert metrics.kernel_distance(KEY, real[:2000], real[2000:] * 1.1, 50, 500).mean() > 2 * values.std()
    assert len(set(values.tolist())) == 50  # other rows each time


@pytest.mark.parametrize("n", [700, 1301])  # one block of rows, and one and a half
def test_the_four_neighbour_metrics_are_prdcs(n):
    real, fake = sets(n, n - 100)
    for k in (3, 5):
        wanted = prdc.compute_prdc(real.astype(np.float64), fake.astype(np.float64), nearest_k=k)
        precision, recall = metrics.precision_recall(real, fake, k)
        density, coverage = metrics.density_coverage(real, fake, k)
        got = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
        assert {name: float(x) for name, x in got.items()} == pytest.approx(wanted, rel=1e-3)


def test_a_set_against_itself():
    real, _ = sets()
    assert [float(x) for x in metrics.precision_recall(real, real)] == [1, 1]
    density, coverage = metrics.density_coverage(real, real)
    assert float(coverage) == 1
    assert float(density) == pytest.approx(1, abs=1e-2)


def test_r_precision_and_diversity():
    similarity = jnp.array([[2.0, 1, 0], [0, 1, 0], [5, 4, 4], [1, 0, 2]])
    assert float(metrics.r_precision(similarity)) == 0.5
    square = np.array([[0, 0], [3, 0], [3, 4]], np.float32)  # distances 3, 4, 5
    assert float(metrics.diversity(np.stack([square, square + 100]))) == pytest.approx(4)
    assert float(metrics.diversity(np.ones((2, 3, 5), np.float32))) == 0


def test_clip_score():
    image, text = jnp.asarray([[3.0, 0], [0, 2]]), jnp.asarray([[1.0, 1], [0, -1]])
    assert float(metrics.clip_score(image, text)) == pytest.approx(2.5 * (np.sqrt(0.5) + 0) / 2, rel=1e-5)


def test_memorized():
    real, fresh = jax.random.normal(jax.random.key(0), (2, 300, 64))
    assert float(metrics.memorized(real, fresh)) == 0
    assert float(metrics.memorized(real, real)) == 1
    assert float(
        metrics.memorized(real, jnp.concatenate([real[:75] + 0.1 * fresh[:75], fresh[75:]]))
    ) == pytest.approx(0.25)
