"""Box 4, the Discriminator: picture and caption to a score, real or generated and does it match; its own text encoder.

The picture's trunk and the caption's encoder meet only in `score`, so that one pass over the pictures serves true and false
captions alike.
"""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from dallegan.config import ModelConfig
from dallegan.models.encoder import Text
from dallegan.models.layers import Conv3, Dtype, Residual, he, lrelu, space_to_depth


class Seen(flax.struct.PyTreeNode):
    """What the discriminator's trunk makes of a picture."""

    whole: jax.Array  # [B, F]
    regions: jax.Array  # [B, N, R]


class Discriminator(nn.Module):
    """A residual trunk over patch embeddings down to 4×4; the score is a scalar head, a projection and token attention."""

    config: ModelConfig
    dtype: Dtype = jnp.float32
    features: int = 256  # F, of the whole picture
    region_features: int = 128  # R, of each region

    @property
    def scale(self) -> float:
        """Weight of the sentence term; four times the usual 1/√F, for the match is learned sooner (benchmarks/LOG.md)."""
        return 4 / math.sqrt(self.features)

    def setup(self) -> None:
        dense = lambda n, init=None: nn.Dense(n, kernel_init=init or nn.initializers.lecun_normal(), dtype=self.dtype)
        self.whole, self.head = dense(self.features, he()), nn.Dense(1)  # scores are float32, as are the sums that they are made of
        self.project = dense(self.features)
        self.key, self.value, self.region = (nn.Dense(self.region_features, use_bias=False, dtype=self.dtype) for _ in range(3))

    @nn.compact
    def see(self, image_BHWC: jax.Array) -> Seen:
        """f32[B, H, W, 3] in [-1, 1] -> features of the whole and of each region."""
        c = self.config
        depth = sum(c.critic_blocks)
        image = image_BHWC.astype(self.dtype)
        x = Conv3(c.critic_widths[0], he(0.7), self.dtype, name="stem")(space_to_depth(image, c.critic_patch))
        if c.detail:
            x += Detail(c.detail, c.critic_widths[0], c.critic_patch // 2, self.dtype, name="detail")(image)
        x = lrelu(x)
        regions: jax.Array | None = None
        stages = int(math.log2(x.shape[1] // 4)) + 1
        for stage in range(stages):
            level = min(stage, len(c.critic_blocks) - 1)
            if stage:
                x = nn.Dense(c.critic_widths[level], kernel_init=he(0.7), dtype=self.dtype, name=f"down{stage}")(space_to_depth(x, 2))
            for i in range(c.critic_blocks[level]):
                x = Residual(c.critic_widths[level], depth, self.dtype, name=f"residual{stage}_{i}")(x)
            if x.shape[1] <= 8 and regions is None:  # regions at 8×8, or 4×4 where the trunk starts there
                regions = self.region(lrelu(x)).reshape(x.shape[0], -1, self.region_features)
        assert regions is not None  # the trunk ends at 4×4
        whole = lrelu(self.whole(lrelu(x).reshape(x.shape[0], -1)))
        return Seen(whole, regions)

    def score(self, seen: Seen, text: Text) -> jax.Array:
        """f32[B]: realism, plus <projected sentence, whole> (arXiv 1802.05637, eq. 3), plus each token against the regions it
        attends to (arXiv 1711.10485, eq. 7-9)."""
        realism = self.head(seen.whole)[:, 0]
        wide = lambda x: x.astype(jnp.float32)
        sentence = self.scale * jnp.sum(wide(self.project(text.sentence)) * seen.whole, -1)
        temperature = math.sqrt(self.region_features)
        logits = jnp.einsum("btr,bnr->btn", self.key(text.tokens), seen.regions).astype(jnp.float32) / temperature
        context = jnp.einsum("btn,bnr->btr", jax.nn.softmax(logits).astype(self.dtype), seen.regions)
        words = jnp.sum(wide(self.value(text.tokens)) * context, -1) / temperature
        words = jnp.sum(words * text.mask, 1) / jnp.sum(text.mask, 1)
        return realism + sentence + words

    def match(self, whole_BF: jax.Array, sentence_KD: jax.Array) -> jax.Array:
        """f32[B, K]: the sentence term of `score`, every picture with every sentence."""
        return self.scale * jnp.matmul(whole_BF, self.project(sentence_KD).T, preferred_element_type=jnp.float32)


class Detail(nn.Module):
    """What to add to the patch embeddings, from one residual block in patches half as large, to which the next of `features` adds likewise: the mirror image of
    the decoder's.

    Starts at zero, so that a trained model goes on where it stood.
    """

    features: tuple[int, ...]  # at least one
    channels: int
    patch: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> [B, h, w, channels]; h is H / (2 patch)."""
        features, *finer = self.features
        h = Conv3(features, dtype=self.dtype, name="stem")(space_to_depth(image_BHWC, self.patch))
        if finer:
            h += Detail(tuple(finer), features, self.patch // 2, self.dtype, name="detail")(image_BHWC)
        h = Residual(features, 1, self.dtype, name="residual")(h)
        return nn.Dense(self.channels, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="down")(space_to_depth(lrelu(h), 2))


class DcganDiscriminator(nn.Module):
    """The baseline: strided convolutions to 4×4, the sentence tiled onto the map (arXiv 1605.05396)."""

    channels: int = 64
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        normal = nn.initializers.normal(0.02)
        self.sentence = nn.Dense(128, kernel_init=normal, dtype=self.dtype)
        self.join = nn.Conv(self.channels * 4, (1, 1), kernel_init=normal, dtype=self.dtype)
        self.head = nn.Dense(1, kernel_init=normal)  # scores are float32

    @nn.compact
    def see(self, image_BHWC: jax.Array) -> Seen:
        """f32[B, H, W, 3] -> regions [B, 16, F]."""
        normal, x, width, i = nn.initializers.normal(0.02), image_BHWC.astype(self.dtype), self.channels, 0
        while x.shape[1] > 4:
            x = nn.Conv(width, (4, 4), (2, 2), kernel_init=normal, dtype=self.dtype, name=f"conv{i}")(x)
            x = lrelu(x if i == 0 else nn.GroupNorm(1, dtype=self.dtype, name=f"norm{i}")(x))
            width, i = min(2 * width, 512), i + 1
        return Seen(x.reshape(x.shape[0], -1), x.reshape(x.shape[0], 16, -1))

    def score(self, seen: Seen, text: Text) -> jax.Array:
        """f32[B]."""
        words = lrelu(self.sentence(text.sentence))[:, None]
        x = jnp.concatenate([seen.regions, jnp.broadcast_to(words, (*seen.regions.shape[:2], words.shape[-1]))], -1)
        x = lrelu(self.join(x.reshape(-1, 4, 4, x.shape[-1])))
        return self.head(x.reshape(x.shape[0], -1))[:, 0]
