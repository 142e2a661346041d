"""The four boxes composed: pure functions over one pytree of parameters."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from dallegan.config import ModelConfig, TextConfig
from dallegan.models.decoder import DcganDecoder, Decoder
from dallegan.models.discriminator import DcganDiscriminator, Discriminator, ImageFeatures
from dallegan.models.encoder import Encoder, TextFeatures
from dallegan.models.generator import DcganGenerator, FeatureMap, Generator, Mapping, UpBlock
from dallegan.models.layers import Dtype
from dallegan.shapes import Float, Given, Images, Noise, Tokens

Params = dict[str, Any]
Path = tuple[str, ...]


class Synthesis(nn.Module):
    """The generating player: encoder, generator and decoder, with mapping network and shared block."""

    text: TextConfig
    model: ModelConfig
    size: int
    dtype: Dtype

    def setup(self) -> None:
        c = self.model
        self.encoder = Encoder(self.text, self.dtype)
        if c.recipe == "dcgan":
            self.generator = DcganGenerator(
                8 * self.size, self.dtype
            )  # halved per doubling: 64 at half the size
            self.decoder = DcganDecoder(self.size, self.dtype)
            return
        side = self.size // c.patch  # of the last feature map
        depth = c.blocks * int(math.log2(side // 4))
        self.mapping = Mapping(c, self.dtype)
        self.up = UpBlock(c, depth, self.dtype)
        self.generator = Generator(c, min(8, side // 2), self.mapping, self.up, self.dtype)
        self.decoder = Decoder(c, self.size, self.up if c.tied else None, depth, self.dtype)

    def encode(self, tok_BT: jax.Array) -> TextFeatures:
        return self.encoder(tok_BT)

    def generate(self, text: TextFeatures, noise_BZ: jax.Array) -> FeatureMap:
        return self.generator(text, noise_BZ)

    def decode(self, h: FeatureMap) -> jax.Array:
        return self.decoder(h)

    def __call__(self, tok_BT: jax.Array, noise_BZ: jax.Array) -> jax.Array:
        return self.decode(self.generate(self.encode(tok_BT), noise_BZ))


class Critic(nn.Module):
    """The judging player: the discriminator and its own text encoder."""

    text: TextConfig
    model: ModelConfig
    dtype: Dtype
    packing: bool

    def setup(self) -> None:
        self.encoder = Encoder(self.text, self.dtype)
        dcgan = self.model.recipe == "dcgan"
        self.discriminator = (
            DcganDiscriminator(dtype=self.dtype)
            if dcgan
            else Discriminator(self.model, self.dtype, packing=self.packing)
        )

    def encode(self, tok_BT: jax.Array) -> TextFeatures:
        return self.encoder(tok_BT)

    def image_features(self, image_BHWC: jax.Array) -> ImageFeatures:
        if not jnp.issubdtype(image_BHWC.dtype, jnp.floating):  # `Model.sample` returns uint8
            raise TypeError(
                f"images must be floats in [-1, 1], not {image_BHWC.dtype}: use models.layers.to_float"
            )
        return self.discriminator.image_features(image_BHWC)

    def score(self, seen: ImageFeatures, text: TextFeatures) -> jax.Array:
        return self.discriminator.score(seen, text)

    def score_pairs(self, seen: ImageFeatures) -> jax.Array:
        return self.discriminator.score_pairs(seen)

    def match(self, whole_BF: jax.Array, sentence_KD: jax.Array) -> jax.Array:
        return self.discriminator.match(whole_BF, sentence_KD)

    def __call__(self, image_BHWC: jax.Array, tok_BT: jax.Array) -> jax.Array:
        seen = self.image_features(image_BHWC)
        if self.is_initializing() and self.packing:
            self.score_pairs(jax.tree.map(lambda x: jnp.concatenate([x, x]), seen))  # makes its parameters
        return self.score(seen, self.encode(tok_BT))


@dataclasses.dataclass(frozen=True)
class Gan:
    """The whole system as pure functions of `params`, {"generator": ..., "discriminator": ...}, by player.

    Nothing here holds state: every method can be jitted, vmapped and differentiated. "generator" holds
    encoder, generator and decoder; "discriminator" holds the discriminator and its own encoder.
    """

    text: TextConfig
    model: ModelConfig
    size: int
    dtype: Dtype = jnp.float32
    packing: bool = False  # whether the discriminator has a head for two images of a caption

    @functools.cached_property
    def synthesis(self) -> Synthesis:
        """The linen module behind encode, generate and decode."""
        return Synthesis(self.text, self.model, self.size, self.dtype)

    @functools.cached_property
    def critic(self) -> Critic:
        """The linen module behind discriminate."""
        return Critic(self.text, self.model, self.dtype, self.packing)

    def init(self, key: jax.Array) -> Params:
        """Returns fresh float32 parameters."""
        return {player: variables["params"] for player, variables in self._variables(key).items()}

    @functools.cached_property
    def hidden(self) -> frozenset[Path]:
        """Paths of the hidden kernels in `params`, as `models.layers.hidden` marked them."""
        marks = {
            k: v.get("hidden", {}) for k, v in jax.eval_shape(self._variables, jax.random.key(0)).items()
        }
        return frozenset((*path, "kernel") for path in flax.traverse_util.flatten_dict(marks))

    def _variables(self, key: jax.Array) -> dict[str, Any]:
        tokens, noise = jnp.ones((1, self.text.ids), jnp.int32), jnp.zeros((1, self.model.noise))
        key_g, key_d = jax.random.split(key)
        image = jnp.zeros((1, self.size, self.size, 3))
        return {
            "generator": self.synthesis.init(key_g, tokens, noise),
            "discriminator": self.critic.init(key_d, image, tokens),
        }

    def encode(self, params: Params, tokens: Tokens) -> TextFeatures:
        """Encodes captions i32[B, T]: sentence f32[B, D], tokens f32[B, T, D], mask bool[B, T]."""
        return self._synthesis(params, tokens, method="encode")

    def generate(self, params: Params, text: TextFeatures, noise: Noise) -> FeatureMap:
        """Generates the feature map f32[B, h, w, C] of captions and noise f32[B, Z] ~ N(0, I)."""
        return self._synthesis(params, text, noise, method="generate")

    def decode(self, params: Params, h: FeatureMap) -> Float[jax.Array, "B H W 3"]:
        """Decodes a feature map to images f32[B, H, W, 3] in [-1, 1]."""
        return self._synthesis(params, h, method="decode")

    def synthesize(self, params: Params, tokens: Tokens, noise: Noise) -> Float[jax.Array, "B H W 3"]:
        """Encodes, generates and decodes: i32[B, T], f32[B, Z] -> f32[B, H, W, 3] in [-1, 1]."""
        return self._synthesis(params, tokens, noise, method="__call__")

    def discriminate(self, params: Params, image: Images, tokens: Tokens) -> Float[jax.Array, " B"]:
        """Scores images f32[B, H, W, 3] in [-1, 1] with captions i32[B, T].

        A higher score is more real and better matched.
        """
        return self._critic(params, image, tokens, method="__call__")

    def image_features(self, params: Params, image: Images) -> ImageFeatures:
        """Returns features of images f32[B, H, W, 3] in [-1, 1], the first argument of `score`."""
        return self._critic(params, image, method="image_features")

    def encode_caption(self, params: Params, tokens: Tokens) -> TextFeatures:
        """Encodes captions i32[B, T] by the discriminator's encoder, the second argument of `score`."""
        return self._critic(params, tokens, method="encode")

    def score(self, params: Params, seen: ImageFeatures, text: TextFeatures) -> Float[jax.Array, " B"]:
        """Returns what `discriminate` returns, f32[B], from `image_features` and `encode_caption`."""
        return self._critic(params, seen, text, method="score")

    def score_pairs(self, params: Params, seen: ImageFeatures) -> Float[jax.Array, " P"]:
        """Scores pairs of images, f32[B/2]: rows 2 k and 2 k + 1 of `image_features`, of one caption.

        A higher score is more like two real images of a caption. Only a Gan with `packing` has this head.
        """
        return self._critic(params, seen, method="score_pairs")

    def match(
        self, params: Params, whole: Float[Given, "B F"], sentence: Float[Given, "K D"]
    ) -> Float[jax.Array, "B K"]:
        """Returns how well every image fits every sentence, without realism and single words.

        whole: `image_features(...).whole`; sentence: `encode_caption(...).sentence`. The dcgan recipe has no
        such term.
        """
        return self._critic(params, whole, sentence, method="match")

    def _synthesis(self, params: Params, *args: Any, method: str) -> Any:
        return self.synthesis.apply(
            {"params": params["generator"]}, *jax.tree.map(jnp.asarray, args), method=method
        )

    def _critic(self, params: Params, *args: Any, method: str) -> Any:
        return self.critic.apply(
            {"params": params["discriminator"]}, *jax.tree.map(jnp.asarray, args), method=method
        )
