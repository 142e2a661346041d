"""Captions to pictures: the `Model` that a user holds."""

import dataclasses
import functools
import hashlib
import math
import operator
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dallegan.compile import compute_dtype, jit_sample
from dallegan.config import Config, check, from_json, to_json
from dallegan.errors import UserError
from dallegan.io.files import write_atomic
from dallegan.io.remote import fetch
from dallegan.io.weights import read_weights, write_weights
from dallegan.models.gan import Gan, Params
from dallegan.models.layers import to_float
from dallegan.shapes import Float, Given, Pictures, UInt8
from dallegan.tokenizer import Tokenizer, is_blank, load_tokenizer

CHUNK = 16  # pictures drawn at once, always: the shape of the computation, so the pixels, do not depend on how many are asked for
WEIGHTS = "model.safetensors"
SHIPPED = pathlib.Path(__file__).parent / "assets"  # NAME/: a model that comes with the package
DEFAULT = "storybook-64"
Captions = Sequence[str] | str | np.ndarray  # or token ids i32[B, T], i32[T]


class Seeding(flax.struct.PyTreeNode):
    """What the noise of pictures is made from."""

    seed: Any  # u32[]
    truncation: Any  # f32[]: the noise is scaled by it
    caption: Any  # u32[B], the captions' marks
    index: Any  # u32[B]: which of a caption's pictures

    def noise(self, dims: int) -> jax.Array:
        """f32[B, dims]: each picture's a function of the seed, its caption and its own index alone."""
        # training's streams (dallegan.state.Stream) leave the number 2 to sampling
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed, impl="threefry2x32"), 0), 2)
        each = jax.vmap(lambda c, i: jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, c), i), (dims,), jnp.float32))
        return self.truncation * each(self.caption, self.index)


def _seeding(seed: int, truncation: float, caption: np.ndarray, index: Sequence[int] | np.ndarray) -> Seeding:
    """UserError for numbers that give none."""
    if not 0 <= seed < 2**32 or not math.isfinite(truncation) or not 0 <= min(index) <= max(index) < 2**32:
        raise UserError(f"seed {seed}, index {min(index)}, truncation {truncation}: seed and index are from 0 to 2^32 - 1, the truncation a finite number")
    return Seeding(np.uint32(operator.index(seed)), np.float32(truncation), caption, np.array(index, np.uint32))


def to_uint8(image: Float[Given, "*shape"]) -> UInt8[jax.Array, "*shape"]:
    """f32 in [-1, 1] -> uint8."""
    return jnp.clip(jnp.round((image + 1) * 127.5), 0, 255).astype(jnp.uint8)


def _sample(gan: Gan, params: Params, tokens: jax.Array, seeding: Seeding) -> jax.Array:
    """-> uint8[B, H, W, 3]; noise and all in one program, which is compiled sooner than several."""
    return to_uint8(gan.synthesize(params, tokens, seeding.noise(gan.model.noise)))


def _score(gan: Gan, params: Params, image: jax.Array, tokens: jax.Array) -> jax.Array:
    return gan.discriminate(params, to_float(image), tokens)


def _blend(gan: Gan, params: Params, tokens: jax.Array, seeding: Seeding, t: jax.Array) -> jax.Array:
    """i32[2, T], the noise of two pictures, f32[B] -> uint8[B, H, W, 3]: from one caption and noise to the other."""
    noise = seeding.noise(gan.model.noise)
    text = jax.tree.map(lambda x: x[:1], both := gan.encode(params, tokens)).between(jax.tree.map(lambda x: x[1:], both), t)
    z = slerp(noise[0], noise[1], t)
    return to_uint8(gan.decode(params, gan.generate(params, text, z)))


