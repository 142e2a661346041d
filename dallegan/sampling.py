"""From captions to images: the `Model` that a user holds, and `load`, which makes it from files."""

import dataclasses
import functools
import itertools
import json
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

from dallegan.compile import chunks, compute_dtype, jit_sample
from dallegan.config import Config, check, count_layers, from_json, to_json
from dallegan.errors import UserError, line_of
from dallegan.io.files import digest, expand_home, local_path, read_file, write_atomic
from dallegan.io.remote import MODEL_FILES, PAGE, fetch
from dallegan.io.text import shown
from dallegan.io.weights import read_weights, write_weights
from dallegan.models.gan import Gan, Params
from dallegan.models.layers import to_float
from dallegan.shapes import Float, Given, Images8, UInt8
from dallegan.tokenizer import TextInput, is_blank, load_tokenizer

# images per call of the networks, always: the shape of the computation, and so the pixels of an image, do not
# depend on how many images are asked for
CHUNK = 16
WEIGHTS = "model.safetensors"
SHIPPED = pathlib.Path(__file__).parent / "assets"  # the folder of the models that come with the package
DEFAULT = "storybook-64"
Captions = Sequence[str] | str | np.ndarray  # an array holds token ids, i32[B, T] or i32[T]


class Seeding(flax.struct.PyTreeNode):
    """What the noise of B images is made from."""

    seed: Any  # u32[]
    truncation: Any  # f32[], scale of the noise
    caption: Any  # u32[B], hashes of the captions
    index: Any  # u32[B], the place of each image among those of its caption

    def noise(self, dims: int) -> jax.Array:
        """Returns f32[B, dims]. Each row depends on the seed, its own caption and its own index alone."""
        # 2 is the stream of sampling; those of training are in dallegan.state.Stream
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed, impl="threefry2x32"), 0), 2)

        def row(caption: jax.Array, index: jax.Array) -> jax.Array:
            own = jax.random.fold_in(jax.random.fold_in(key, caption), index)
            return jax.random.normal(own, (dims,), jnp.float32)

        return self.truncation * jax.vmap(row)(self.caption, self.index)


def _seeding(seed: int, truncation: float, caption: np.ndarray, index: Sequence[int] | np.ndarray) -> Seeding:
    """Checks the numbers of a user. Raises UserError if they are out of range."""
    if not 0 <= seed < 2**32 or not math.isfinite(truncation) or not 0 <= min(index) <= max(index) < 2**32:
        raise UserError(
            f"seed {seed}, index {min(index)}, truncation {truncation}: seed and index must be from 0 to "
            "2^32 - 1, the truncation a finite number"
        )
    return Seeding(
        np.uint32(operator.index(seed)), np.float32(truncation), caption, np.array(index, np.uint32)
    )


def to_uint8(image: Float[Given, "*shape"]) -> UInt8[jax.Array, "*shape"]:
    """Maps f32 in [-1, 1] to uint8."""
    return jnp.clip(jnp.round((image + 1) * 127.5), 0, 255).astype(jnp.uint8)


def _sample(gan: Gan, params: Params, tokens: jax.Array, seeding: Seeding) -> jax.Array:
    """Returns uint8[B, H, W, 3]. One program makes the noise too: it compiles faster than two."""
    return to_uint8(gan.synthesize(params, tokens, seeding.noise(gan.model.noise)))


