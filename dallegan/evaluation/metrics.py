"""Distances between two sets of pictures, as pure jitted functions of their features f32[N, D]; rows are pictures.

A block of 1,000 rows against a whole set is the most that is held at once, so that 50,000 x 1,280 features need a few GiB.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Key

from dallegan.shapes import Features, Float, Given, OtherFeatures, Scalar

BLOCK = 1000  # rows of a distance matrix held at once

_matmul = functools.partial(jnp.matmul, precision="highest")  # full float32 where the default is TF32 or bfloat16


@jax.jit
def frechet_distance(real: Features, fake: OtherFeatures) -> Scalar:
    """Squared Fréchet distance of the Gaussians fitted to two sets (arXiv 1706.08500, eq. 6).

    With covariances AᵀA and BᵀB from the QR factors of the centred sets, Tr (AᵀA BᵀB)^½ is the nuclear norm of A Bᵀ: nothing is
    squared, so that float32 keeps its digits, and fewer rows than dimensions do no harm.
    """
    (mean_a, a), (mean_b, b) = _gaussian(real), _gaussian(fake)
    shared = jnp.sum(jnp.linalg.svd(_matmul(a, b.T), compute_uv=False))
    return jnp.sum(jnp.square(mean_a - mean_b)) + jnp.sum(jnp.square(a)) + jnp.sum(jnp.square(b)) - 2 * shared


def _gaussian(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean f32[D], and R of the unbiased covariance RᵀR."""
    mean = jnp.mean(x, 0)
    return mean, jnp.linalg.qr(x - mean, mode="r") / jnp.sqrt(x.shape[0] - 1)


@functools.partial(jax.jit, static_argnames=("subsets", "size"))
def kernel_distance(key: Key[Given, ""], real: Features, fake: OtherFeatures, subsets: int = 100, size: int = 1000) -> Float[jax.Array, " S"]:
    """KID, f32[subsets]: the unbiased squared MMD under the kernel (x·y / D + 1)³ (arXiv 1801.01401) of `size` rows drawn from either
    set, without replacement. Their mean is the estimate, their deviation what one subset scatters by. ValueError for a `size`
    above either set's.

    The kernel of every two rows is computed once, and summed over the subsets that have both: at 2,000 rows a twentieth of the products
    that subset by subset would take.
    """
    if size > min(len(real), len(fake)):
        raise ValueError(f"subsets of {size} rows from sets of {len(real)} and {len(fake)}")
    kernel = lambda row, x: (_matmul(x, row) / len(row) + 1) ** 3

    def members(keys: jax.Array, n: int) -> jax.Array:
        """f32[subsets, n]: 1 where the subset has the row."""
        return jax.vmap(lambda key: jnp.zeros(n).at[jax.random.permutation(key, n)[:size]].set(1))(keys)

    def total(x: jax.Array, y: jax.Array, in_x: jax.Array, in_y: jax.Array) -> jax.Array:
        """f32[subsets]: the kernel's sum over all pairs of rows of a subset."""
        return jnp.sum(in_x.T * _by_row(lambda row: _matmul(in_y, kernel(row, y)), x), 0)

    def within(x: jax.Array, in_x: jax.Array) -> jax.Array:
        """f32[subsets]: the kernel's mean over pairs of different rows."""
        return (total(x, x, in_x, in_x) - _matmul(in_x, jax.vmap(kernel)(x, x[:, None])[:, 0])) / (size * (size - 1))

    keys = jax.vmap(jax.random.split)(jax.random.split(key, subsets))
    in_real, in_fake = members(keys[:, 0], len(real)), members(keys[:, 1], len(fake))
    return within(real, in_real) + within(fake, in_fake) - 2 * total(real, fake, in_real, in_fake) / size**2


def _squared_distances(row: jax.Array, x: jax.Array) -> jax.Array:
    """f32[N] from one row f32[D] to every row of x f32[N, D]; under `lax.map` a matrix product."""
    return jnp.maximum(jnp.sum(row * row) + jnp.sum(x * x, 1) - 2 * _matmul(x, row), 0)


def _by_row(function, rows: jax.Array) -> jax.Array:
    """`function` of each row."""
    return jax.lax.map(function, rows, batch_size=min(BLOCK, rows.shape[0]))


def _radii(x: jax.Array, k: int) -> jax.Array:
    """f32[N]: squared distance of each row to its k-th nearest other row."""
    return _by_row(lambda row: _smallest(_squared_distances(row, x), k + 1)[k], x)


