"""Distances between two sets of images, as pure jitted functions of features f32[N, D], a row an image.

At most 1,000 rows against a whole set are held at once, so that 50,000 × 1,280 features need a few GiB.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Key

from dallegan.shapes import Features, Float, Given, OtherFeatures, Scalar

BLOCK = 1000  # rows of a distance matrix held at once

# full float32, also on devices whose default is TF32 or bfloat16
_matmul = functools.partial(jnp.matmul, precision="highest")


@jax.jit
def frechet_distance(real: Features, fake: OtherFeatures) -> Scalar:
    """Returns the squared Fréchet distance of the Gaussians fitted to two sets (arXiv 1706.08500, eq. 6).

    With covariances AᵀA and BᵀB from the QR factors of the centred sets, Tr (AᵀA BᵀB)^½ is the nuclear norm
    of A Bᵀ. Nothing is squared, so that float32 keeps its digits, and fewer rows than dimensions do no harm.
    """
    (mean_a, a), (mean_b, b) = _gaussian(real), _gaussian(fake)
    shared = jnp.sum(jnp.linalg.svd(_matmul(a, b.T), compute_uv=False))
    return jnp.sum(jnp.square(mean_a - mean_b)) + jnp.sum(jnp.square(a)) + jnp.sum(jnp.square(b)) - 2 * shared


def _gaussian(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean f32[D], and R of the unbiased covariance RᵀR."""
    mean = jnp.mean(x, 0)
    return mean, jnp.linalg.qr(x - mean, mode="r") / jnp.sqrt(x.shape[0] - 1)


@functools.partial(jax.jit, static_argnames=("subsets", "size"))
def kernel_distance(
    key: Key[Given, ""], real: Features, fake: OtherFeatures, subsets: int = 100, size: int = 1000
) -> Float[jax.Array, " S"]:
    """Returns KID, f32[subsets]: the unbiased squared MMD under the kernel (x·y / D + 1)³ (arXiv 1801.01401).

    Each subset has `size` rows of either set, drawn without replacement. The mean over the subsets is the
    estimate; their standard deviation is how much one subset scatters.

    The kernel of any two rows is computed once and summed over the subsets that have both. At 2,000 rows this
    takes a twentieth of the products that going subset by subset would take.

    Raises:
        ValueError: if `size` is larger than either set.
    """
    if size > min(len(real), len(fake)):
        raise ValueError(f"subsets of {size} rows from sets of {len(real)} and {len(fake)}")
    kernel = lambda row, x: (_matmul(x, row) / len(row) + 1) ** 3

    def members(keys: jax.Array, n: int) -> jax.Array:
        """f32[subsets, n], 1 if the subset has the row."""
        return jax.vmap(lambda key: jnp.zeros(n).at[jax.random.permutation(key, n)[:size]].set(1))(keys)

    def total(x: jax.Array, y: jax.Array, in_x: jax.Array, in_y: jax.Array) -> jax.Array:
        """f32[subsets], the kernel's sum over all pairs of rows of a subset."""
        return jnp.sum(in_x.T * _by_row(lambda row: _matmul(in_y, kernel(row, y)), x), 0)

    def within(x: jax.Array, in_x: jax.Array) -> jax.Array:
        """f32[subsets], the kernel's mean over pairs of different rows."""
        with_itself = jax.vmap(kernel)(x, x[:, None])[:, 0]
        return (total(x, x, in_x, in_x) - _matmul(in_x, with_itself)) / (size * (size - 1))

    keys = jax.vmap(jax.random.split)(jax.random.split(key, subsets))
    in_real, in_fake = members(keys[:, 0], len(real)), members(keys[:, 1], len(fake))
    return within(real, in_real) + within(fake, in_fake) - 2 * total(real, fake, in_real, in_fake) / size**2


def _squared_distances(row: jax.Array, x: jax.Array) -> jax.Array:
    """f32[N], from one row f32[D] to each row of x f32[N, D]; under `lax.map` a matrix product."""
    return jnp.maximum(jnp.sum(row * row) + jnp.sum(x * x, 1) - 2 * _matmul(x, row), 0)


def _by_row(function: Callable[[jax.Array], jax.Array], rows: jax.Array) -> jax.Array:
    """`function` of each row, computed in blocks."""
    return jax.lax.map(function, rows, batch_size=min(BLOCK, rows.shape[0]))


def _radii(x: jax.Array, k: int) -> jax.Array:
    """f32[N], the squared distance of each row to its k-th nearest other row."""
    return _by_row(lambda row: _smallest(_squared_distances(row, x), k + 1)[k], x)


