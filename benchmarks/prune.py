"""Narrows a trained model, for a run on from it: what ships must come under 16 MiB.

python benchmarks/prune.py MODEL OUT [--refine CHANNELS] [--style FEATURES]

Keeps the channels that weigh most in what is made of them, and fits the layers that read them to what they made before, by least squares
(channel pruning, He et al. 2017, arXiv 1707.06168, with the magnitude in place of the LASSO). Prints how much of it is left.
"""

import dataclasses
import functools
import operator
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import dallegan
from dallegan.data.pipeline import make_source
from dallegan.errors import UserError
from dallegan.io.cli import parse, run
from dallegan.models.gan import Gan, Params
from dallegan.models.layers import lrelu
from dallegan.sampling import Model, make_gan

CAPTIONS, CHUNK = 1536, 64


@dataclasses.dataclass(frozen=True)
class Args:
    """Narrow a model."""

    model: tyro.conf.Positional[str]  # as of `dallegan.load`
    out: tyro.conf.Positional[pathlib.Path]  # folder for the narrower model
    refine: int | None = None  # channels of the refinement to keep; default: all
    style: int | None = None  # features of the style vector to keep; default: all


def with_refine(params: Params, refine: dict[str, Any]) -> Params:
    """The parameters of a model with another refinement."""
    generator = params["generator"]
    return params | {"generator": generator | {"decoder": generator["decoder"] | {"refine": refine}}}


def captured(
    gan: Gan, params: Params, tokens: np.ndarray, noise: jax.Array, module: tuple[str, ...], pick: Callable[[Any], list[jax.Array]]
) -> list[np.ndarray]:
    """What a module of the generating side makes of some captions; `pick` chooses from its outputs and those of the modules in it."""

    @jax.jit
    def run(t: jax.Array, z: jax.Array) -> list[jax.Array]:
        inside = lambda m, _: m.path[: len(module)] == module
        _, state = gan.synthesis.apply({"params": params["generator"]}, t, z, capture_intermediates=inside, mutable=["intermediates"])
        return pick(functools.reduce(operator.getitem, module, state["intermediates"]))

    chunks = [run(tokens[i : i + CHUNK], noise[i : i + CHUNK]) for i in range(0, len(tokens), CHUNK)]
    return [np.concatenate(x) for x in zip(*chunks, strict=True)]


def seen(gan: Gan, params: Params, tokens: np.ndarray, noise: jax.Array) -> dict[str, np.ndarray]:
    """What the refinement makes of some captions: after the first convolution of its residual block, after the block, and at its end."""
    pick = lambda made: [made["residual"]["conv0"]["__call__"][0], made["residual"]["__call__"][0], made["__call__"][0]]
    return dict(zip(("inner", "block", "out"), captured(gan, params, tokens, noise, ("decoder", "refine"), pick), strict=True))


def weights(x_NHWC: np.ndarray, kernel_HWIO: jax.Array) -> np.ndarray:
    """How much each channel of x moves the output of a convolution."""
    return np.asarray(lrelu(jnp.asarray(x_NHWC))).std((0, 1, 2)) * np.sqrt(np.sum(np.square(kernel_HWIO), (0, 1, 3)))


def least_squares(x_NHWC: np.ndarray, y_NHWK: np.ndarray) -> dict[str, jax.Array]:
    """The 3×3 convolution of the leaky ReLU of x that comes nearest to y."""
    side, columns = x_NHWC.shape[1], 9 * x_NHWC.shape[-1] + 1
    padded = np.pad(np.asarray(lrelu(jnp.asarray(x_NHWC))), ((0, 0), (1, 1), (1, 1), (0, 0)))
    gram, moment = np.zeros((columns, columns)), np.zeros((columns, y_NHWK.shape[-1]))
    for i in range(0, len(x_NHWC), CHUNK):
        shifted = [padded[i : i + CHUNK, dy : dy + side, dx : dx + side] for dy in range(3) for dx in range(3)]
        rows = np.concatenate([*shifted, np.ones_like(shifted[0][..., :1])], -1).reshape(-1, columns).astype(np.float64)
        gram, moment = gram + rows.T @ rows, moment + rows.T @ y_NHWK[i : i + CHUNK].reshape(len(rows), -1)
    found = np.linalg.solve(gram + 1e-6 * np.trace(gram) / columns * np.eye(columns), moment).astype(np.float32)
    return {"kernel": jnp.asarray(found[:-1].reshape(3, 3, -1, found.shape[-1])), "bias": jnp.asarray(found[-1])}


