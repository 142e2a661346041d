"""Layers that the four boxes are built from. Shapes: B batch, H W height and width, C channels, T tokens."""

from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, variance_scaling, zeros

Dtype = Any
Layer = TypeVar("Layer", bound=nn.Module)


def hidden(layer: Layer) -> Layer:
    """Marks the kernel of `layer` as hidden, so that Muon may train it, and returns `layer`.

    Hidden kernels belong to the trunks: neither the first nor the last layer, no embedding, no encoder
    (Jordan et al. 2024). Call it inside a compact method. The marks form the collection "hidden", which
    `init` makes beside the parameters and `Gan.hidden` reads.
    """
    assert isinstance(layer.parent, nn.Module)
    assert layer.name is not None
    if layer.parent.is_initializing():
        layer.parent.put_variable("hidden", layer.name, jnp.zeros(()))
    return layer


def to_float(image: jax.Array) -> jax.Array:
    """Returns uint8 images as float32 in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1


def lrelu(x: jax.Array) -> jax.Array:
    """Leaky ReLU of slope 0.2, as in DCGAN's discriminator (arXiv 1511.06434) and StyleGAN."""
    return jax.nn.leaky_relu(x, 0.2)


def he(gain: float = 1.0) -> Initializer:
    """He et al. 2015 initialization for leaky ReLU: variance 2 / (1 + 0.2²) / fan-in, times gain²."""
    return variance_scaling(2.0 / 1.04 * gain**2, "fan_in", "normal")


