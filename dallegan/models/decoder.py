"""Box 3, the Decoder: feature map to picture, by running the generator's own upsampling block again at each doubling."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dallegan.config import ModelConfig
from dallegan.models.encoder import Text
from dallegan.models.generator import Mapping, Modulate, UpBlock
from dallegan.models.layers import Conv3, Dtype, Residual, depth_to_space, he, lrelu, shrink, space_to_depth


class Decoder(nn.Module):
    """`up` is the generator's block (tied), or None for a block of its own at each scale; `mapping` is the generator's."""

    config: ModelConfig
    size: int
    mapping: Mapping
    up: UpBlock | None
    depth: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, h_BHWC: jax.Array, text: Text, noise_BZ: jax.Array) -> jax.Array:
        """f32[B, base, base, C] -> f32[B, size, size, 3] in [-1, 1]."""
        c, x, w_BS = self.config, h_BHWC.astype(self.dtype), self.mapping(text, noise_BZ)
        while (side := x.shape[1]) < self.size // c.patch:
            up = self.up or UpBlock(c, self.depth, self.dtype, name=f"up{side}")
            x = up(x, Modulate(c, self.dtype, name=f"modulate{side}")(w_BS), text)
        # a 3×3 head sees its neighbours, so that pixel patches meet without a seam
        init = nn.initializers.variance_scaling(0.5, "fan_in", "normal")
        pixels = Conv3(3 * c.patch**2, init, self.dtype, name="head")(lrelu(x))
        if c.refine:
            pixels += Refine(c.refine, 3 * c.patch**2, self.dtype, name="refine")(x, pixels)
        image = depth_to_space(pixels, c.patch)
        if c.detail:
            image = Detail(c.detail, c.patch // 2, self.dtype, name="detail")(x, image)
        return shrink(jnp.tanh(image.astype(jnp.float32)), c.shrink)


class Refine(nn.Module):
    """What to add to the pixels that the head painted: their patches, and the features they were made of, through one residual block more.

    A pixel of a patch is a linear map of features, which left noise at the patches' borders (benchmarks/LOG.md); capacity at the highest
    resolution is what helps (R3GAN, arXiv 2501.05441, appendix E). At the patches' own resolution, so that convolutions stay wide.
    Starts at zero, so that a trained model goes on where it stood.
    """

    features: int
    channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, pixels_BHWC: jax.Array) -> jax.Array:
        """[B, H, W, C], [B, H, W, p·p·3] -> [B, H, W, p·p·3]."""
        h = jnp.concatenate([lrelu(x_BHWC), pixels_BHWC], -1)
        h = nn.Conv(self.features, (1, 1), kernel_init=he(), dtype=self.dtype, name="down")(h)
        h = Residual(self.features, 1, self.dtype, name="residual")(h)
        return Conv3(self.channels, nn.initializers.zeros, self.dtype, name="head")(lrelu(h))


class Detail(nn.Module):
    """Adds to the painted picture, from one residual block at twice the resolution of the features that it was painted from; then, where there are more
    `features`, likewise from this block's.

    Narrow, since it has four times the positions; the discriminator has its mirror image. Starts at zero, likewise.
    """

    features: tuple[int, ...]  # at least one
    patch: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, image_BHWC: jax.Array) -> jax.Array:
        """[B, h, w, C], [B, H, W, 3] -> [B, H, W, 3]; h is H / (2 patch)."""
        features, *finer = self.features
        h = depth_to_space(nn.Conv(4 * features, (1, 1), kernel_init=he(), dtype=self.dtype, name="subpixel")(lrelu(x_BHWC)), 2)
        h += Conv3(features, dtype=self.dtype, bias=False, name="stem")(space_to_depth(image_BHWC, self.patch))
        h = Residual(features, 1, self.dtype, name="residual")(h)
        image = image_BHWC + depth_to_space(Conv3(3 * self.patch**2, nn.initializers.zeros, self.dtype, name="head")(lrelu(h)), self.patch)
        return Detail(tuple(finer), self.patch // 2, self.dtype, name="detail")(h, image) if finer else image


class DcganDecoder(nn.Module):
    """The baseline's further transposed convolutions, of its own weights, halving the channels at each doubling."""

    size: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, h_BHWC: jax.Array, text: Text, noise_BZ: jax.Array) -> jax.Array:
        """f32[B, 8, 8, C] -> f32[B, size, size, 3] in [-1, 1]."""
        normal, x = nn.initializers.normal(0.02), h_BHWC.astype(self.dtype)
        i = 0
        while 2 * x.shape[1] < self.size:
            x = nn.ConvTranspose(x.shape[-1] // 2, (4, 4), (2, 2), kernel_init=normal, dtype=self.dtype, name=f"conv{i}")(x)
            x = jax.nn.relu(nn.GroupNorm(1, dtype=self.dtype, name=f"norm{i}")(x))
            i += 1
        x = nn.ConvTranspose(3, (4, 4), (2, 2), kernel_init=normal, dtype=self.dtype, name="head")(x)
        return jnp.tanh(x.astype(jnp.float32))
