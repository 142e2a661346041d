"""Narrows layers of a trained model, before it is trained on: the weights that ship must stay below 16 MiB.

python recipes/prune.py MODEL OUT [--refine CHANNELS] [--style FEATURES]

The channels with the greatest effect on the next layers are kept, and these layers are fitted to their former
outputs by least squares (channel pruning, arXiv 1707.06168, with magnitudes instead of the LASSO). The
command prints which fraction of the outputs' variance remains.
"""

import functools
import operator
import pathlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from dallegan.models.gan import Gan, Params, Path
from dallegan.models.layers import lrelu
from dallegan.sampling import Model, make_gan

CAPTIONS = 1536  # that layers are fitted on
CHUNK = 64  # captions at once


@dataclass(frozen=True)
class Args:
    """Narrow a model."""

    model: tyro.conf.Positional[str]  # as for `dallegan.load`
    out: tyro.conf.Positional[pathlib.Path]  # folder for the narrower model
    refine: int | None = None  # channels of the refinement block to keep; default: all
    style: int | None = None  # features of the style vector to keep; default: all


@dataclass(frozen=True)
class Inputs:
    """Captions and noise that the outputs of layers are computed for."""

    tokens_NT: np.ndarray
    noise_NZ: jax.Array


def outputs(
    gan: Gan, params: Params, inputs: Inputs, module: Path, choose: Callable[[Any], list[jax.Array]]
) -> list[np.ndarray]:
    """Returns outputs inside a module of the generating player, [N, ...] each, which `choose` selects."""

    @jax.jit
    def forward(tokens: jax.Array, noise: jax.Array) -> list[jax.Array]:
        _, state = gan.synthesis.apply(
            {"params": params["generator"]},
            tokens,
            noise,
            capture_intermediates=lambda inner, _: inner.path[: len(module)] == module,
            mutable=["intermediates"],
        )
        return choose(functools.reduce(operator.getitem, module, state["intermediates"]))

    starts = range(0, len(inputs.tokens_NT), CHUNK)
    chunks = [forward(inputs.tokens_NT[i : i + CHUNK], inputs.noise_NZ[i : i + CHUNK]) for i in starts]
    return [np.concatenate(x) for x in zip(*chunks, strict=True)]


def refine_outputs(gan: Gan, params: Params, inputs: Inputs) -> list[np.ndarray]:
    """Returns outputs in the refinement: of its block's first convolution, of the block, and of the whole."""

    def choose(made: Any) -> list[jax.Array]:
        block = made["residual"]
        return [block["conv0"]["__call__"][0], block["__call__"][0], made["__call__"][0]]

    return outputs(gan, params, inputs, ("decoder", "refine"), choose)


