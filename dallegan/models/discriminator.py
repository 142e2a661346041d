"""Box 4, the Discriminator: image and caption to a score (real or generated, and does it match).

The trunk over images and the encoder of captions meet only in `score`, so that one pass over the images
serves true and false captions alike. `score_pairs` compares the images of a caption.
"""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from dallegan.config import ModelConfig
from dallegan.models.encoder import TextFeatures
from dallegan.models.layers import Conv3, Dtype, Residual, he, hidden, lrelu, space_to_depth
from dallegan.shapes import Float


class ImageFeatures(flax.struct.PyTreeNode):
    """The discriminator's features of images."""

    whole: Float[jax.Array, "B F"]
    regions: Float[jax.Array, "B N R"]


class Discriminator(nn.Module):
    """A residual trunk from pixel patches to 4×4, then realism, sentence projection and token attention."""

    config: ModelConfig
    dtype: Dtype = jnp.float32
    features: int = 256  # F, of the whole image
    region_features: int = 128  # R, of each region
    packing: bool = False  # whether there is a head for two images of a caption

    @property
    def scale(self) -> float:
        """Weight of the sentence term: four times the usual 1/√F; matching is learned sooner (LOG)."""
        return 4 / math.sqrt(self.features)

    def setup(self) -> None:
        dense = lambda n, init=None: nn.Dense(
            n, kernel_init=init or nn.initializers.lecun_normal(), dtype=self.dtype
        )
        # the head and the sums below are float32 at any compute dtype, as scores are subtracted
        self.whole, self.head = dense(self.features, he()), nn.Dense(1)
        self.project = dense(self.features)
        if self.packing:
            self.compare, self.variety = dense(self.region_features, he()), nn.Dense(1)
        self.key, self.value, self.region = (
            nn.Dense(self.region_features, use_bias=False, dtype=self.dtype) for _ in range(3)
        )

    @nn.compact
    def image_features(self, image_BHWC: jax.Array) -> ImageFeatures:
        """Maps f32[B, H, W, 3] in [-1, 1] to features of the whole and of each region."""
        c = self.config
        depth = sum(c.critic_blocks)
        image = image_BHWC.astype(self.dtype)
        x = Conv3(c.critic_widths[0], he(0.7), self.dtype, name="stem")(space_to_depth(image, c.critic_patch))
        if c.detail:
            x += Detail(c.detail, c.critic_widths[0], c.critic_patch // 2, self.dtype, name="detail")(image)
        x = lrelu(x)
        regions: jax.Array | None = None
        for stage in range(int(math.log2(x.shape[1] // 4)) + 1):
            level = min(stage, len(c.critic_blocks) - 1)
            if stage:
                down = nn.Dense(
                    c.critic_widths[level], kernel_init=he(0.7), dtype=self.dtype, name=f"down{stage}"
                )
                x = hidden(down)(space_to_depth(x, 2))
            for i in range(c.critic_blocks[level]):
                x = Residual(c.critic_widths[level], depth, self.dtype, name=f"residual{stage}_{i}")(x)
            if x.shape[1] <= 8 and regions is None:  # regions at 8×8, or 4×4 if the trunk starts there
                regions = self.region(lrelu(x)).reshape(x.shape[0], -1, self.region_features)
        assert regions is not None  # the trunk ends at 4×4
        whole = lrelu(self.whole(lrelu(x).reshape(x.shape[0], -1)))
        return ImageFeatures(whole, regions)

    def score(self, seen: ImageFeatures, text: TextFeatures) -> jax.Array:
        """Returns f32[B], the sum of three terms.

        Realism; the projected sentence times the whole (arXiv 1802.05637, eq. 3); each token times the
        regions that it attends to (arXiv 1711.10485, eq. 7-9).
        """
        realism = self.head(seen.whole)[:, 0]
        wide = lambda x: x.astype(jnp.float32)
        sentence = self.scale * jnp.sum(wide(self.project(text.sentence)) * seen.whole, -1)
        temperature = math.sqrt(self.region_features)
        logits = (
            jnp.einsum("btr,bnr->btn", self.key(text.tokens), seen.regions).astype(jnp.float32) / temperature
        )
        context = jnp.einsum("btn,bnr->btr", jax.nn.softmax(logits).astype(self.dtype), seen.regions)
        words = jnp.sum(wide(self.value(text.tokens)) * context, -1) / temperature
        words = jnp.sum(words * text.mask, 1) / jnp.sum(text.mask, 1)
        return realism + sentence + words

    def score_pairs(self, seen: ImageFeatures) -> jax.Array:
        """Returns f32[B/2], how real rows 2 k and 2 k + 1 are as two images of one caption.

        Packing (arXiv 1712.04086, §2), here of features: the head reads how far apart they are, so that
        images that are too much alike are found out.
        """
        first, second = (jax.tree.map(lambda x, i=i: x[i::2], seen) for i in range(2))
        apart = jnp.abs(first.whole - second.whole), jnp.mean(jnp.abs(first.regions - second.regions), 1)
        return self.variety(lrelu(self.compare(jnp.concatenate([*apart, first.whole + second.whole], -1))))[
            :, 0
        ]

    def match(self, whole_BF: jax.Array, sentence_KD: jax.Array) -> jax.Array:
        """Returns f32[B, K], the sentence term of `score` for every image with every sentence."""
        sentence_KF = self.project(sentence_KD)
        return self.scale * jnp.matmul(whole_BF, sentence_KF.T, preferred_element_type=jnp.float32)


class Detail(nn.Module):
    """Detail stage, the mirror image of the decoder's: one residual block on patches half as large.

    Each further entry of `features` adds a stage on patches half as large again. What a stage adds starts at
    zero, so that a trained model continues where it stood.
    """

    features: tuple[int, ...]  # channels of each stage, at least one
    channels: int
    patch: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        """Maps [B, H, W, 3] to a correction of the patch embeddings [B, h, w, channels], h = H / 2 patch."""
        features, *finer = self.features
        h = Conv3(features, dtype=self.dtype, name="stem")(space_to_depth(image_BHWC, self.patch))
        if finer:
            h += Detail(tuple(finer), features, self.patch // 2, self.dtype, name="detail")(image_BHWC)
        h = Residual(features, 1, self.dtype, name="residual")(h)
        down = hidden(
            nn.Dense(self.channels, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="down")
        )
        return down(space_to_depth(lrelu(h), 2))


class DcganDiscriminator(nn.Module):
    """Baseline: strided convolutions to 4×4, with the sentence tiled onto the map (arXiv 1605.05396)."""

    channels: int = 64
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        normal = nn.initializers.normal(0.02)
        self.sentence = nn.Dense(128, kernel_init=normal, dtype=self.dtype)
        self.join = nn.Conv(self.channels * 4, (1, 1), kernel_init=normal, dtype=self.dtype)
        self.head = nn.Dense(1, kernel_init=normal)  # float32 at any compute dtype, as scores are subtracted

    @nn.compact
    def image_features(self, image_BHWC: jax.Array) -> ImageFeatures:
        """Maps f32[B, H, W, 3] in [-1, 1] to the 4×4 map, as regions [B, 16, R] and as a whole [B, 16 R]."""
        normal, x, width, i = nn.initializers.normal(0.02), image_BHWC.astype(self.dtype), self.channels, 0
        while x.shape[1] > 4:
            x = nn.Conv(width, (4, 4), (2, 2), kernel_init=normal, dtype=self.dtype, name=f"conv{i}")(x)
            x = lrelu(x if i == 0 else nn.GroupNorm(1, dtype=self.dtype, name=f"norm{i}")(x))
            width, i = min(2 * width, 512), i + 1
        return ImageFeatures(x.reshape(x.shape[0], -1), x.reshape(x.shape[0], 16, -1))

    def score(self, seen: ImageFeatures, text: TextFeatures) -> jax.Array:
        """Returns f32[B]."""
        words = lrelu(self.sentence(text.sentence))[:, None]
        words = jnp.broadcast_to(words, (*seen.regions.shape[:2], words.shape[-1]))
        x = jnp.concatenate([seen.regions, words], -1)
        x = lrelu(self.join(x.reshape(-1, 4, 4, x.shape[-1])))
        return self.head(x.reshape(x.shape[0], -1))[:, 0]
