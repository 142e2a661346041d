# %% [markdown]
# The discriminator has learned to tell whether picture and caption belong together: its features retrieve captions for pictures.

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
def table(images, tokens):
    """f32[B, K]: how well each picture fits each caption, and the features f32[B, F] that say so."""
    seen = gan.image_features(params, images)
    return gan.match(params, seen.whole, gan.encode_caption(params, tokens).sentence), seen.whole


match, features = table(images, tokens)
found = np.argmax(np.asarray(match), 1)
same = [examples[i].caption == examples[j].caption for i, j in enumerate(found)]
print(f"features: {features.shape}; {np.mean(same):.0%} of 64 real pictures find their own caption among all (chance: 2 %)")
assert np.mean(same) > 0.2