def importance(x_NHWC: np.ndarray, kernel_HWIO: jax.Array) -> np.ndarray:
    """Returns how much each channel of x moves the output of a convolution after a leaky ReLU, [C]."""
    deviation = np.asarray(lrelu(jnp.asarray(x_NHWC))).std((0, 1, 2))
    return deviation * np.sqrt(np.sum(np.square(kernel_HWIO), (0, 1, 3)))


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the largest values, in ascending order."""
    return np.sort(np.argsort(-values)[:count])


def fit_convolution(x_NHWC: np.ndarray, y_NHWK: np.ndarray) -> dict[str, jax.Array]:
    """Returns the 3×3 convolution of lrelu(x) that is nearest to y, by least squares."""
    side, columns = x_NHWC.shape[1], 9 * x_NHWC.shape[-1] + 1
    padded = np.pad(np.asarray(lrelu(jnp.asarray(x_NHWC))), ((0, 0), (1, 1), (1, 1), (0, 0)))
    gram, moment = np.zeros((columns, columns)), np.zeros((columns, y_NHWK.shape[-1]))
    for i in range(0, len(x_NHWC), CHUNK):
        chunk = padded[i : i + CHUNK]
        shifted = [chunk[:, dy : dy + side, dx : dx + side] for dy in range(3) for dx in range(3)]
        with_bias = np.concatenate([*shifted, np.ones_like(shifted[0][..., :1])], -1)
        rows = with_bias.reshape(-1, columns).astype(np.float64)
        gram += rows.T @ rows
        moment += rows.T @ y_NHWK[i : i + CHUNK].reshape(len(rows), -1)
    ridge = 1e-6 * np.trace(gram) / columns * np.eye(columns)
    solution = np.linalg.solve(gram + ridge, moment).astype(np.float32)
    kernel = solution[:-1].reshape(3, 3, -1, solution.shape[-1])
    return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(solution[-1])}


def with_refine(params: Params, refine: dict[str, Any]) -> Params:
    """Returns the parameters with another refinement."""
    generator = params["generator"]
    return params | {"generator": generator | {"decoder": generator["decoder"] | {"refine": refine}}}


def narrowed(model: Model, params: Params, **settings: int) -> Model:
    """Returns the model with other parameters, whose shapes differ by `settings` of the network."""
    config = replace(model.config, model=replace(model.config.model, **settings))
    return Model(make_gan(config, model.tokenizer.size), params, model.tokenizer, config)


def narrow_refine(model: Model, channels: int, inputs: Inputs) -> tuple[Model, float]:
    """Returns the model with fewer channels in its refinement, and the fraction of variance that remains."""
    wide = model.params["generator"]["decoder"]["refine"]
    inner_NHWC, block_NHWC, out_NHWK = refine_outputs(model.gan, model.params, inputs)
    first, second = (wide["residual"][name]["conv"]["kernel"] for name in ("conv0", "conv1"))
    last = wide["head"]["conv"]
    weight = importance(block_NHWC, last["kernel"])
    kept, inner = largest(weight, channels), largest(importance(inner_NHWC, second * weight), channels)
    refine = {
        "down": {"kernel": wide["down"]["kernel"][..., kept], "bias": wide["down"]["bias"][kept]},
        "residual": {
            "conv0": {"conv": {"kernel": first[:, :, kept][..., inner]}},
            "conv1": {"conv": {"kernel": second[:, :, inner][..., kept]}},
        },
        "head": {"conv": last | {"kernel": last["kernel"][:, :, kept]}},
    }
    narrow = narrowed(model, with_refine(model.params, refine), refine=channels)
    _, block, _ = refine_outputs(narrow.gan, narrow.params, inputs)
    fitted = refine | {"head": {"conv": fit_convolution(block, out_NHWK)}}
    narrow = replace(narrow, params=with_refine(model.params, fitted))
    *_, out = refine_outputs(narrow.gan, narrow.params, inputs)
    return narrow, float(1 - np.mean((out - out_NHWK) ** 2) / np.var(out_NHWK))


def narrow_style(model: Model, features: int, inputs: Inputs) -> tuple[Model, float]:
    """Returns the model with fewer style features, and the fraction of variance that remains.

    The variance is that of all layers that read the style vector.
    """
    choose = lambda made: [made["dense0"]["__call__"][0], made["__call__"][0]]
    h_NS, w_NS = outputs(model.gan, model.params, inputs, ("mapping",), choose)
    flat: dict[Path, Any] = flax.traverse_util.flatten_dict(model.params["generator"])
    first, last = ("mapping", "dense0"), ("mapping", "dense1")
    readers = [p[:-1] for p in flat if p[-1] == "kernel" and p[1].startswith(("start", "modulate"))]

    def apply(layers: list[Path], x: np.ndarray) -> np.ndarray:
        return np.concatenate([x @ flat[*path, "kernel"] + flat[*path, "bias"] for path in layers], 1)

    def narrow(layer: Path, made: np.ndarray, readers: list[Path], wanted: np.ndarray) -> np.ndarray:
        """Keeps a layer's most important features, fits its readers to `wanted`; returns their outputs."""
        norms = np.linalg.norm(np.concatenate([flat[*path, "kernel"] for path in readers], 1), axis=1)
        kept = largest(made.std(0) * norms, features)
        for name in ("kernel", "bias"):
            flat[*layer, name] = flat[*layer, name][..., kept]
        x = np.concatenate([made[:, kept], np.ones((len(made), 1))], 1)
        fitted = np.linalg.lstsq(x, wanted, rcond=1e-6)[0]
        ends = np.cumsum([flat[*path, "bias"].size for path in readers])[:-1]
        for path, part in zip(readers, np.split(fitted.astype(np.float32), ends, 1), strict=True):
            flat[*path, "kernel"], flat[*path, "bias"] = jnp.asarray(part[:-1]), jnp.asarray(part[-1])
        return x @ fitted

    activate = lambda x: np.asarray(lrelu(x))
    wanted = apply(readers, w_NS)
    h_NS = activate(h_NS)
    w_NS = activate(narrow(first, h_NS, [last], apply([last], h_NS)))
    made = narrow(last, w_NS, readers, wanted)
    params = model.params | {"generator": flax.traverse_util.unflatten_dict(flat)}
    rest = np.sum((made - wanted) ** 2) / np.sum((wanted - wanted.mean(0)) ** 2)
    return narrowed(model, params, style=features), float(1 - rest)


def main() -> None:
    """Parses the command line and writes a folder that `--init-from` takes."""
    args = parse(Args, "recipes/prune.py")
    model = dallegan.load(args.model)
    source, rng = make_source(model.config, "train"), np.random.default_rng(0)
    tokens = model.tokenizer.encode([source.example(i, rng).caption for i in range(CAPTIONS)])
    inputs = Inputs(tokens, jax.random.normal(jax.random.key(7), (CAPTIONS, model.config.model.noise)))
    steps = [("refine", args.refine, narrow_refine), ("style", args.style, narrow_style)]
    if args.refine is None and args.style is None:
        raise UserError("nothing to narrow: give --refine or --style")
    for name, count, narrow in steps:
        if count is None:
            continue
        had = getattr(model.config.model, name)
        if not 0 < count < had:
            keep = f"; keep 1 to {had - 1}" if had > 1 else ""
            raise UserError(f"--{name} {count}: {args.model} has {had}{keep}")
        model, remaining = narrow(model, count, inputs)
        print(f"{args.out}: {name} {had} -> {count}, {remaining:.1%} of the variance remains")
    model.save(args.out)


if __name__ == "__main__":
    sys.exit(run(main))