def narrow_refine(model: Model, channels: int, tokens: np.ndarray, noise: jax.Array) -> tuple[Model, float]:
    """The model with so many channels of its refinement, and the share of the refinement's variance that is left."""
    whole, wide = seen(model.gan, model.params, tokens, noise), model.params["generator"]["decoder"]["refine"]
    first, second, last = wide["residual"]["conv0"]["conv"]["kernel"], wide["residual"]["conv1"]["conv"]["kernel"], wide["head"]["conv"]
    weight = weights(whole["block"], last["kernel"])
    kept, inner = (np.sort(np.argsort(-w)[:channels]) for w in (weight, weights(whole["inner"], second * weight)))
    narrow = {
        "down": {"kernel": wide["down"]["kernel"][..., kept], "bias": wide["down"]["bias"][kept]},
        "residual": {"conv0": {"conv": {"kernel": first[:, :, kept][..., inner]}}, "conv1": {"conv": {"kernel": second[:, :, inner][..., kept]}}},
        "head": {"conv": last | {"kernel": last["kernel"][:, :, kept]}},
    }
    config = dataclasses.replace(model.config, model=dataclasses.replace(model.config.model, refine=channels))
    gan = make_gan(config, model.tokenizer.size)
    block = seen(gan, with_refine(model.params, narrow), tokens, noise)["block"]
    params = with_refine(model.params, narrow | {"head": {"conv": least_squares(block, whole["out"])}})
    left = 1 - np.mean((seen(gan, params, tokens, noise)["out"] - whole["out"]) ** 2) / np.var(whole["out"])
    return Model(gan, params, model.tokenizer, config), float(left)


def narrow_style(model: Model, features: int, tokens: np.ndarray, noise: jax.Array) -> tuple[Model, float]:
    """The model with so many features in its mapping network, and the share of variance that is left of what is read from the style vector."""
    pick = lambda made: [made["dense0"]["__call__"][0], made["__call__"][0]]
    h_NS, w_NS = captured(model.gan, model.params, tokens, noise, ("mapping",), pick)
    flat: dict[tuple[str, ...], Any] = flax.traverse_util.flatten_dict(model.params["generator"])
    first, last = ("mapping", "dense0"), ("mapping", "dense1")
    readers = [path[:-1] for path in flat if path[-1] == "kernel" and path[1].startswith(("start", "modulate"))]

    def narrow(layer: tuple[str, ...], made: np.ndarray, readers: list[tuple[str, ...]], wanted: np.ndarray) -> np.ndarray:
        """Keeps the features of a layer that weigh most, and fits its readers to what they gave."""
        weight = made.std(0) * np.linalg.norm(np.concatenate([flat[*path, "kernel"] for path in readers], 1), axis=1)
        kept = np.sort(np.argsort(-weight)[:features])
        for name in ("kernel", "bias"):
            flat[*layer, name] = flat[*layer, name][..., kept]
        x = np.concatenate([made[:, kept], np.ones((len(made), 1))], 1)
        fitted = np.linalg.lstsq(x, wanted, rcond=1e-6)[0]
        ends = np.cumsum([flat[*path, "bias"].size for path in readers])[:-1]
        for path, part in zip(readers, np.split(fitted.astype(np.float32), ends, 1), strict=True):
            flat[*path, "kernel"], flat[*path, "bias"] = jnp.asarray(part[:-1]), jnp.asarray(part[-1])
        return x @ fitted

    relu = lambda x: np.asarray(lrelu(x))
    read = lambda paths, x: np.concatenate([x @ flat[*path, "kernel"] + flat[*path, "bias"] for path in paths], 1)
    wanted = read(readers, w_NS)
    w_NS = relu(narrow(first, relu(h_NS), [last], read([last], relu(h_NS))))
    made = narrow(last, w_NS, readers, wanted)
    config = dataclasses.replace(model.config, model=dataclasses.replace(model.config.model, style=features))
    params = model.params | {"generator": flax.traverse_util.unflatten_dict(flat)}
    return Model(make_gan(config, model.tokenizer.size), params, model.tokenizer, config), float(
        1 - np.sum((made - wanted) ** 2) / np.sum((wanted - wanted.mean(0)) ** 2)
    )


def main() -> None:
    """Narrows, and writes a folder that `--init-from` takes."""
    args = parse(Args, "prune.py")
    model = dallegan.load(args.model)
    source, rng = make_source(model.config, "train"), np.random.default_rng(0)
    tokens = model.tokenizer.encode([source.example(i, rng).caption for i in range(CAPTIONS)])
    noise = jax.random.normal(jax.random.key(7), (CAPTIONS, model.config.model.noise))
    todo = [(name, narrow) for name, narrow in (("refine", narrow_refine), ("style", narrow_style)) if getattr(args, name) is not None]
    if not todo:
        raise UserError("nothing to narrow: give --refine or --style")
    for name, narrow in todo:
        had, keep = getattr(model.config.model, name), getattr(args, name)
        if not 0 < keep < had:
            raise UserError(f"--{name} {keep}: {args.model} has {had}{f', keep 1 to {had - 1}' if had > 1 else ''}")
        model, left = narrow(model, keep, tokens, noise)
        print(f"{args.out}: {name}, {keep} of {had}, {left:.1%} of the variance")
    model.save(args.out)


if __name__ == "__main__":
    sys.exit(run(main))
