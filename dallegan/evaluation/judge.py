"""The judge: a small classifier that reads a storybook image, to tell whether the image obeys its caption.

The judge takes no part in training. It reads what stands on the left and what stands on the right; of a
single object both sides are the same. `recipes/train_judge.py` trained it.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dallegan.data.storybook.grammar import COLOURS, OBJECTS, PLACES, POSES, SIDES, SIZES, Caption, Scene
from dallegan.io.weights import read_weights
from dallegan.models.layers import Conv3, Residual, he, lrelu, space_to_depth, to_float

READABLE_SIZES = (32, 64)  # sides of the images that the judge reads, px
# attributes of an object, and their values
VALUES: dict[str, tuple[str, ...]] = {"kind": OBJECTS, "colour": COLOURS, "size": SIZES, "pose": POSES}
WEIGHTS = pathlib.Path(__file__).parent.parent / "assets" / "judge.safetensors"
Params = dict[str, Any]


class Facts(flax.struct.PyTreeNode):
    """The attributes of N scenes.

    As indices i32 (-1: not named), they are facts of scenes or what captions name. As log-probabilities, with
    one more axis, they are what the judge reads in images. The arrays are numpy's or JAX's.
    """

    place: Any  # [N], or f32[N, 8]
    count: Any  # [N], the number of objects less one, or f32[N, 2]
    things: dict[str, Any]  # kind, colour, size, pose: [N, 2] left and right, or f32[N, 2, values]


def encode_facts(scenes: Sequence[Scene], captions: Sequence[Caption] | None = None) -> Facts:
    """Returns the attributes of scenes as indices; with captions, only those that a scene's caption names."""
    n = len(scenes)
    place, count = np.full(n, -1), np.zeros(n, int)
    things = {name: np.full((n, 2), -1) for name in VALUES}
    for i, scene in enumerate(scenes):
        mentions = captions[i].mentions if captions else None
        count[i] = len(scene.things) - 1
        if mentions is None or "place" in mentions:
            place[i] = PLACES.index(scene.place)
        for k, thing in enumerate(scene.things):
            sides = slice(None) if scene.side is None else (SIDES.index(scene.side) + k) % 2
            for name, values in VALUES.items():
                value = getattr(thing, name)
                if value is not None and (mentions is None or f"{k}.{name}" in mentions):
                    things[name][i, sides] = values.index(value)
    return Facts(place, count, things)


class Judge(nn.Module):
    """A residual network on a 16×16 grid of patches, for images of either size; 1 M parameters."""

    @nn.compact
    def __call__(self, image_BHWC: jax.Array) -> Facts:
        """Returns log-probabilities, given images f32[B, S, S, 3] in [-1, 1]; S is 32 or 64."""
        stems = {size: Conv3(64, he(), name=f"stem{size}") for size in READABLE_SIZES}
        if self.is_initializing():
            for size, stem in stems.items():
                stem(jnp.zeros((1, 16, 16, 3 * (size // 16) ** 2)))
        size = image_BHWC.shape[1]
        x = lrelu(stems[size](space_to_depth(image_BHWC, size // 16)))
        x = Residual(64, 4, name="residual16_0")(x)
        x = Residual(64, 4, name="residual16_1")(x)
        x = nn.Dense(128, kernel_init=he(), name="down")(space_to_depth(lrelu(x), 2))
        x = Residual(128, 4, name="residual8_0")(x)
        x = Residual(128, 4, name="residual8_1")(x)
        x = lrelu(nn.Dense(16, kernel_init=he(), name="narrow")(lrelu(x)))
        x = lrelu(nn.Dense(144, kernel_init=he(), name="whole")(x.reshape(x.shape[0], -1)))
        heads = {"place": (len(PLACES),), "count": (2,)}
        heads |= {name: (2, len(values)) for name, values in VALUES.items()}
        out = {
            name: jax.nn.log_softmax(nn.DenseGeneral(shape, name=name)(x)) for name, shape in heads.items()
        }
        return Facts(out["place"], out["count"], {name: out[name] for name in VALUES})


def load_judge(file: pathlib.Path = WEIGHTS) -> Params:
    """Returns the shipped parameters, in float32.

    Raises UserError if the file is missing or damaged, or holds another network.
    """
    expected = jax.eval_shape(Judge().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return read_weights(file, {"params": expected["params"]})


@jax.jit
def classify(params: Params, image: jax.Array) -> Facts:
    """Returns log-probabilities of what images uint8[B, S, S, 3] show; S is 32 or 64.

    If one object is likelier than two, both sides hold the mean over the sides.
    """
    out = Judge().apply(params, to_float(image))
    assert isinstance(out, Facts)
    single = jnp.argmax(out.count, -1)[:, None, None] == 0
    merge = lambda sides: jnp.where(single, jnp.mean(sides, 1, keepdims=True), sides)
    return out.replace(things={name: merge(sides) for name, sides in out.things.items()})


@jax.jit
def correct_attributes(read: Facts, named: Facts) -> dict[str, jax.Array]:
    """Returns bool[N] for each attribute, and for "all" of them: is it as the caption names it, or not named?

    With two objects, "side" says whether the kinds stand on the right sides. The other attributes are
    compared wherever an object stands, so that objects which changed sides count as one error, not several.

    Args:
        read: log-probabilities, from `classify`.
        named: what the captions name, from `encode_facts`.
    """
    straight, crossed = _kind_likelihood(read, named), _kind_likelihood(read, named, crossed=True)
    two, swapped = named.count == 1, crossed > straight
    things = {name: jnp.where((swapped & two)[:, None], x[:, ::-1], x) for name, x in named.things.items()}
    correct = lambda logits, index: (jnp.argmax(logits, -1) == index) | (index < 0)
    found = {name: jnp.all(correct(read.things[name], index), 1) for name, index in things.items()}
    found |= {
        "place": correct(read.place, named.place),
        "count": correct(read.count, named.count),
        "side": ~two | ((straight > crossed) & (jnp.argmax(read.count, -1) == 1)),
    }
    return found | {"all": jnp.all(jnp.stack(list(found.values())), 0)}


def _kind_likelihood(read: Facts, named: Facts, crossed: bool = False) -> jax.Array:
    """f32[N], log-probability of the named kinds on their sides, or if `crossed` on each other's side."""
    index = named.things["kind"]
    return jnp.sum(_at(read.things["kind"], index[:, ::-1] if crossed else index), 1)


def _at(logits: jax.Array, index: jax.Array) -> jax.Array:
    """The log-probability at an index of the last axis; 0 if the index is -1."""
    found = jnp.take_along_axis(logits, jnp.maximum(index, 0)[..., None], -1)[..., 0]
    return jnp.where(index < 0, 0, found)


@jax.jit
def log_likelihood(read: Facts, named: Facts) -> jax.Array:
    """Returns f32[N], how well captions fit images: the mean log-probability of all that a caption names.

    It is a mean and not a sum, or else the shortest caption would be the likeliest.
    """
    copies = jnp.where(named.count == 0, 2, 1)  # a single object is on both sides
    things = sum(jnp.sum(_at(read.things[k], named.things[k]), 1) for k in VALUES) / copies
    number = sum(jnp.sum(named.things[k] >= 0, 1) for k in VALUES) / copies + (named.place >= 0) + 1
    return (_at(read.place, named.place) + _at(read.count, named.count) + things) / number
