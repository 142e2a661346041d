# %% [markdown]
# Finds a sentence vector that draws a given image, by gradient, and the caption nearest to it.

# %%
import os

import jax
import jax.numpy as jnp
import optax

import dallegan

STEPS = int(os.environ.get("STEPS", "200"))
WANTED, START = "a big brown bear standing in the snow", "a small red car in the desert"
OTHERS = [
    WANTED,
    START,
    "a big brown bear standing in the forest",
    "a small blue bear in the snow",
    "a red house in the snow",
    "a yellow fish in the sea",
]

model = dallegan.load()
gan, params = model.gan, model.params
# the same noise for both captions, so that only the caption differs
noise = jax.random.normal(jax.random.key(0), (8, model.config.model.noise))
encode = jax.jit(lambda captions: gan.encode(params, captions))
target, begin = (encode(model.tokenizer.encode([caption])) for caption in (WANTED, START))


# %%
@jax.jit
def draw(sentence):
    """Returns f32[8, H, W, 3], the images of a sentence vector f32[1, D]; the words stay those of START."""
    text = jax.tree.map(lambda x: jnp.repeat(x, len(noise), 0), begin.replace(sentence=sentence))
    return gan.decode(params, gan.generate(params, text, noise))


wanted = draw(target.sentence)
adam = optax.adam(0.05)


@jax.jit
def step(sentence, state):
    """Takes one step of Adam."""
    value, gradient = jax.value_and_grad(lambda s: jnp.mean((draw(s) - wanted) ** 2))(sentence)
    update, state = adam.update(gradient, state)
    return sentence + update, state, value


sentence, state = begin.sentence, adam.init(begin.sentence)
first = float(jnp.mean((draw(sentence) - wanted) ** 2))
for _ in range(STEPS):
    sentence, state, value = step(sentence, state)
print(f"squared distance: {first:.4f} with the first caption, {float(value):.4f} after {STEPS} steps")
assert float(value) < first

# %%
cosine = lambda a, b: jnp.sum(a * b, -1) / jnp.linalg.norm(a, axis=-1) / jnp.linalg.norm(b, axis=-1)
scores = cosine(encode(model.tokenizer.encode(OTHERS)).sentence, sentence).tolist()
for score, caption in sorted(zip(scores, OTHERS, strict=True), reverse=True):
    print(f"{score:.3f}  {caption}")