def slerp(a: Float[Given, " Z"], b: Float[Given, " Z"], t: Float[Given, " B"]) -> Float[jax.Array, "B Z"]:
    """f32[B, Z] between two latents f32[Z], along the sphere where such vectors lie (White 2016, arXiv 1609.04468)."""
    cosine = jnp.sum(a * b) / jnp.maximum(jnp.linalg.norm(a) * jnp.linalg.norm(b), 1e-12)
    angle = jnp.maximum(jnp.arccos(jnp.clip(cosine, -1, 1)), 1e-4)
    return (jnp.sin((1 - t[:, None]) * angle) * a + jnp.sin(t[:, None] * angle) * b) / jnp.sin(angle)


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained system: `gan` (pure functions), `params` (the moving average), `tokenizer`, `config`."""

    gan: Gan
    params: Params
    tokenizer: Tokenizer
    config: Config

    def sample(self, captions: Captions, n: int = 1, seed: int = 0, truncation: float = 1.0, best_of: int = 1) -> Pictures:
        """uint8[len(captions) * n, H, W, 3]: n pictures of each caption, caption by caption.

        captions: strings, or token ids i32[B, T] or i32[T] from `tokenizer.encode`. truncation: the noise is scaled by it;
        below 1 gives less variety and more typical pictures, as the truncation trick does (arXiv 1809.11096, §3.1). best_of: each picture
        is the one of so many that the discriminator scores highest: better matched, and less varied. The same caption, seed and place among
        the n gives the same pixels, whatever else is asked for. UserError for an empty caption or n < 1.
        """
        return np.concatenate(list(self.stream(captions, n, seed, truncation, best_of)))

    def stream(self, captions: Captions, n: int = 1, seed: int = 0, truncation: float = 1.0, best_of: int = 1) -> Iterator[Pictures]:
        """`sample` in pieces of at most 16 pictures, for long lists at constant memory."""
        if n < 1 or best_of < 1:
            raise UserError(f"n = {n}, best of {best_of}: ask for at least one picture")
        tokens = self._tokens(captions)
        size = self.config.data.size
        leader, lead, at = np.zeros((size, size, 3), np.uint8), -np.inf, 0  # of the group that is not yet whole
        for images, scores in self._candidates(tokens, n * best_of, seed, truncation, scored=best_of > 1):
            best = []
            for image, score in zip(images, scores, strict=True):
                if at % best_of == 0 or score > lead:
                    leader, lead = image, score
                at += 1
                if at % best_of == 0:
                    best.append(leader)
            yield np.stack(best) if best else np.zeros((0, size, size, 3), np.uint8)

    def _candidates(self, tokens: np.ndarray, n: int, seed: int, truncation: float, scored: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pictures, at most 16 at once, and the discriminator's scores of them (zeros unless `scored`)."""
        marks = self.tokenizer.caption_hashes(tokens)
        total = len(tokens) * n
        for start in range(0, total, CHUNK):
            rows = np.minimum(np.arange(start, start + CHUNK), total - 1)  # the last chunk is filled up and cut
            images = jit_sample(_sample, (0,))(self.gan, self.params, tokens[rows // n], _seeding(seed, truncation, marks[rows // n], rows % n))
            score = jit_sample(_score, (0,))(self.gan, self.params, images, tokens[rows // n]) if scored else np.zeros(CHUNK, np.float32)
            yield np.asarray(images)[: total - start], np.asarray(score)[: total - start]

    def score(self, images: np.ndarray, captions: Captions) -> Float[np.ndarray, " B"]:
        """f32[B]: the discriminator's scores of pictures uint8[B, H, W, 3], each with its caption. Only their order means something: higher is more
        real and better matched. UserError for another number of captions, or pictures of another size."""
        tokens, size = self._tokens(captions), self.config.data.size
        if images.dtype != np.uint8 or images.shape != (len(tokens), size, size, 3):
            raise UserError(f"pictures must be uint8[{len(tokens)}, {size}, {size}, 3], one a caption, not {images.dtype}{list(images.shape)}")
        scores = []
        for start in range(0, len(tokens), CHUNK):
            rows = np.minimum(np.arange(start, start + CHUNK), len(tokens) - 1)
            scores.append(np.asarray(jit_sample(_score, (0,))(self.gan, self.params, images[rows], tokens[rows])))
        return np.concatenate(scores)[: len(tokens)]

    def interpolate(self, a: str, b: str, frames: int = 24, index: int = 0, seed: int = 0, truncation: float = 1.0) -> Pictures:
        """uint8[frames, H, W, 3]: the way from one caption to another, with the noise of the picture `index` of each; from a caption to itself, the way
        from that picture to the next. The ends are what `sample` draws, to rounding. UserError for an empty caption or fewer than two frames."""
        if frames < 2:
            raise UserError(f"frames = {frames}: ask for at least two")
        tokens = self._tokens([a, b])
        marks = self.tokenizer.caption_hashes(tokens)
        seeding = _seeding(seed, truncation, marks, [index, index + int(marks[0] == marks[1])])
        t = np.linspace(0, 1, frames, dtype=np.float32)
        pieces = (np.minimum(np.arange(start, start + CHUNK), frames - 1) for start in range(0, frames, CHUNK))
        return np.concatenate([jit_sample(_blend, (0,))(self.gan, self.params, tokens, seeding, t[rows]) for rows in pieces])[:frames]

    @functools.cached_property
    def digest(self) -> str:
        """What tells this model from others: 16 hexadecimal digits, of the sha256 of its parameters and its tokenizer."""
        whole = hashlib.sha256(self.tokenizer.proto)
        for path, leaf in jax.tree.leaves_with_path(self.params):
            whole.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
        return whole.hexdigest()[:16]

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes what `load` reads into a new folder: config.json, tokenizer.model and bfloat16 weights, a tenth of a checkpoint's size.

        The same pictures come out, to bfloat16's three digits in the weights. UserError where the folder cannot be written to, or is a run's.
        """
        folder = pathlib.Path(folder).expanduser()
        if (folder / "checkpoints").exists():
            raise UserError(f"{folder} is a run's directory: its checkpoints would be hidden; name another folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / "config.json", to_json(self.config))
            self.tokenizer.save(folder / "tokenizer.model")
            write_weights(folder / WEIGHTS, self.params)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}") from None

    def _tokens(self, captions: Captions) -> np.ndarray:
        if isinstance(captions, str):
            captions = [captions]
        if len(captions) and isinstance(captions[0], str):
            if any(is_blank(str(c)) for c in captions):
                raise UserError("empty caption: say what to draw")
            return self.tokenizer.encode([str(c) for c in captions])
        tokens = np.atleast_2d(np.asarray(captions))
        if tokens.shape[-1] != self.tokenizer.length or not np.issubdtype(tokens.dtype, np.integer) or not tokens.size:
            raise UserError(f"captions must be strings or token ids i32[B, {self.tokenizer.length}], not {tokens.dtype}{list(tokens.shape)}")
        if self.config.text.encoder != "frozen" and not 0 <= tokens.min() <= tokens.max() < self.tokenizer.size:
            raise UserError(f"token ids must be from 0 to {self.tokenizer.size - 1}: these are another tokenizer's")
        return tokens.astype(np.int32)


def make_gan(config: Config, vocab: int) -> Gan:
    """The system that a configuration and a tokenizer's size describe."""
    text = dataclasses.replace(config.text, vocab=vocab)
    return Gan(text, config.model, config.data.size, compute_dtype(config.parallel.precision))


def load(path: str | pathlib.Path = DEFAULT) -> Model:
    """The model of that name that ships with the package, of a run directory (as `train.py` writes it), of a folder that `Model.save` wrote, here
    or in a bucket ("gs://bucket/model", extra `gcs`), or of the Hugging Face Hub ("hf://org/name" or "hf://org/name@revision", extra `hub`).

    A folder called like a shipped model is reached as "./NAME" or by a Path. Of a run it is the newest checkpoint; "RUN@best" is the one
    that did best where the run evaluated, "RUN@3200" that of a step. Weights are read from safetensors and JSON, which cannot hold code.
    UserError where there is none, or none that fits.
    """
    if isinstance(path, str) and "://" in path:
        return load(fetch(path))
    shipped = sorted(file.parent.name for file in SHIPPED.glob(f"*/{WEIGHTS}"))
    try:
        name, at = split_checkpoint(path)
        folder = SHIPPED / name if isinstance(path, str) and name in shipped else pathlib.Path(name).expanduser()
        saved = (folder / WEIGHTS).exists()
        missing = [name for name in ("config.json", "tokenizer.model", WEIGHTS if saved else "checkpoints") if not (folder / name).exists()]
    except (OSError, RuntimeError) as error:  # no permission, a name that is too long, nobody's home
        raise UserError(f"{str(path)[:80]} is not a model: {getattr(error, 'strerror', None) or error}") from None
    if missing:
        reason = f"no {', '.join(missing)} in it" if folder.is_dir() else "no such directory"
        raise UserError(f"{path} is not a model: {reason}. In the package: {', '.join(shipped) or 'none'}. Train one with: python train.py")
    try:
        config = from_json((folder / "config.json").read_text("utf-8", "replace"))
        check(config)
    except (UserError, OSError) as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from None
    tokenizer = load_tokenizer(folder / "tokenizer.model", config.text)
    gan = make_gan(config, tokenizer.size)
    if saved and at:
        raise UserError(f"{path}: {name} is a saved model and has no checkpoints to choose from; leave @{at} out")
    if saved:
        # to trace the networks for the shapes to expect takes half a second; what comes with the package fits (tests/test_shipped.py)
        expected = None if folder.parent == SHIPPED else jax.eval_shape(gan.init, jax.random.key(0))
        return Model(gan, read_weights(folder / WEIGHTS, expected), tokenizer, config)
    from dallegan.run.checkpoint import load_state  # and Orbax, a quarter of a second that a saved model does not need

    shapes = jax.eval_shape(gan.init, jax.random.key(0))
    state = load_state(folder, {"ema": shapes["generator"], "params": {"discriminator": shapes["discriminator"]}}, at)
    return Model(gan, {"generator": state["ema"], "discriminator": state["params"]["discriminator"]}, tokenizer, config)


def split_checkpoint(path: str | pathlib.Path) -> tuple[str, str]:
    """("RUN", "best") of "RUN@best", which of its checkpoints; ("RUN", "") of "RUN"."""
    if re.search(r"@(best|\d+)$", str(path)) and not pathlib.Path(path).exists():
        name, _, at = str(path).rpartition("@")
        return name, at
    return str(path), ""
