"""Box 1, the Encoder: caption tokens to a sentence vector and token vectors."""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from dallegan.config import TextConfig
from dallegan.models.layers import Dtype, attend
from dallegan.shapes import Bool, Float


class TextFeatures(flax.struct.PyTreeNode):
    """An encoded caption."""

    sentence: Float[jax.Array, "B D"]
    tokens: Float[jax.Array, "B T D"]
    mask: Bool[jax.Array, "B T"] | Float[jax.Array, "B T"]  # true at real tokens, or a weight per token

    def between(self, other: "TextFeatures", t_B: jax.Array) -> "TextFeatures":
        """Interpolates one caption (B = 1) to `other` (B = 1) at f32[B] in [0, 1]; T becomes the sum of both.

        The sentence vector moves along a line; the tokens of one caption fade out as the other's fade in.
        """
        t = t_B[:, None]
        repeat = lambda x: jnp.broadcast_to(x, (len(t_B), *x.shape[1:]))
        tokens = jnp.concatenate([repeat(self.tokens), repeat(other.tokens)], 1)
        mask = jnp.concatenate([(1 - t) * self.mask, t * other.mask], 1)
        return TextFeatures((1 - t) * self.sentence + t * other.sentence, tokens, mask)


class Encoder(nn.Module):
    """A text encoder.

    `transformer` (pre-norm, arXiv 2002.04745) or `rnn` (bidirectional GRU, arXiv 1406.1078) over token
    embeddings, or a head over the vectors of a `frozen` pretrained encoder.
    """

    config: TextConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tok_BT: jax.Array) -> TextFeatures:
        """Encodes i32[B, T], 0 for padding. For `frozen`: a hash and the bits of f32[B, T - 1], one token."""
        c = self.config
        if c.encoder == "frozen":
            x = self._head(jax.lax.bitcast_convert_type(tok_BT[:, 1:], jnp.float32))
            mask = jnp.ones((tok_BT.shape[0], 1), bool)
        else:
            mask = (tok_BT != 0) | (
                jnp.arange(tok_BT.shape[1]) == 0
            )  # an all-padding row attends to its first token
            # small, since Adam moves every entry by the same amount: a word's vector turns in a few hundred
            # steps
            init = nn.initializers.normal(0.05)
            x = nn.Embed(c.vocab, c.width, embedding_init=init, dtype=self.dtype, name="embed")(tok_BT)
            x = self._transformer(x, mask) if c.encoder == "transformer" else self._rnn(x, mask)
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        mean = jnp.sum(x * mask[..., None], 1) / jnp.sum(mask, 1, keepdims=True)
        sentence = nn.Dense(c.width, dtype=self.dtype, name="sentence")(mean.astype(self.dtype))
        return TextFeatures(sentence.astype(jnp.float32), x.astype(jnp.float32), mask)

    def _head(self, vector_BF: jax.Array) -> jax.Array:
        """Two-layer head: unit vectors f32[B, F] -> [B, 1, D]."""
        c = self.config
        x = (math.sqrt(vector_BF.shape[1]) * vector_BF).astype(self.dtype)
        h = nn.Dense(4 * c.width, dtype=self.dtype, name="head_up")(x)
        return nn.Dense(c.width, dtype=self.dtype, name="head_down")(jax.nn.gelu(h))[:, None]

    def _transformer(self, x_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
        c = self.config
        position = self.param("position", nn.initializers.normal(0.05), (c.length, c.width))
        x = x_BTD + position.astype(self.dtype)[: x_BTD.shape[1]]
        for i in range(c.layers):
            h = nn.LayerNorm(dtype=self.dtype, name=f"norm{i}a")(x)
            q, k, v = jnp.split(nn.Dense(3 * c.width, dtype=self.dtype, name=f"qkv{i}")(h), 3, -1)
            x = x + nn.Dense(c.width, dtype=self.dtype, name=f"out{i}")(attend(q, k, v, mask_BT, c.heads))
            h = nn.LayerNorm(dtype=self.dtype, name=f"norm{i}b")(x)
            h = jax.nn.gelu(nn.Dense(4 * c.width, dtype=self.dtype, name=f"up{i}")(h))
            x = x + nn.Dense(c.width, dtype=self.dtype, name=f"down{i}")(h)
        return x

    def _rnn(self, x_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
        c = self.config
        lengths = jnp.sum(mask_BT, 1)
        for i in range(c.layers):
            cell = lambda way, i=i: nn.RNN(nn.GRUCell(c.width // 2, dtype=self.dtype, name=f"{way}{i}"))
            both = nn.Bidirectional(cell("forward"), cell("backward"), name=f"bidirectional{i}")
            h = nn.LayerNorm(dtype=self.dtype, name=f"norm{i}")(x_BTD) if c.prenorm else x_BTD
            # residual, so that the words themselves reach the sentence vector from the first step on
            x_BTD = x_BTD + jnp.asarray(both(h, seq_lengths=lengths))
        return x_BTD
