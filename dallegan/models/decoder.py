"""Box 3, the Decoder: feature map to image, by the generator's own upsampling block at each doubling."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dallegan.config import ModelConfig
from dallegan.models.generator import FeatureMap, Modulate, UpBlock
from dallegan.models.layers import (
    Conv3,
    Dtype,
    Residual,
    depth_to_space,
    he,
    hidden,
    lrelu,
    shrink,
    space_to_depth,
)


class Decoder(nn.Module):
    """Runs the generator's block `up` at each further doubling; if untied, a block of its own per scale."""

    config: ModelConfig
    size: int  # side of the image, pixels
    up: UpBlock | None
    depth: int  # residual blocks passed from 4×4 to the image
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, h: FeatureMap) -> jax.Array:
        """Returns f32[B, size, size, 3] in [-1, 1]."""
        c, x = self.config, h.map.astype(self.dtype)
        assert h.style is not None  # the residual recipe's generator gives one
        while (side := x.shape[1]) < self.size // c.patch:
            up = self.up or UpBlock(c, self.depth, self.dtype, name=f"up{side}")
            x = up(x, Modulate(c, self.dtype, name=f"modulate{side}")(h.style), h.text)
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
    """Correction of the painted patches, by one residual block that sees the patches and their features.

    A pixel of a patch is a linear map of features, which left noise at patch borders (benchmarks/LOG.md).
    Capacity at the highest resolution helps (R3GAN, arXiv 2501.05441, appendix E); the block works at the
    patches' resolution, so that its convolutions stay wide. The correction starts at zero, so that a trained
    model continues where it stood.
    """

    features: int
    channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, pixels_BHWC: jax.Array) -> jax.Array:
        """Maps features [B, H, W, C] and patches [B, H, W, p·p·3] to what is added to the patches."""
        h = jnp.concatenate([lrelu(x_BHWC), pixels_BHWC], -1)
        h = hidden(nn.Conv(self.features, (1, 1), kernel_init=he(), dtype=self.dtype, name="down"))(h)
        h = Residual(self.features, 1, self.dtype, name="residual")(h)
        return Conv3(self.channels, nn.initializers.zeros, self.dtype, name="head")(lrelu(h))


class Detail(nn.Module):
    """Detail stage: one residual block at twice the resolution of its input corrects the image.

    Each further entry of `features` adds a stage at twice the resolution again. Stages are narrow, since each
    has four times the positions of the one before. The discriminator has the mirror image. A stage starts at
    zero, so that a trained model continues where it stood.
    """

    features: tuple[int, ...]  # channels of each stage, at least one
    patch: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, image_BHWC: jax.Array) -> jax.Array:
        """Maps features [B, h, w, C] and an image [B, H, W, 3], h = H / (2 patch), to the corrected image."""
        features, *finer = self.features
        subpixel = hidden(nn.Conv(4 * features, (1, 1), kernel_init=he(), dtype=self.dtype, name="subpixel"))
        h = depth_to_space(subpixel(lrelu(x_BHWC)), 2)
        h += Conv3(features, dtype=self.dtype, bias=False, name="stem")(
            space_to_depth(image_BHWC, self.patch)
        )
        h = Residual(features, 1, self.dtype, name="residual")(h)
        correction = Conv3(3 * self.patch**2, nn.initializers.zeros, self.dtype, name="head")(lrelu(h))
        image = image_BHWC + depth_to_space(correction, self.patch)
        return Detail(tuple(finer), self.patch // 2, self.dtype, name="detail")(h, image) if finer else image


class DcganDecoder(nn.Module):
    """Baseline: further transposed convolutions, untied, halving the channels at each doubling."""

    size: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, h: FeatureMap) -> jax.Array:
        """Maps a map f32[B, 8, 8, C] to f32[B, size, size, 3] in [-1, 1]."""
        normal, x = nn.initializers.normal(0.02), h.map.astype(self.dtype)
        double = lambda c, name: nn.ConvTranspose(
            c, (4, 4), (2, 2), kernel_init=normal, dtype=self.dtype, name=name
        )
        i = 0
        while 2 * x.shape[1] < self.size:
            x = double(x.shape[-1] // 2, f"conv{i}")(x)
            x = jax.nn.relu(nn.GroupNorm(1, dtype=self.dtype, name=f"norm{i}")(x))
            i += 1
        return jnp.tanh(double(3, "head")(x).astype(jnp.float32))
