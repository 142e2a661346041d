"""Layers that the four parts are built from. Shapes: B batch, H W height and width, C channels, T tokens, D features."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, variance_scaling, zeros

Dtype = Any


def to_float(image: jax.Array) -> jax.Array:
    """uint8 -> f32 in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1


def lrelu(x: jax.Array) -> jax.Array:
    """Leaky ReLU of slope 0.2, the critic nonlinearity of DCGAN (arXiv 1511.06434) and StyleGAN."""
    return jax.nn.leaky_relu(x, 0.2)


def he(gain: float = 1.0) -> Initializer:
    """He et al. 2015 initialization for leaky ReLU (variance 2 / (1 + 0.2²) / fan_in), times gain²."""
    return variance_scaling(2.0 / 1.04 * gain**2, "fan_in", "normal")


def upsample(x_BHWC: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, 2H, 2W, C] by repetition; a broadcast, not a gather."""
    b, h, w, c = x_BHWC.shape
    return jnp.broadcast_to(x_BHWC[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def depth_to_space(x_BHWC: jax.Array, p: int) -> jax.Array:
    """[B, H, W, p·p·C] -> [B, p·H, p·W, C]: the pixel shuffle of Shi et al. 2016 (arXiv 1609.05158)."""
    b, h, w, c = x_BHWC.shape
    x = x_BHWC.reshape(b, h, w, p, p, c // (p * p))
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * p, w * p, c // (p * p))


def space_to_depth(x_BHWC: jax.Array, p: int) -> jax.Array:
    """[B, p·H, p·W, C] -> [B, H, W, p·p·C]: the inverse of `depth_to_space`."""
    b, h, w, c = x_BHWC.shape
    x = x_BHWC.reshape(b, h // p, p, w // p, p, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // p, w // p, p * p * c)


def shrink(image_BHWC: jax.Array, levels: tuple[float, ...]) -> jax.Array:
    """f32[B, H, W, C] in [-1, 1] -> the same: wavelet shrinkage (Donoho and Johnstone 1994), Haar coefficients below a threshold become zero, so that what is
    nearly flat is flat and edges stay.

    `levels` are thresholds t in grey levels of 255, one a scale, finest first; none leaves pictures as they are. A coefficient is half the difference of two
    pixels, or of two means: a step of 2t is the least that is seen. The transform is the undecimated one
    (Coifman and Donoho 1995), so that no scale leaves a grid; coefficients c become c - t²/c, the non-negative garrote (Gao 1998), which takes next to
    nothing from large ones.
    """
    if not levels:
        return image_BHWC
    b, h, w, c = image_BHWC.shape
    reach = 2 ** len(levels) - 1  # of all scales, to either side
    padded = image_BHWC
    for axis in (1, 2):  # by its own edge; not `jnp.pad`, whose empty slices jax2onnx takes for full ones
        first, last = (jax.lax.slice_in_dim(padded, i, i + 1, axis=axis) for i in (0, padded.shape[axis] - 1))
        padded = jnp.concatenate([*[first] * reach, padded, *[last] * reach], axis)
    rows = padded.reshape(b, h + 2 * reach, -1)  # columns and colours as one axis: as loops over three colours XLA is twice as slow
    return jnp.clip(_shrink(rows, levels, (1, c)).reshape(b, h, w, c), -1, 1)


def _shrink(x_BHW: jax.Array, levels: tuple[float, ...], steps: tuple[int, int]) -> jax.Array:
    """All scales from that of `steps`, the distance of a pair in rows and in columns, on; smaller by their reach all around."""
    threshold, *coarser = levels

    def part(x: jax.Array, axis: int, before: int, behind: int) -> jax.Array:
        return jax.lax.slice_in_dim(x, before, x.shape[axis] - behind, axis=axis)

    def split(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
        n = steps[axis - 1]
        first, second = part(x, axis, 0, n), part(x, axis, n, 0)
        return (second + first) / 2, (second - first) / 2

    def merge(low: jax.Array, high: jax.Array, axis: int) -> jax.Array:  # a pixel is the mean of what its two pairs make of it
        n = steps[axis - 1]
        return (part(low + high, axis, 0, n) + part(low - high, axis, n, 0)) / 2

    def garrote(c: jax.Array) -> jax.Array:  # of the part that the coarser scales leave
        starts = [(n - m) // 2 for n, m in zip(c.shape, smooth.shape, strict=True)]
        c = jax.lax.slice(c, starts, [start + m for start, m in zip(starts, smooth.shape, strict=True)])
        return c * jax.nn.relu(1 - (threshold / 127.5) ** 2 / jnp.maximum(c * c, 1e-12))

    low, high = split(x_BHW, 1)
    (smooth, across), (down, diagonal) = split(low, 2), split(high, 2)
    if coarser:
        smooth = _shrink(smooth, tuple(coarser), (2 * steps[0], 2 * steps[1]))
    return merge(merge(smooth, garrote(across), 2), merge(garrote(down), garrote(diagonal), 2), 1)


class Conv3(nn.Module):
    """3×3 convolution, same size, zero padding."""

    features: int
    kernel_init: Initializer = he()
    dtype: Dtype = jnp.float32
    bias: bool = True

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        return nn.Conv(self.features, (3, 3), kernel_init=self.kernel_init, use_bias=self.bias, dtype=self.dtype, name="conv")(x_BHWC)


class Residual(nn.Module):
    """x + f(x), f: (modulate, leaky ReLU, 3×3 convolution) twice; no normalization.

    Biases are left to the modulation and to the layers between blocks: their gradients are slow sums over every position.
    The second convolution starts at zero and the first is scaled by depth^(-1/2), `depth` the number of such blocks in
    the network, so that the variance stays put at any depth (Fixup, arXiv 1901.09321; R3GAN, arXiv 2501.05441, §3.3).
    """

    features: int
    depth: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, scale_shift_B4C: jax.Array | None = None) -> jax.Array:
        """`scale_shift_B4C` f32[B, 4, C]: scale and shift before each convolution (feature-wise affine, arXiv 1709.07871)."""
        h = x_BHWC
        for i, init in enumerate((he(self.depth**-0.5), zeros)):
            if scale_shift_B4C is not None:
                m = scale_shift_B4C.astype(self.dtype)[:, :, None, None]
                h = h * (1 + m[:, 2 * i]) + m[:, 2 * i + 1]
            h = Conv3(self.features, init, self.dtype, bias=False, name=f"conv{i}")(lrelu(h))
        return x_BHWC + h


class CrossAttention(nn.Module):
    """Every position of a feature map attends to the caption's tokens; added through a LayerScale that starts at 1e-5."""

    heads: int = 4
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, tok_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
        b, h, w, c = x_BHWC.shape
        q = nn.RMSNorm(dtype=self.dtype, name="norm")(x_BHWC.reshape(b, h * w, c))
        out = attend(
            nn.Dense(c, use_bias=False, dtype=self.dtype, name="query")(q),
            nn.Dense(c, use_bias=False, dtype=self.dtype, name="key")(tok_BTD),
            nn.Dense(c, use_bias=False, dtype=self.dtype, name="value")(tok_BTD),
            mask_BT, self.heads,
        )  # fmt: skip
        out = nn.Dense(c, use_bias=False, dtype=self.dtype, name="out")(out)
        scale = self.param("layer_scale", nn.initializers.constant(1e-5), (c,))
        return x_BHWC + (out * scale.astype(self.dtype)).reshape(b, h, w, c)


def attend(q_BQC: jax.Array, k_BTC: jax.Array, v_BTC: jax.Array, mask_BT: jax.Array, heads: int) -> jax.Array:
    """Multi-head scaled dot-product attention (arXiv 1706.03762, eq. 1) over the unmasked of T keys; softmax in float32.

    A mask of f32 in [0, 1] gives weights instead: a key's logit has the log of its weight added, so that a weight of 1 is a key that is there, 0 one that
    is masked, and between them its share falls in proportion.
    """
    b, n, c = q_BQC.shape
    d = c // heads
    q, k, v = (x.reshape(b, -1, heads, d) for x in (q_BQC, k_BTC, v_BTC))
    logits = jnp.einsum("bqhd,bthd->bhqt", q, k).astype(jnp.float32) / math.sqrt(d)
    if mask_BT.dtype != bool:
        logits, mask_BT = logits + jnp.log(jnp.maximum(mask_BT, 1e-30))[:, None, None], mask_BT > 0
    logits = jnp.where(mask_BT[:, None, None], logits, -1e9)
    return jnp.einsum("bhqt,bthd->bqhd", jax.nn.softmax(logits).astype(v.dtype), v).reshape(b, n, c)