def _score(gan: Gan, params: Params, image: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns f32[B] for uint8[B, H, W, 3]."""
    return gan.discriminate(params, to_float(image), tokens)


def _blend(gan: Gan, params: Params, tokens: jax.Array, seeding: Seeding, t: jax.Array) -> jax.Array:
    """Returns uint8[B, H, W, 3] at t f32[B] between two captions i32[2, T], and between their noises."""
    both = gan.encode(params, tokens)
    first, last = (jax.tree.map(lambda x, i=i: x[i : i + 1], both) for i in (0, 1))
    noise = seeding.noise(gan.model.noise)
    features = gan.generate(params, first.between(last, t), slerp(noise[0], noise[1], t))
    return to_uint8(gan.decode(params, features))


def slerp(a: Float[Given, " Z"], b: Float[Given, " Z"], t: Float[Given, " B"]) -> Float[jax.Array, "B Z"]:
    """Returns f32[B, Z], the points at t f32[B] between two latents f32[Z].

    They lie on the sphere of latents: spherical linear interpolation (White 2016, arXiv 1609.04468).
    """
    cosine = jnp.sum(a * b) / jnp.maximum(jnp.linalg.norm(a) * jnp.linalg.norm(b), 1e-12)
    angle = jnp.maximum(jnp.arccos(jnp.clip(cosine, -1, 1)), 1e-4)
    t = t[:, None]
    return (jnp.sin((1 - t) * angle) * a + jnp.sin(t * angle) * b) / jnp.sin(angle)


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained system: `gan` (pure functions), `params`, `tokenizer` and `config`.

    The generator's parameters are the moving average (EMA) of those that were trained.
    """

    gan: Gan
    params: Params
    tokenizer: TextInput
    config: Config

    def sample(
        self, captions: Captions, n: int = 1, seed: int = 0, truncation: float = 1.0, best_of: int = 1
    ) -> Images8:
        """Returns uint8[len(captions) * n, H, W, 3]: n images of each caption, caption by caption.

        The same caption, seed and place among the n give the same pixels, whatever else is asked for.

        Args:
            captions: strings, or token ids i32[B, T] or i32[T] from `tokenizer.encode`.
            n: images per caption, at least 1.
            seed: from 0 to 2^32 - 1.
            truncation: scale of the noise. Below 1 the images are more typical and less varied, as with the
                truncation trick (arXiv 1809.11096, §3.1).
            best_of: candidates per image, of which the discriminator's favourite is returned: better matched,
                and less varied.

        Raises:
            UserError: if a caption is empty or a number is out of range.
        """
        return np.concatenate(list(self.stream(captions, n, seed, truncation, best_of)))

    def stream(
        self, captions: Captions, n: int = 1, seed: int = 0, truncation: float = 1.0, best_of: int = 1
    ) -> Iterator[Images8]:
        """Yields the images of `sample` in pieces of at most 16, for long lists at constant memory."""
        if n < 1 or best_of < 1:
            raise UserError(f"n = {n}, best of {best_of}: ask for at least one image")
        tokens = self._tokens(captions)
        candidates = self._candidates(tokens, n * best_of, seed, truncation, scored=best_of > 1)
        groups = (itertools.islice(candidates, best_of) for _ in range(len(tokens) * n))
        images = (max(group, key=lambda candidate: candidate[1])[0] for group in groups)
        while piece := list(itertools.islice(images, max(1, CHUNK // best_of))):
            yield np.stack(piece)

    def _candidates(
        self, tokens: np.ndarray, n: int, seed: int, truncation: float, scored: bool
    ) -> Iterator[tuple[np.ndarray, float]]:
        """Yields n images of each caption with the discriminator's scores, which are 0 unless `scored`."""
        hashes = self.tokenizer.caption_hashes(tokens)
        for rows, count in chunks(len(tokens) * n, CHUNK):
            caption, index = rows // n, rows % n
            seeding = _seeding(seed, truncation, hashes[caption], index)
            images = jit_sample(_sample, (0,))(self.gan, self.params, tokens[caption], seeding)
            scores = np.zeros(CHUNK, np.float32)
            if scored:
                scores = jit_sample(_score, (0,))(self.gan, self.params, images, tokens[caption])
            yield from zip(np.asarray(images)[:count], np.asarray(scores)[:count].tolist(), strict=True)

    def score(self, images: np.ndarray, captions: Captions) -> Float[np.ndarray, " B"]:
        """Returns f32[B], the discriminator's scores of images uint8[B, H, W, 3], each with its caption.

        Only the order of scores means something: a higher score is more real and better matched. Raises
        UserError if the number of captions differs, or the images have another size.
        """
        tokens, size = self._tokens(captions), self.config.data.size
        if images.dtype != np.uint8 or images.shape != (len(tokens), size, size, 3):
            wanted, given = f"uint8[{len(tokens)}, {size}, {size}, 3]", f"{images.dtype}{list(images.shape)}"
            raise UserError(f"images must be {wanted}, one per caption, not {given}")
        score = jit_sample(_score, (0,))
        rows = chunks(len(tokens), CHUNK)
        scores = [np.asarray(score(self.gan, self.params, images[i], tokens[i]))[:count] for i, count in rows]
        return np.concatenate(scores)

    def interpolate(
        self, a: str, b: str, frames: int = 24, index: int = 0, seed: int = 0, truncation: float = 1.0
    ) -> Images8:
        """Returns uint8[frames, H, W, 3], from image `index` of caption a to image `index` of caption b.

        If both captions are the same, the last frame is image `index` + 1. The first and the last frame are
        what `sample` draws, up to rounding. Raises UserError if a caption is empty or a number is out of
        range.
        """
        if frames < 2:
            raise UserError(f"frames = {frames}: ask for at least two")
        tokens = self._tokens([a, b])
        hashes = self.tokenizer.caption_hashes(tokens)
        seeding = _seeding(seed, truncation, hashes, [index, index + int(hashes[0] == hashes[1])])
        t = np.linspace(0, 1, frames, dtype=np.float32)
        blend = jit_sample(_blend, (0,))
        rows = chunks(frames, CHUNK)
        return np.concatenate(
            [blend(self.gan, self.params, tokens, seeding, t[i])[:count] for i, count in rows]
        )

    @functools.cached_property
    def digest(self) -> str:
        """The model's identity: 16 hexadecimal digits of a sha256 of all that decides its pixels.

        These are the parameters, the tokenizer, the settings of the networks and the dtype that they compute
        in, which depends on the device unless `parallel.precision` names it.
        """
        gan, leaves = self.gan, jax.tree.leaves_with_path(self.params)
        networks = json.dumps([dataclasses.asdict(part) for part in (gan.text, gan.model)])
        params = (x for key, leaf in leaves for x in (jax.tree_util.keystr(key), np.asarray(leaf).tobytes()))
        return digest([self.tokenizer.proto, networks, str(gan.size), np.dtype(gan.dtype).name, *params])

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes what `load` reads to a folder: config.json, tokenizer.model and model.safetensors.

        The weights are rounded to bfloat16, which makes the folder a tenth of a checkpoint's size. Raises
        UserError if the folder cannot be written to, or is a run's directory.
        """
        folder = local_path(folder)
        if (folder / "checkpoints").exists():
            raise UserError(
                f"{folder} is a run's directory: its checkpoints would be hidden; name another folder"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / "config.json", to_json(self.config))
            self.tokenizer.save(folder / "tokenizer.model")
            write_weights(folder / WEIGHTS, self.params)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}") from None

    def _tokens(self, captions: Captions) -> np.ndarray:
        """Returns i32[B, T]. Raises UserError for empty captions and for ids of another tokenizer."""
        if isinstance(captions, str):
            captions = [captions]
        if len(captions) and isinstance(captions[0], str):
            if any(is_blank(str(c)) for c in captions):
                raise UserError("empty caption: say what to draw")
            return self.tokenizer.encode([str(c) for c in captions])
        tokens, length, size = np.atleast_2d(np.asarray(captions)), self.tokenizer.length, self.tokenizer.size
        if tokens.shape[-1] != length or not np.issubdtype(tokens.dtype, np.integer) or not tokens.size:
            given = f"{tokens.dtype}{list(tokens.shape)}"
            raise UserError(f"captions must be strings or token ids i32[B, {length}], not {given}")
        if size and not 0 <= tokens.min() <= tokens.max() < size:
            raise UserError(f"token ids must be from 0 to {size - 1}: these are another tokenizer's")
        return tokens.astype(np.int32)


def make_gan(config: Config, vocab: int) -> Gan:
    """Returns the networks that a configuration and a tokenizer's size describe."""
    text = dataclasses.replace(config.text, vocab=vocab)
    dtype, packing = compute_dtype(config.parallel.precision), bool(config.loss.packing)
    return Gan(text, config.model, config.data.size, dtype, packing)


def load(path: str | pathlib.Path = DEFAULT) -> Model:
    """Loads a trained model. No code in its files is ever run.

    Args:
        path: the name of a model that ships with the package ("storybook-64"); a run's directory, as
            `train.py` writes it; a folder that `Model.save` wrote, here or in a bucket ("gs://bucket/model",
            extra `gcs`); or a model on the Hugging Face Hub ("hf://org/name", "hf://org/name@revision", extra
            `hub`). "RUN" is the run's newest checkpoint, "RUN@best" that with the best evaluation, "RUN@3200"
            that of a step. A local folder with the name of a shipped model is "./NAME", or a pathlib.Path.

    Raises:
        UserError: if there is no such model, or its files are damaged or do not fit together.
    """
    if isinstance(path, str) and ("://" in path or PAGE.match(path)):
        return load(fetch(path))
    folder, checkpoint = find_model(path)
    try:
        config = from_json(read_file(folder / "config.json").decode("utf-8-sig", "replace"))
        check(config)
    except (UserError, OSError) as error:
        raise UserError(f"{folder / 'config.json'}: {line_of(error)}") from None
    tokenizer = load_tokenizer(folder / "tokenizer.model", config.text)
    gan = make_gan(config, tokenizer.size)
    trace = functools.partial(jax.eval_shape, gan.init, jax.random.key(0))
    if (folder / WEIGHTS).exists():
        # tracing the networks for the expected shapes takes half a second, which a shipped model does not
        # need (tests/test_shipped.py), and minutes if a stranger's config.json asks for hundreds of layers
        expected = None if folder.parent == SHIPPED else trace
        params = read_weights(folder / WEIGHTS, expected, count_layers(config)[1])
        return Model(gan, params, tokenizer, config)
    from dallegan.run.checkpoint import load_state  # imports Orbax, which a saved model does not need

    shapes = trace()
    wanted = {"ema": shapes["generator"], "params": {"discriminator": shapes["discriminator"]}}
    state = load_state(folder, wanted, checkpoint)
    params = {"generator": state["ema"], "discriminator": state["params"]["discriminator"]}
    return Model(gan, params, tokenizer, config)


def find_model(path: str | pathlib.Path) -> tuple[pathlib.Path, str]:
    """Returns the folder of a local model and the checkpoint: "best", a step, or "" for the newest.

    Raises UserError if there is no such folder, or files are missing in it.
    """
    shipped = sorted(file.parent.name for file in SHIPPED.glob(f"*/{WEIGHTS}"))
    try:
        name, checkpoint = split_checkpoint(path)
        is_shipped = isinstance(path, str) and name in shipped
        folder = SHIPPED / name if is_shipped else expand_home(name)
        saved = (folder / WEIGHTS).exists()
        needed = ("config.json", "tokenizer.model", WEIGHTS if saved else "checkpoints")
        missing = [name for name in needed if not (folder / name).exists()]
    except (OSError, ValueError) as error:  # no permission, a long name, NUL in it
        raise UserError(f"{shown(path, 80)} is not a model: {line_of(error)}") from None
    if missing:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{path} is a file; a model is a folder with {', '.join(MODEL_FILES)}: name that")
        reason = f"no {', '.join(missing)} in it" if folder.is_dir() else "no such directory"
        names = ", ".join(shipped) or "none"
        raise UserError(
            f"{path} is not a model: {reason}. In the package: {names}. Train one with: python train.py"
        )
    if saved and checkpoint:
        raise UserError(f"{path}: {name} is a saved model without checkpoints; leave @{checkpoint} out")
    return folder, checkpoint


def split_checkpoint(path: str | pathlib.Path) -> tuple[str, str]:
    """Splits "RUN@best" or "RUN@3200" into the run and the checkpoint; of "RUN" the checkpoint is ""."""
    if re.search(r"@(best|\d+)$", str(path)) and not pathlib.Path(path).exists():
        name, _, checkpoint = str(path).rpartition("@")
        return name, checkpoint
    return str(path), ""
