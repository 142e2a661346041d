# %% [markdown]
# Retrieves the captions of images: the discriminator has learned which images and captions belong together.

# %%
import jax
import numpy as np

import dallegan
from dallegan.data.storybook.scenes import Storybook

model = dallegan.load()
gan, params = model.gan, model.params
book = Storybook(model.config.data.size, "test")
examples = [book.example(i) for i in range(64)]
images = np.stack([e.image for e in examples]).astype(np.float32) / 127.5 - 1
tokens = model.tokenizer.encode([e.caption for e in examples])


# %%
@jax.jit
def match_all(images, tokens):
    """Returns f32[B, K], how well each image fits each caption, and the features f32[B, F] of the images."""
    features = gan.image_features(params, images).whole
    return gan.match(params, features, gan.encode_caption(params, tokens).sentence), features


match, features = match_all(images, tokens)
found = np.argmax(np.asarray(match), 1)
same = [examples[i].caption == examples[j].caption for i, j in enumerate(found)]
print(
    f"features: {features.shape}; {np.mean(same):.0%} of 64 real images find their own caption (chance: 2 %)"
)
assert np.mean(same) > 0.2
