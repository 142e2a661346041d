"""Box 2, the Generator: an encoded caption and noise to a feature map, layer by layer from 4×4."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from dallegan.config import ModelConfig
from dallegan.models.encoder import TextFeatures
from dallegan.models.layers import (
    CrossAttention,
    Dtype,
    Residual,
    depth_to_space,
    he,
    hidden,
    lrelu,
    upsample,
)
from dallegan.shapes import Float


class FeatureMap(flax.struct.PyTreeNode):
    """What the generator hands to the decoder: the map, and the style and caption that it was made from."""

    map: Float[jax.Array, "B h w C"]
    style: Float[jax.Array, "B S"] | None  # None in the dcgan recipe, whose decoder reads the map alone
    text: TextFeatures


class Mapping(nn.Module):
    """Mapping network (arXiv 1812.04948): sentence and noise to the style w that modulates every block."""

    config: ModelConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, text: TextFeatures, noise_BZ: jax.Array) -> jax.Array:
        """Returns f32[B, S], S = `style`."""
        sentence = nn.LayerNorm(dtype=self.dtype, name="norm")(text.sentence)
        w = jnp.concatenate([sentence, noise_BZ.astype(self.dtype)], -1)
        for i in range(2):
            w = lrelu(nn.Dense(self.config.style, kernel_init=he(), dtype=self.dtype, name=f"dense{i}")(w))
        return w


class UpBlock(nn.Module):
    """The block that generator and decoder share: residual blocks, attention to the caption, a doubling.

    The doubling is repetition plus a pixel shuffle that starts at zero: a matrix product on the small map
    makes the detail, at a ninth of the cost of a convolution on the large one. No parameter depends on the
    resolution; scales and shifts come from outside, one set per resolution.
    """

    config: ModelConfig
    depth: int  # residual blocks passed from 4×4 to the image
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, modulation: jax.Array, text: TextFeatures) -> jax.Array:
        """Maps [B, H, W, C] and f32[B, blocks, 4, C] to [B, 2H, 2W, C]."""
        c = self.config
        for i in range(c.blocks):
            x_BHWC = Residual(c.width, self.depth, self.dtype, name=f"residual{i}")(x_BHWC, modulation[:, i])
        if c.attention:
            attention = CrossAttention(dtype=self.dtype, name="attention")
            # the shared block makes its parameters at the first scale, whether or not that scale attends
            if x_BHWC.shape[1] in c.attention or (c.tied and self.is_initializing()):
                x_BHWC = attention(x_BHWC, text.tokens, text.mask)
        # a convolution, since XLA transposes the gradient of a Dense first (5 % of a step)
        zeros = nn.initializers.zeros
        subpixel = nn.Conv(
            4 * c.width, (1, 1), kernel_init=zeros, use_bias=False, dtype=self.dtype, name="subpixel"
        )
        return upsample(x_BHWC) + depth_to_space(hidden(subpixel)(lrelu(x_BHWC)), 2)


class Modulate(nn.Module):
    """Affine map from the style to the scales and shifts of one UpBlock at one resolution."""

    config: ModelConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, w_BS: jax.Array) -> jax.Array:
        """Returns [B, blocks, 4, C]."""
        c = self.config
        init = nn.initializers.variance_scaling(0.25, "fan_in", "normal")
        m = nn.Dense(c.blocks * 4 * c.width, kernel_init=init, dtype=self.dtype, name="dense")(w_BS)
        return m.reshape(-1, c.blocks, 4, c.width)


class Generator(nn.Module):
    """Style to 4×4, then the block `up` at each scale until the map is `side` × `side`."""

    config: ModelConfig
    side: int
    mapping: Mapping
    up: UpBlock
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, text: TextFeatures, noise_BZ: jax.Array) -> FeatureMap:
        """Maps a caption and f32[B, Z] to a map f32[B, side, side, C]."""
        c, w_BS = self.config, self.mapping(text, noise_BZ)
        x = nn.Dense(16 * c.width, dtype=self.dtype, name="start")(w_BS).reshape(-1, 4, 4, c.width)
        while (side := x.shape[1]) < self.side:
            x = self.up(x, Modulate(c, self.dtype, name=f"modulate{side}")(w_BS), text)
        return FeatureMap(x.astype(jnp.float32), w_BS, text)


class DcganGenerator(nn.Module):
    """Baseline: sentence and noise to 4×4, a transposed convolution to 8×8 (arXiv 1511.06434, 1605.05396)."""

    channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, text: TextFeatures, noise_BZ: jax.Array) -> FeatureMap:
        """Maps a caption and f32[B, Z] to a map f32[B, 8, 8, channels // 2]."""
        normal = nn.initializers.normal(0.02)
        sentence = lrelu(nn.Dense(128, kernel_init=normal, dtype=self.dtype, name="sentence")(text.sentence))
        z = jnp.concatenate([sentence, noise_BZ.astype(self.dtype)], -1)
        x = nn.Dense(16 * self.channels, kernel_init=normal, dtype=self.dtype, name="start")(z)
        x = x.reshape(-1, 4, 4, self.channels)
        x = jax.nn.relu(nn.GroupNorm(1, dtype=self.dtype, name="norm0")(x))
        x = nn.ConvTranspose(
            self.channels // 2, (4, 4), (2, 2), kernel_init=normal, dtype=self.dtype, name="conv0"
        )(x)
        x = jax.nn.relu(nn.GroupNorm(1, dtype=self.dtype, name="norm1")(x))
        return FeatureMap(x.astype(jnp.float32), None, text)