def _smallest(x: jax.Array, k: int) -> jax.Array:
    """The k smallest of f32[N], ascending; on a CPU seven times as fast as `lax.top_k`, which sorts all."""

    def take(rest: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        least = jnp.argmin(rest)
        return rest.at[least].set(jnp.inf), rest[least]

    return jax.lax.scan(take, x, None, k)[1]


def _hits(points: jax.Array, centres: jax.Array, radii: jax.Array) -> jax.Array:
    """i32[M], the number of balls that each point lies in."""
    return _by_row(lambda point: jnp.sum(_squared_distances(point, centres) < radii), points)


def _centred(real: jax.Array, fake: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Subtracts the mean of `real` from both sets: distances stay the same, and fewer digits cancel."""
    mean = jnp.mean(real, 0)
    return real - mean, fake - mean


@functools.partial(jax.jit, static_argnames="k")
def precision_recall(real: Features, fake: OtherFeatures, k: int = 3) -> tuple[Scalar, Scalar]:
    """Returns improved precision and recall (arXiv 1904.06991, eq. 1-2).

    Precision is the fraction of generated images inside the k-nearest-neighbour ball of some real image;
    recall is the fraction of real images inside that of some generated image. Inside means strictly inside,
    as in the authors' code of density and coverage: the ball of k + 1 equal images is empty.
    """
    real, fake = _centred(real, fake)
    inside = lambda points, centres: jnp.mean(_hits(points, centres, _radii(centres, k)) > 0)
    return inside(fake, real), inside(real, fake)


@functools.partial(jax.jit, static_argnames="k")
def density_coverage(real: Features, fake: OtherFeatures, k: int = 5) -> tuple[Scalar, Scalar]:
    """Returns density and coverage (arXiv 2002.09797, §3).

    Density is the mean number of real images' k-nearest-neighbour balls that a generated image lies in,
    divided by k. Coverage is the fraction of those balls with a generated image inside.
    """
    real, fake = _centred(real, fake)
    radii = _radii(real, k)
    nearest = _by_row(lambda row: jnp.min(_squared_distances(row, fake)), real)
    return jnp.mean(_hits(fake, real, radii)) / k, jnp.mean(nearest < radii)


@jax.jit
def memorized(real: Features, fake: OtherFeatures, mirrored: Features | None = None) -> Scalar:
    """Returns the fraction of generated images that replicate a training image.

    An image is a replica if its distance to the nearest training image is less than a third of that to the
    second nearest (arXiv 2310.02664 compares pixels so). All of a training set's own images are replicas, and
    few or none of fresh ones.

    Args:
        real: features of the training images, no two of them equal.
        fake: features of the generated images.
        mirrored: features of the mirrored training images, in the same order. If they are given, the distance
            to a training image is the smaller one of the two.
    """
    mean = jnp.mean(real, 0)  # fewer digits cancel
    ways = [way - mean for way in (real, mirrored) if way is not None]

    def one(row: jax.Array) -> jax.Array:
        to_each = functools.reduce(jnp.minimum, (_squared_distances(row - mean, way) for way in ways))
        nearest = _smallest(to_each, 2)
        return nearest[0] < nearest[1] / 9

    return jnp.mean(_by_row(one, fake))


@jax.jit
def r_precision(similarity: Float[Given, "N K"]) -> Scalar:
    """Returns the fraction of images whose own caption is the most similar.

    This is R-precision with R = 1 (arXiv 1711.10485, §4).

    similarity: f32[N, K], of N images to K candidate captions each; the first candidate is the image's own.
    """
    return jnp.mean(jnp.argmax(similarity, 1) == 0)


@jax.jit
def clip_score(image: Features, text: Features) -> Scalar:
    """Returns the mean CLIPScore, 2.5 max(cos(image, text), 0), of embeddings f32[N, D].

    The source is arXiv 2104.08718, §3.
    """
    lengths = jnp.linalg.norm(image, axis=1) * jnp.linalg.norm(text, axis=1)
    cosine = jnp.sum(image * text, 1) / lengths
    return 2.5 * jnp.mean(jnp.maximum(cosine, 0))


@jax.jit
def diversity(features: Float[Given, "N n D"]) -> Scalar:
    """Returns the mean distance of two images of one caption, given features f32[captions, n, D]; n >= 2."""
    n = features.shape[1]
    centred = features - jnp.mean(features, 1, keepdims=True)
    total = lambda x: jnp.sum(jnp.sqrt(jax.vmap(_squared_distances, (0, None))(x, x)))
    distances = jax.lax.map(total, centred)
    return jnp.mean(distances) / (n * (n - 1))
