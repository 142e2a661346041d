"""Replaces the text encoder of a model's generator by the discriminator's, before the model is trained on.

python recipes/share_encoder.py MODEL OUT

The discriminator sees true and false captions of real images, so it learns what words mean long before the
generator, which hears of words only through scores. AttnGAN trains its text encoder by such matching
beforehand (DAMSM, arXiv 1711.10485, section 3.2); here the discriminator has done it on the way. The
generator's layers that read the encoder are fitted by least squares to their former outputs, so that the
model continues where it stood. The command prints which fraction of the variance of the former sentence
vectors remains.
"""

import pathlib
import sys
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import dallegan
from dallegan.data.pipeline import make_source
from dallegan.errors import UserError
from dallegan.io.cli import parse, run
from dallegan.sampling import Model

CAPTIONS = 6144  # that the layers are fitted on
FEWEST = 600  # captions that a fit needs
CHUNK = 512  # captions encoded at once


@dataclass(frozen=True)
class Args:
    """Give a model's generator the discriminator's text encoder."""

    model: tyro.conf.Positional[str]  # as for `dallegan.load`
    out: tyro.conf.Positional[pathlib.Path]  # folder for the new model


class Encodings(NamedTuple):
    """N captions with M tokens in all, as both encoders encode them. D features."""

    mean: np.ndarray  # [N, D], mean of the discriminator's token vectors
    sentence: np.ndarray  # [N, D], the generator's sentence vectors
    discriminator_tokens: np.ndarray  # [M, D]
    generator_tokens: np.ndarray  # [M, D]


def encode(model: Model, tokens_NT: np.ndarray) -> Encodings:
    """Encodes captions with both encoders."""

    @jax.jit
    def both(tokens: jax.Array) -> tuple[jax.Array, ...]:
        theirs = model.gan.encode_caption(model.params, tokens)
        own = model.gan.encode(model.params, tokens)
        mask = theirs.mask[..., None]
        mean = jnp.sum(theirs.tokens * mask, 1) / jnp.sum(mask, 1)
        return mean, own.sentence, theirs.tokens, own.tokens, theirs.mask

    chunks = [map(np.asarray, both(tokens_NT[i : i + CHUNK])) for i in range(0, len(tokens_NT), CHUNK)]
    mean, sentence, theirs, own, mask = (np.concatenate(x) for x in zip(*chunks, strict=True))
    return Encodings(mean, sentence, theirs[mask], own[mask])


def fit(x_NF: np.ndarray, y_ND: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the linear map from x to y, and the fraction of the variance of y that it explains.

    The map is fitted to the first five sixths of the rows, and the fraction is measured on the others.
    """
    tested = len(x_NF) // 6
    w_FD = np.linalg.lstsq(x_NF[:-tested], y_ND[:-tested], rcond=1e-6)[0]
    x_NF, y_ND = x_NF[-tested:], y_ND[-tested:]
    rest = np.sum((y_ND - x_NF @ w_FD) ** 2) / np.sum((y_ND - y_ND.mean(0)) ** 2)
    return w_FD.astype(np.float32), float(1 - rest)


def share_encoder(model: Model, tokens_NT: np.ndarray) -> tuple[Model, float]:
    """Returns the model with the discriminator's encoder in the generator, and the fraction that remains."""
    encodings = encode(model, tokens_NT)
    with_bias = np.concatenate([encodings.mean, np.ones((len(encodings.mean), 1))], 1)
    weight, remaining = fit(with_bias, encodings.sentence)
    sentence = {"kernel": jnp.asarray(weight[:-1]), "bias": jnp.asarray(weight[-1])}
    encoder = model.params["discriminator"]["encoder"] | {"sentence": sentence}
    generator = model.params["generator"] | {"encoder": encoder}
    if attention := generator.get("up", {}).get("attention"):
        token, _ = fit(encodings.discriminator_tokens, encodings.generator_tokens)
        readers = {name: {"kernel": token @ attention[name]["kernel"]} for name in ("key", "value")}
        generator["up"] = generator["up"] | {"attention": attention | readers}
    return replace(model, params=model.params | {"generator": generator}), remaining


def main() -> None:
    """Parses the command line and writes a folder that `--init-from` takes."""
    args = parse(Args, "recipes/share_encoder.py")
    model = dallegan.load(args.model)
    if model.config.model.attention and not model.config.model.tied:
        raise UserError(
            f"{args.model}: its decoder has blocks of its own, and only a shared block can be fitted"
        )
    captions = make_source(model.config, "train").captions(CAPTIONS)
    if len(captions) < FEWEST:
        raise UserError(f"{args.model}: was trained on {len(captions)} captions, and a fit needs {FEWEST}")
    model, remaining = share_encoder(model, model.tokenizer.encode(captions))
    model.save(args.out)
    print(f"{args.out}: {remaining:.1%} of the variance of the sentence vectors remains")


if __name__ == "__main__":
    sys.exit(run(main))