def _smallest(x: jax.Array, k: int) -> jax.Array:
    """The k smallest of f32[N], ascending; a seventh of the time of `lax.top_k` on a CPU, which sorts them all."""

    def take(rest: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        least = jnp.argmin(rest)
        return rest.at[least].set(jnp.inf), rest[least]

    return jax.lax.scan(take, x, None, k)[1]


def _hits(points: jax.Array, centres: jax.Array, radii: jax.Array) -> jax.Array:
    """i32[M]: in how many balls each point lies."""
    return _by_row(lambda point: jnp.sum(_squared_distances(point, centres) < radii), points)


def _centred(real: jax.Array, fake: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both sets less the mean of the first: distances stay, and fewer digits cancel."""
    mean = jnp.mean(real, 0)
    return real - mean, fake - mean


@functools.partial(jax.jit, static_argnames="k")
def precision_recall(real: Features, fake: OtherFeatures, k: int = 3) -> tuple[Scalar, Scalar]:
    """Improved precision and recall (arXiv 1904.06991, eq. 1-2): the share of generated pictures inside the k-nearest-neighbour ball of
    some real one, and of real ones inside that of some generated one. Strictly inside, as the authors of density and coverage
    have it: k + 1 equal pictures have a ball that nothing is in."""
    real, fake = _centred(real, fake)
    inside = lambda points, centres: jnp.mean(_hits(points, centres, _radii(centres, k)) > 0)
    return inside(fake, real), inside(real, fake)


@functools.partial(jax.jit, static_argnames="k")
def density_coverage(real: Features, fake: OtherFeatures, k: int = 5) -> tuple[Scalar, Scalar]:
    """Density and coverage (arXiv 2002.09797, §3): in how many k-nearest-neighbour balls of real pictures a generated one lies, over k;
    and the share of those balls with a generated picture inside."""
    real, fake = _centred(real, fake)
    radii = _radii(real, k)
    nearest = _by_row(lambda row: jnp.min(_squared_distances(row, fake)), real)
    return jnp.mean(_hits(fake, real, radii)) / k, jnp.mean(nearest < radii)


@jax.jit
def memorized(real: Features, fake: OtherFeatures, mirrored: Features | None = None) -> Scalar:
    """Share of generated pictures that replicate one of the training set: the distance to the nearest is less than a third of that to the second nearest, as
    arXiv 2310.02664 has it of pixels. Of a set's own pictures all do, of fresh ones few or none; no two rows of `real` may be equal. With the set's mirror
    images, row by row, the distance to a picture is that to the nearer of its two."""
    mean = jnp.mean(real, 0)  # fewer digits cancel
    ways = [way - mean for way in (real, mirrored) if way is not None]

    def one(row: jax.Array) -> jax.Array:
        nearest = _smallest(functools.reduce(jnp.minimum, (_squared_distances(row - mean, way) for way in ways)), 2)
        return nearest[0] < nearest[1] / 9

    return jnp.mean(_by_row(one, fake))


@jax.jit
def r_precision(similarity: Float[Given, "N K"]) -> Scalar:
    """R-precision with R = 1 (arXiv 1711.10485, §4): the share of pictures whose own caption is the most similar; f32[N, K] of N pictures
    to K candidate captions each, the first of which is its own."""
    return jnp.mean(jnp.argmax(similarity, 1) == 0)


@jax.jit
def clip_score(image: Features, text: Features) -> Scalar:
    """CLIPScore (arXiv 2104.08718, §3): 2.5 max(cos, 0) of the embeddings f32[N, D] of pictures and of their captions, its mean."""
    cosine = jnp.sum(image * text, 1) / (jnp.linalg.norm(image, axis=1) * jnp.linalg.norm(text, axis=1))
    return 2.5 * jnp.mean(jnp.maximum(cosine, 0))


@jax.jit
def diversity(features: Float[Given, "N n D"]) -> Scalar:
    """Mean distance of two pictures of one caption; features f32[captions, n, D], n >= 2."""
    n = features.shape[1]
    centred = features - jnp.mean(features, 1, keepdims=True)
    distances = jax.lax.map(lambda x: jnp.sum(jnp.sqrt(jax.vmap(_squared_distances, (0, None))(x, x))), centred)
    return jnp.mean(distances) / (n * (n - 1))
