"""The four boxes composed: pure functions over one pytree of parameters."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dallegan.config import ModelConfig, TextConfig
from dallegan.models.decoder import DcganDecoder, Decoder
from dallegan.models.discriminator import DcganDiscriminator, Discriminator, Seen
from dallegan.models.encoder import Encoder, Text
from dallegan.models.generator import DcganGenerator, Generator, Mapping, UpBlock
from dallegan.models.layers import Dtype
from dallegan.shapes import FeatureMap, Float, Given, Images, Noise, Tokens

Params = dict[str, Any]


class Synthesis(nn.Module):
    """The generating side: encoder, generator and decoder, and what the last two share."""

    text: TextConfig
    model: ModelConfig
    size: int
    dtype: Dtype

    def setup(self) -> None:
        c = self.model
        self.encoder = Encoder(self.text, self.dtype)
        if c.recipe == "dcgan":
            self.generator = DcganGenerator(8 * self.size, self.dtype)  # halved at each doubling: 64 at half the size
            self.decoder = DcganDecoder(self.size, self.dtype)
            return
        depth = c.blocks * int(math.log2(self.size // c.patch // 4))
        self.mapping = Mapping(c, self.dtype)
        self.up = UpBlock(c, depth, self.dtype)
        self.generator = Generator(c, self.mapping, self.up, self.dtype)
        self.decoder = Decoder(c, self.size, self.mapping, self.up if c.tied else None, depth, self.dtype)

    def encode(self, tok_BT: jax.Array) -> Text:
        return self.encoder(tok_BT)

    def generate(self, text: Text, noise_BZ: jax.Array) -> jax.Array:
        return self.generator(text, noise_BZ)

    def decode(self, h_BHWC: jax.Array, text: Text, noise_BZ: jax.Array) -> jax.Array:
        return self.decoder(h_BHWC, text, noise_BZ)

    def __call__(self, tok_BT: jax.Array, noise_BZ: jax.Array) -> jax.Array:
        text = self.encode(tok_BT)
        return self.decode(self.generate(text, noise_BZ), text, noise_BZ)


class Critic(nn.Module):
    """The judging side: discriminator and its own text encoder."""

    text: TextConfig
    model: ModelConfig
    dtype: Dtype

    def setup(self) -> None:
        self.encoder = Encoder(self.text, self.dtype)
        self.discriminator = DcganDiscriminator(dtype=self.dtype) if self.model.recipe == "dcgan" else Discriminator(self.model, self.dtype)

    def encode(self, tok_BT: jax.Array) -> Text:
        return self.encoder(tok_BT)

    def see(self, image_BHWC: jax.Array) -> Seen:
        if not jnp.issubdtype(image_BHWC.dtype, jnp.floating):  # `Model.sample` returns uint8
            raise TypeError(f"pictures must be floats in [-1, 1], not {image_BHWC.dtype}: dallegan.models.layers.to_float makes them of uint8")
        return self.discriminator.see(image_BHWC)

    def score(self, seen: Seen, text: Text) -> jax.Array:
        return self.discriminator.score(seen, text)

    def match(self, whole_BF: jax.Array, sentence_KD: jax.Array) -> jax.Array:
        return self.discriminator.match(whole_BF, sentence_KD)

    def __call__(self, image_BHWC: jax.Array, tok_BT: jax.Array) -> jax.Array:
        return self.score(self.see(image_BHWC), self.encode(tok_BT))


@dataclasses.dataclass(frozen=True)
class Gan:
    """The system. `params` is {"generator": ..., "discriminator": ...}; nothing here holds state, everything jits, vmaps and differentiates."""

    text: TextConfig
    model: ModelConfig
    size: int
    dtype: Dtype = jnp.float32

    @functools.cached_property
    def synthesis(self) -> Synthesis:
        """The linen module behind encode, generate and decode."""
        return Synthesis(self.text, self.model, self.size, self.dtype)

    @functools.cached_property
    def critic(self) -> Critic:
        """The linen module behind discriminate."""
        return Critic(self.text, self.model, self.dtype)

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters."""
        tokens, noise = jnp.ones((1, self.text.ids), jnp.int32), jnp.zeros((1, self.model.noise))
        kg, kd = jax.random.split(key)
        return {
            "generator": self.synthesis.init(kg, tokens, noise)["params"],
            "discriminator": self.critic.init(kd, jnp.zeros((1, self.size, self.size, 3)), tokens)["params"],
        }

    def encode(self, params: Params, tokens: Tokens) -> Text:
        """i32[B, T] -> Text: sentence f32[B, D], tokens f32[B, T, D], mask bool[B, T]."""
        return self._generating(params, tokens, method="encode")

    def generate(self, params: Params, text: Text, noise: Noise) -> Float[jax.Array, "B h w C"]:
        """Text, f32[B, Z] -> feature map f32[B, h, w, C]."""
        return self._generating(params, text, noise, method="generate")

    def decode(self, params: Params, h: FeatureMap, text: Text, noise: Noise) -> Float[jax.Array, "B H W 3"]:
        """f32[B, h, w, C], Text, f32[B, Z] -> f32[B, H, W, 3] in [-1, 1]."""
        return self._generating(params, h, text, noise, method="decode")

    def draw(self, params: Params, tokens: Tokens, noise: Noise) -> Float[jax.Array, "B H W 3"]:
        """encode, generate, decode: i32[B, T], f32[B, Z] -> f32[B, H, W, 3] in [-1, 1]."""
        return self._generating(params, tokens, noise, method="__call__")

    def discriminate(self, params: Params, image: Images, tokens: Tokens) -> Float[jax.Array, " B"]:
        """f32[B, H, W, 3] in [-1, 1], i32[B, T] -> score f32[B]; higher is more real and better matched."""
        return self._judging(params, image, tokens, method="__call__")

    def see(self, params: Params, image: Images) -> Seen:
        """The discriminator's features of pictures f32[B, H, W, 3] in [-1, 1]."""
        return self._judging(params, image, method="see")

    def read(self, params: Params, tokens: Tokens) -> Text:
        """The discriminator's own encoding of captions i32[B, T]."""
        return self._judging(params, tokens, method="encode")

    def score(self, params: Params, seen: Seen, text: Text) -> Float[jax.Array, " B"]:
        """f32[B]: `discriminate` of what `see` and `read` returned."""
        return self._judging(params, seen, text, method="score")

    def match(self, params: Params, whole: Float[Given, "B F"], sentence: Float[Given, "K D"]) -> Float[jax.Array, "B K"]:
        """f32[B, K]: how well each picture (`see(...).whole` [B, F]) fits each sentence (`read(...).sentence` f32[K, D]), realism and
        single words left aside. The dcgan recipe has none."""
        return self._judging(params, whole, sentence, method="match")

    def _generating(self, params: Params, *args: Any, method: str) -> Any:
        return self.synthesis.apply({"params": params["generator"]}, *jax.tree.map(jnp.asarray, args), method=method)

    def _judging(self, params: Params, *args: Any, method: str) -> Any:
        return self.critic.apply({"params": params["discriminator"]}, *jax.tree.map(jnp.asarray, args), method=method)
