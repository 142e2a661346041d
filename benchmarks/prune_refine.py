"""Narrows the refinement of a trained model (`--model.refine`), for a run on from it: `storybook-32` had to come under 16 MiB.

python benchmarks/prune_refine.py MODEL CHANNELS OUT

Keeps the channels that weigh most in what comes out, and fits the last layer to the refinement as it was by least squares (channel
pruning, He et al. 2017, arXiv 1707.06168, with the magnitude in place of the LASSO). Prints how much of it is left.
"""

import dataclasses
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import dallegan
from dallegan.cli import parse, run
from dallegan.data.pipeline import make_source
from dallegan.errors import UserError
from dallegan.models.gan import Gan, Params
from dallegan.models.layers import lrelu
from dallegan.sampling import Model, make_gan

CAPTIONS, CHUNK = 768, 64


@dataclasses.dataclass(frozen=True)
class Args:
    """Narrow a model's refinement."""

    model: tyro.conf.Positional[str]  # as of `dallegan.load`
    channels: tyro.conf.Positional[int]  # to keep
    out: tyro.conf.Positional[pathlib.Path]  # folder for the narrower model


def with_refine(params: Params, refine: dict[str, Any]) -> Params:
    """The parameters of a model with another refinement."""
    generator = params["generator"]
    return params | {"generator": generator | {"decoder": generator["decoder"] | {"refine": refine}}}


def seen(gan: Gan, params: Params, tokens: np.ndarray, noise: jax.Array) -> dict[str, np.ndarray]:
    """What the refinement makes of some captions: after the first convolution of its residual block, after the block, and at its end."""

    @jax.jit
    def refine(t: jax.Array, z: jax.Array) -> tuple[jax.Array, ...]:
        inside = lambda module, _: module.path[:2] == ("decoder", "refine")
        variables = {"params": params["generator"]}
        _, state = gan.synthesis.apply(variables, t, z, capture_intermediates=inside, mutable=["intermediates"])
        made = state["intermediates"]["decoder"]["refine"]
        return made["residual"]["conv0"]["__call__"][0], made["residual"]["__call__"][0], made["__call__"][0]

    chunks = [refine(tokens[i : i + CHUNK], noise[i : i + CHUNK]) for i in range(0, len(tokens), CHUNK)]
    return dict(zip(("inner", "block", "out"), map(np.concatenate, zip(*chunks, strict=True)), strict=True))


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


def main() -> None:
    """Narrows, and writes a folder that `--init-from` takes."""
    args = parse(Args, "prune_refine.py")
    model = dallegan.load(args.model)
    had = model.config.model.refine
    if not 0 < args.channels < had:
        raise UserError(f"{args.model} has {f'{had} channels: keep 1 to {had - 1}' if had > 1 else 'no refinement to narrow'}")
    source, rng = make_source(model.config, "train"), np.random.default_rng(0)
    tokens = model.tokenizer.encode([source.example(i, rng).caption for i in range(CAPTIONS)])
    noise = jax.random.normal(jax.random.key(7), (CAPTIONS, model.config.model.noise))
    whole, wide = seen(model.gan, model.params, tokens, noise), model.params["generator"]["decoder"]["refine"]
    first, second, last = wide["residual"]["conv0"]["conv"]["kernel"], wide["residual"]["conv1"]["conv"]["kernel"], wide["head"]["conv"]
    weight = weights(whole["block"], last["kernel"])
    kept, inner = (np.sort(np.argsort(-w)[: args.channels]) for w in (weight, weights(whole["inner"], second * weight)))
    narrow = {
        "down": {"kernel": wide["down"]["kernel"][..., kept], "bias": wide["down"]["bias"][kept]},
        "residual": {"conv0": {"conv": {"kernel": first[:, :, kept][..., inner]}}, "conv1": {"conv": {"kernel": second[:, :, inner][..., kept]}}},
        "head": {"conv": last | {"kernel": last["kernel"][:, :, kept]}},
    }
    config = dataclasses.replace(model.config, model=dataclasses.replace(model.config.model, refine=args.channels))
    gan = make_gan(config, model.tokenizer.size)
    block = seen(gan, with_refine(model.params, narrow), tokens, noise)["block"]
    params = with_refine(model.params, narrow | {"head": {"conv": least_squares(block, whole["out"])}})
    left = 1 - np.mean((seen(gan, params, tokens, noise)["out"] - whole["out"]) ** 2) / np.var(whole["out"])
    Model(gan, params, model.tokenizer, config).save(args.out)
    print(f"{args.out}: {args.channels} of {had} channels, {left:.1%} of the refinement's variance")


if __name__ == "__main__":
    sys.exit(run(main))
