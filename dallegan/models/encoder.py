"""Box 1, the Encoder: caption tokens to one sentence vector and per-token features, trained by the discriminator's feedback."""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from dallegan.config import TextConfig
from dallegan.models.layers import Dtype, attend
from dallegan.shapes import Bool, Float


class Text(flax.struct.PyTreeNode):
    """An encoded caption."""

    sentence: Float[jax.Array, "B D"]
    tokens: Float[jax.Array, "B T D"]
    mask: Bool[jax.Array, "B T"] | Float[jax.Array, "B T"]  # true at real tokens, or their weights

    def between(self, other: "Text", t_B: jax.Array) -> "Text":
        """The way from this caption to another, t from 0 to 1: the sentence vector moves in a line, and the words of one fade out as those of the
        other fade in. T is the sum of both."""
        t = t_B[:, None]
        each = lambda x: jnp.broadcast_to(x, (len(t_B), *x.shape[1:]))
        words = jnp.concatenate([each(self.tokens), each(other.tokens)], 1)
        return Text((1 - t) * self.sentence + t * other.sentence, words, jnp.concatenate([(1 - t) * self.mask, t * other.mask], 1))


class Encoder(nn.Module):
    """`transformer` (pre-norm, arXiv 2002.04745) or `rnn` (bidirectional GRU, arXiv 1406.1078) over token embeddings, or a head over `frozen` vectors."""

    config: TextConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tok_BT: jax.Array) -> Text:
        """tok_BT i32[B, T], 0 is padding; of `frozen` a mark and the bits of f32[B, T - 1], which becomes one token."""
        c = self.config
        if c.encoder == "frozen":
            x, mask = self._head(jax.lax.bitcast_convert_type(tok_BT[:, 1:], jnp.float32)), jnp.ones((tok_BT.shape[0], 1), bool)
        else:
            mask = (tok_BT != 0) | (jnp.arange(tok_BT.shape[1]) == 0)  # an all-padding row still has one token to attend to
            # small, since Adam moves every entry by the same amount: a word's vector turns in a few hundred steps
            x = nn.Embed(c.vocab, c.width, embedding_init=nn.initializers.normal(0.05), dtype=self.dtype, name="embed")(tok_BT)
            x = self._transformer(x, mask) if c.encoder == "transformer" else self._rnn(x, mask)
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        mean = jnp.sum(x * mask[..., None], 1) / jnp.sum(mask, 1, keepdims=True)
        sentence = nn.Dense(c.width, dtype=self.dtype, name="sentence")(mean.astype(self.dtype))
        return Text(sentence.astype(jnp.float32), x.astype(jnp.float32), mask)

    def _head(self, vector_BF: jax.Array) -> jax.Array:
        """Unit vectors f32[B, F] -> [B, 1, D]."""
        c = self.config
        h = nn.Dense(4 * c.width, dtype=self.dtype, name="head_up")((math.sqrt(vector_BF.shape[1]) * vector_BF).astype(self.dtype))
        return nn.Dense(c.width, dtype=self.dtype, name="head_down")(jax.nn.gelu(h))[:, None]

    def _transformer(self, x_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
        c = self.config
        x = x_BTD + self.param("position", nn.initializers.normal(0.05), (c.length, c.width)).astype(self.dtype)[: x_BTD.shape[1]]
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
            forward, backward = (nn.RNN(nn.GRUCell(c.width // 2, dtype=self.dtype, name=f"{way}{i}")) for way in ("forward", "backward"))
            h = nn.LayerNorm(dtype=self.dtype, name=f"norm{i}")(x_BTD) if c.prenorm else x_BTD
            # residual, so that the words themselves reach the sentence vector from the first step on
            x_BTD = x_BTD + jnp.asarray(nn.Bidirectional(forward, backward, name=f"bidirectional{i}")(h, seq_lengths=lengths))
        return x_BTD