def upsample(x_BHWC: jax.Array) -> jax.Array:
    """Repeats each pixel 2×2: [B, H, W, C] -> [B, 2H, 2W, C]."""
    b, h, w, c = x_BHWC.shape  # a broadcast, which XLA fuses; a gather it does not
    return jnp.broadcast_to(x_BHWC[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def depth_to_space(x_BHWC: jax.Array, p: int) -> jax.Array:
    """Pixel shuffle (arXiv 1609.05158): [B, H, W, p·p·C] -> [B, p·H, p·W, C]."""
    b, h, w, c = x_BHWC.shape
    x = x_BHWC.reshape(b, h, w, p, p, c // (p * p))
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * p, w * p, c // (p * p))


def space_to_depth(x_BHWC: jax.Array, p: int) -> jax.Array:
    """Inverse of `depth_to_space`: [B, p·H, p·W, C] -> [B, H, W, p·p·C]."""
    b, h, w, c = x_BHWC.shape
    x = x_BHWC.reshape(b, h // p, p, w // p, p, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // p, w // p, p * p * c)


def shrink(image_BHWC: jax.Array, levels: tuple[float, ...]) -> jax.Array:
    """Denoises f32[B, H, W, C] in [-1, 1] by wavelet shrinkage (Donoho and Johnstone 1994).

    Haar coefficients below a threshold become zero, so that nearly flat areas become flat and edges stay.
    `levels` holds one threshold t per scale, in grey levels of 255, finest scale first; an empty tuple
    changes nothing. A coefficient is half the difference of two pixels, or of two means, so a step of 2t is
    the smallest that survives. The transform is undecimated (Coifman and Donoho 1995): no scale leaves a
    grid. A coefficient c becomes c - t²/c, the non-negative garrote (Gao 1998), which hardly changes large
    coefficients.
    """
    if not levels:
        return image_BHWC
    b, h, w, c = image_BHWC.shape
    reach = 2 ** len(levels) - 1  # pixels to either side, over all scales
    padded = jnp.pad(image_BHWC, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    # columns and colours form one axis: loops over three colours take XLA twice as long
    rows = padded.reshape(b, h + 2 * reach, -1)
    return jnp.clip(_shrink(rows, levels, (1, c)).reshape(b, h, w, c), -1, 1)


def _shrink(x_BHW: jax.Array, levels: tuple[float, ...], steps: tuple[int, int]) -> jax.Array:
    """Applies all scales from the one at `steps` on; the result is smaller by their reach on each side.

    steps: distance of the two pixels of a pair, in rows and in columns.
    """
    threshold, *coarser = levels

    def part(x: jax.Array, axis: int, before: int, behind: int) -> jax.Array:
        return jax.lax.slice_in_dim(x, before, x.shape[axis] - behind, axis=axis)

    def split(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
        n = steps[axis - 1]
        first, second = part(x, axis, 0, n), part(x, axis, n, 0)
        return (second + first) / 2, (second - first) / 2

    def merge(low: jax.Array, high: jax.Array, axis: int) -> jax.Array:
        # each pixel belongs to two pairs, and is the mean of its two reconstructions
        n = steps[axis - 1]
        return (part(low + high, axis, 0, n) + part(low - high, axis, n, 0)) / 2

    def garrote(c: jax.Array) -> jax.Array:
        # cut to the area that the coarser scales cover
        starts = [(n - m) // 2 for n, m in zip(c.shape, smooth.shape, strict=True)]
        c = jax.lax.slice(c, starts, [start + m for start, m in zip(starts, smooth.shape, strict=True)])
        return c * jax.nn.relu(1 - (threshold / 127.5) ** 2 / jnp.maximum(c * c, 1e-12))

    low, high = split(x_BHW, 1)
    (smooth, across), (down, diagonal) = split(low, 2), split(high, 2)
    if coarser:
        smooth = _shrink(smooth, tuple(coarser), (2 * steps[0], 2 * steps[1]))
    return merge(merge(smooth, garrote(across), 2), merge(garrote(down), garrote(diagonal), 2), 1)


class Conv3(nn.Module):
    """3×3 convolution of the same size, with zero padding."""

    features: int
    kernel_init: Initializer = he()
    dtype: Dtype = jnp.float32
    bias: bool = True
    hidden: bool = False  # whether Muon may train the kernel

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        conv = nn.Conv(
            self.features,
            (3, 3),
            kernel_init=self.kernel_init,
            use_bias=self.bias,
            dtype=self.dtype,
            name="conv",
        )
        return (hidden(conv) if self.hidden else conv)(x_BHWC)


class Residual(nn.Module):
    """Residual block x + f(x), f = (modulate, leaky ReLU, 3×3 convolution) twice; no normalization.

    The second convolution starts at zero and the first is scaled by depth^(-1/2), so that the variance stays
    the same at any depth (Fixup, arXiv 1901.09321; R3GAN, arXiv 2501.05441, §3.3). The convolutions have no
    biases, whose gradients are slow sums over all positions: modulation and the layers between blocks shift.
    """

    features: int
    depth: int  # number of such blocks in the network
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, scale_shift_B4C: jax.Array | None = None) -> jax.Array:
        """Applies the block; a scale and a shift per convolution modulate features (arXiv 1709.07871)."""
        h = x_BHWC
        for i, init in enumerate((he(self.depth**-0.5), zeros)):
            if scale_shift_B4C is not None:
                m = scale_shift_B4C.astype(self.dtype)[:, :, None, None]
                h = h * (1 + m[:, 2 * i]) + m[:, 2 * i + 1]
            h = Conv3(self.features, init, self.dtype, bias=False, hidden=True, name=f"conv{i}")(lrelu(h))
        return x_BHWC + h


class CrossAttention(nn.Module):
    """Attention of each position of a feature map to the caption's tokens, added by a LayerScale."""

    heads: int = 4
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, tok_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
        b, h, w, c = x_BHWC.shape
        dense = lambda name: nn.Dense(c, use_bias=False, dtype=self.dtype, name=name)
        q = nn.RMSNorm(dtype=self.dtype, name="norm")(x_BHWC.reshape(b, h * w, c))
        out = attend(dense("query")(q), dense("key")(tok_BTD), dense("value")(tok_BTD), mask_BT, self.heads)
        out = dense("out")(out)
        scale = self.param("layer_scale", nn.initializers.constant(1e-5), (c,))
        return x_BHWC + (out * scale.astype(self.dtype)).reshape(b, h, w, c)


def attend(q_BQC: jax.Array, k_BTC: jax.Array, v_BTC: jax.Array, mask_BT: jax.Array, heads: int) -> jax.Array:
    """Multi-head scaled dot-product attention (arXiv 1706.03762, eq. 1) over the unmasked ones of T keys.

    mask_BT is bool, or f32 weights in [0, 1]: the logarithm of a key's weight is added to its logit, so
    that 1 is an ordinary key, 0 a masked one, and a key's attention grows in proportion to its weight.
    """
    b, n, c = q_BQC.shape
    q, k, v = (x.reshape(b, -1, heads, c // heads) for x in (q_BQC, k_BTC, v_BTC))
    bias = None
    if mask_BT.dtype != bool:
        bias, mask_BT = jnp.log(jnp.maximum(mask_BT, 1e-30))[:, None, None], mask_BT > 0
    return jax.nn.dot_product_attention(q, k, v, bias, mask_BT[:, None, None]).reshape(b, n, c)
