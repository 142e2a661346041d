"""The judge: a small classifier that reads a storybook picture, to tell whether it obeys its caption. It takes no part in training.

It reads what stands left and what stands right; a single object is read on both sides alike. `benchmarks/train_judge.py` trained it.
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

SIZES_READ = (32, 64)  # px
VALUES: dict[str, tuple[str, ...]] = {"kind": OBJECTS, "colour": COLOURS, "size": SIZES, "pose": POSES}  # of each object
WEIGHTS = pathlib.Path(__file__).parent.parent / "assets" / "judge.safetensors"
Params = dict[str, Any]


class Facts(flax.struct.PyTreeNode):
    """What a scene is, a caption says, or the judge reads: indices i32 (-1: nothing said), or log-probabilities with one more axis."""

    # arrays of numpy or of JAX
    place: Any  # [N], or f32[N, 8]
    count: Any  # [N] objects less one, or f32[N, 2]
    things: dict[str, Any]  # kind, colour, size, pose: [N, 2] left and right, or f32[N, 2, values]


def facts(scenes: Sequence[Scene], captions: Sequence[Caption] | None = None) -> Facts:
    """The facts of scenes, or what captions of them say."""
    n = len(scenes)
    place, count, things = np.full(n, -1), np.zeros(n, int), {name: np.full((n, 2), -1) for name in VALUES}
    for i, scene in enumerate(scenes):
        said = captions[i].mentions if captions else None
        count[i] = len(scene.things) - 1
        if said is None or "place" in said:
            place[i] = PLACES.index(scene.place)
        for k, thing in enumerate(scene.things):
            sides = slice(None) if scene.side is None else (SIDES.index(scene.side) + k) % 2
            for name, values in VALUES.items():
                value = getattr(thing, name)
                if value is not None and (said is None or f"{k}.{name}" in said):
                    things[name][i, sides] = values.index(value)
    return Facts(place, count, things)


class Judge(nn.Module):
    """A residual network on 16x16 patches of either size; 1 M parameters."""

    @nn.compact
    def __call__(self, image_BHWC: jax.Array) -> Facts:
        """f32[B, S, S, 3] in [-1, 1], S of 32 or 64 -> log-probabilities."""
        stems = {size: Conv3(64, he(), name=f"stem{size}") for size in SIZES_READ}
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
        heads = {"place": (len(PLACES),), "count": (2,)} | {name: (2, len(values)) for name, values in VALUES.items()}
        out = {name: jax.nn.log_softmax(nn.DenseGeneral(shape, name=name)(x)) for name, shape in heads.items()}
        return Facts(out["place"], out["count"], {name: out[name] for name in VALUES})


def load_judge(file: pathlib.Path = WEIGHTS) -> Params:
    """The shipped parameters, in float32. UserError where the file is missing, damaged or another network's."""
    expected = jax.eval_shape(Judge().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return read_weights(file, {"params": expected["params"]})


@jax.jit
def read(params: Params, image: jax.Array) -> Facts:
    """Log-probabilities of what uint8[B, S, S, 3] shows, S of 32 or 64; where a single object is likelier than two, both sides
    hold the mean of both readings."""
    out = Judge().apply(params, to_float(image))
    assert isinstance(out, Facts)
    single = jnp.argmax(out.count, -1)[:, None, None] == 0
    return out.replace(things={k: jnp.where(single, jnp.mean(v, 1, keepdims=True), v) for k, v in out.things.items()})


@jax.jit
def obeys(seen: Facts, said: Facts) -> dict[str, jax.Array]:
    """bool[N] for each attribute: is it as the caption says (also where it says nothing), and "all" of them. Of two objects "side"
    is which stands where, by kind; the others are asked of each object wherever it stands, so that one wrong thing is counted once.

    seen: log-probabilities from `read`; said: what the captions say.
    """
    straight, crossed = _kinds(seen, said, False), _kinds(seen, said, True)
    swapped = crossed > straight
    things = {k: jnp.where((swapped & (said.count == 1))[:, None], v[:, ::-1], v) for k, v in said.things.items()}
    right = lambda logits, wanted: (jnp.argmax(logits, -1) == wanted) | (wanted < 0)
    out = {k: jnp.all(right(seen.things[k], v), 1) for k, v in things.items()}
    out |= {
        "place": right(seen.place, said.place),
        "count": right(seen.count, said.count),
        "side": (said.count == 0) | ((straight > crossed) & (jnp.argmax(seen.count, -1) == 1)),
    }
    return out | {"all": jnp.all(jnp.stack(list(out.values())), 0)}


def _kinds(seen: Facts, said: Facts, swap: bool) -> jax.Array:
    """f32[N]: log-probability of the kinds, each where it is said to stand, or at the other side."""
    wanted = said.things["kind"][:, ::-1] if swap else said.things["kind"]
    return jnp.sum(_chosen(seen.things["kind"], wanted), 1)


def _chosen(logits: jax.Array, index: jax.Array) -> jax.Array:
    """The log-probability at an index of the last axis; 0 where the index is -1."""
    return jnp.where(index < 0, 0, jnp.take_along_axis(logits, jnp.maximum(index, 0)[..., None], -1)[..., 0])


@jax.jit
def log_likelihood(seen: Facts, said: Facts) -> jax.Array:
    """f32[N]: mean log-probability of the things that captions say of pictures; a mean, lest the shortest caption be the likeliest."""
    objects = jnp.where(said.count == 0, 2, 1)  # how often each object is there
    things = sum(jnp.sum(_chosen(seen.things[k], said.things[k]), 1) for k in VALUES) / objects
    number = sum(jnp.sum(said.things[k] >= 0, 1) for k in VALUES) / objects + (said.place >= 0) + 1
    return (_chosen(seen.place, said.place) + _chosen(seen.count, said.count) + things) / number
