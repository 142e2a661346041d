"""Gives a model's generator the discriminator's text encoder, for a run on from it.

python benchmarks/share_encoder.py MODEL OUT

The discriminator is shown true and false captions of real pictures and learns what words mean long before the generator, which hears of them only
through scores. AttnGAN trains its text encoder by such matching first (DAMSM, arXiv 1711.10485, section 3.2); here the discriminator has done it on the way.
What reads the encoder in the generator is fitted by least squares to what it read before, so that the model goes on where it stood, but for what the
generator's own encoder did not hear: that is there to be read now. Prints how much is left of what was read.
"""

import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import dallegan
from dallegan.data.pipeline import make_source
from dallegan.errors import UserError
from dallegan.io.cli import parse, run
from dallegan.sampling import Model

CAPTIONS, LEAST, CHUNK = 6144, 600, 512


@dataclasses.dataclass(frozen=True)
class Args:
    """Give a model's generator the discriminator's text encoder."""

    model: tyro.conf.Positional[str]  # as of `dallegan.load`
    out: tyro.conf.Positional[pathlib.Path]  # folder for the model that comes out


def read(model: Model, tokens_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What the discriminator's encoder makes of captions, [N, D + 1] with a one behind, and the generator's sentence vectors, [N, D]; then of each token."""

    @jax.jit
    def both(tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
        theirs, own = model.gan.encode_caption(model.params, tokens), model.gan.encode(model.params, tokens)
        mask = theirs.mask[..., None]
        return jnp.sum(theirs.tokens * mask, 1) / jnp.sum(mask, 1), own.sentence, theirs.tokens, own.tokens, theirs.mask

    chunks = [map(np.asarray, both(tokens_NT[i : i + CHUNK])) for i in range(0, len(tokens_NT), CHUNK)]
    mean, sentence, theirs, own, mask = (np.concatenate(x) for x in zip(*chunks, strict=True))
    return np.concatenate([mean, np.ones((len(mean), 1))], 1), sentence, theirs[mask], own[mask]


def fit(x_NF: np.ndarray, y_ND: np.ndarray) -> tuple[np.ndarray, float]:
    """The linear map from x to y, and the share of the variance that it explains of the last sixth of rows, which it was not fitted to."""
    tested = len(x_NF) // 6
    w_FD = np.linalg.lstsq(x_NF[:-tested], y_ND[:-tested], rcond=1e-6)[0]
    x_NF, y_ND = x_NF[-tested:], y_ND[-tested:]
    return w_FD.astype(np.float32), float(1 - np.sum((y_ND - x_NF @ w_FD) ** 2) / np.sum((y_ND - y_ND.mean(0)) ** 2))


def share_encoder(model: Model, tokens_NT: np.ndarray) -> tuple[Model, float]:
    """The model whose generator reads captions as its discriminator does, and the share that is left of the variance of its sentence vectors."""
    mean, sentence, theirs, own = read(model, tokens_NT)
    whole, left = fit(mean, sentence)
    encoder = {**model.params["discriminator"]["encoder"], "sentence": {"kernel": jnp.asarray(whole[:-1]), "bias": jnp.asarray(whole[-1])}}
    generator = {**model.params["generator"], "encoder": encoder}
    if attention := generator.get("up", {}).get("attention"):
        word, _ = fit(theirs, own)
        readers = {name: {"kernel": word @ attention[name]["kernel"]} for name in ("key", "value")}
        generator["up"] = {**generator["up"], "attention": {**attention, **readers}}
    return Model(model.gan, {**model.params, "generator": generator}, model.tokenizer, model.config), left


def main() -> None:
    """Shares, and writes a folder that `--init-from` takes."""
    args = parse(Args, "share_encoder.py")
    model = dallegan.load(args.model)
    if model.config.model.attention and not model.config.model.tied:
        raise UserError(f"{args.model}: a decoder with blocks of its own attends, and only a shared block is fitted")
    captions = make_source(model.config, "train").captions(CAPTIONS)
    if len(captions) < LEAST:
        raise UserError(f"{args.model} was trained on {len(captions)} captions: a fit needs {LEAST}")
    model, left = share_encoder(model, model.tokenizer.encode(captions))
    model.save(args.out)
    print(f"{args.out}: the generator reads by the discriminator's encoder, {left:.1%} of the variance of its sentence vectors are left")


if __name__ == "__main__":
    sys.exit(run(main))
