"""Box 2, the Generator: an encoded caption and noise to an intermediate feature map, layer by layer from 4×4."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dallegan.config import ModelConfig
from dallegan.models.encoder import Text
from dallegan.models.layers import CrossAttention, Dtype, Residual, depth_to_space, he, lrelu, upsample


class Mapping(nn.Module):
    """Sentence and noise to the style vector w that modulates every block (the mapping network of arXiv 1812.04948)."""

    config: ModelConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, text: Text, noise_BZ: jax.Array) -> jax.Array:
        """-> f32[B, style]."""
        sentence = nn.LayerNorm(dtype=self.dtype, name="norm")(text.sentence)
        w = jnp.concatenate([sentence, noise_BZ.astype(self.dtype)], -1)
        for i in range(2):
            w = lrelu(nn.Dense(self.config.style, kernel_init=he(), dtype=self.dtype, name=f"dense{i}")(w))
        return w


class UpBlock(nn.Module):
    """The block that generator and decoder share: residual blocks, attention to the caption, then a doubling.

    The doubling is repetition plus a pixel shuffle that starts at zero: detail is made by a plain matrix product on the small
    map, which costs a ninth of what a convolution on the large one would. The block holds no parameter that depends on the
    resolution; scale and shift come from outside, per scale.
    """

    config: ModelConfig
    depth: int  # residual blocks passed from 4×4 to the picture
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, modulation: jax.Array, text: Text) -> jax.Array:
        """[B, H, W, C], f32[B, blocks, 4, C] -> [B, 2H, 2W, C]."""
        c = self.config
        for i in range(c.blocks):
            x_BHWC = Residual(c.width, self.depth, self.dtype, name=f"residual{i}")(x_BHWC, modulation[:, i])
        if c.attention:
            attention = CrossAttention(dtype=self.dtype, name="attention")
            # a shared block's parameters are made at the first scale, whether or not that one attends
            if x_BHWC.shape[1] in c.attention or (c.tied and self.is_initializing()):
                x_BHWC = attention(x_BHWC, text.tokens, text.mask)
        # a convolution, since XLA copies the gradient of a Dense into another order before its weight gradient (5 % of a step)
        detail = nn.Conv(4 * c.width, (1, 1), kernel_init=nn.initializers.zeros, use_bias=False, dtype=self.dtype, name="subpixel")(lrelu(x_BHWC))
        return upsample(x_BHWC) + depth_to_space(detail, 2)


class Modulate(nn.Module):
    """Style to the scales and shifts of one UpBlock at one scale."""

    config: ModelConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, w_BS: jax.Array) -> jax.Array:
        """-> [B, blocks, 4, C]."""
        c = self.config
        init = nn.initializers.variance_scaling(0.25, "fan_in", "normal")
        return nn.Dense(c.blocks * 4 * c.width, kernel_init=init, dtype=self.dtype, name="dense")(w_BS).reshape(-1, c.blocks, 4, c.width)


class Generator(nn.Module):
    """Style to 4×4, then `up` at each scale until `base` × `base`."""

    config: ModelConfig
    mapping: Mapping
    up: UpBlock
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, text: Text, noise_BZ: jax.Array) -> jax.Array:
        """-> f32[B, base, base, C]."""
        c, w_BS = self.config, self.mapping(text, noise_BZ)
        x = nn.Dense(16 * c.width, dtype=self.dtype, name="start")(w_BS).reshape(-1, 4, 4, c.width)
        while (side := x.shape[1]) < c.base:
            x = self.up(x, Modulate(c, self.dtype, name=f"modulate{side}")(w_BS), text)
        return x.astype(jnp.float32)


class DcganGenerator(nn.Module):
    """The baseline: sentence and noise to 4×4, one transposed convolution to 8×8 (arXiv 1511.06434, conditioned as in arXiv 1605.05396)."""

    channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, text: Text, noise_BZ: jax.Array) -> jax.Array:
        """-> f32[B, 8, 8, channels // 2]."""
        normal = nn.initializers.normal(0.02)
        sentence = lrelu(nn.Dense(128, kernel_init=normal, dtype=self.dtype, name="sentence")(text.sentence))
        z = jnp.concatenate([sentence, noise_BZ.astype(self.dtype)], -1)
        x = nn.Dense(16 * self.channels, kernel_init=normal, dtype=self.dtype, name="start")(z).reshape(-1, 4, 4, self.channels)
        x = jax.nn.relu(nn.GroupNorm(1, dtype=self.dtype, name="norm0")(x))
        x = nn.ConvTranspose(self.channels // 2, (4, 4), (2, 2), kernel_init=normal, dtype=self.dtype, name="conv0")(x)
        return jax.nn.relu(nn.GroupNorm(1, dtype=self.dtype, name="norm1")(x)).astype(jnp.float32)
