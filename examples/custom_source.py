# %% [markdown]
# Your own images and captions: a class with two methods is a source.

# %%
import numpy as np

from dallegan.config import load_preset
from dallegan.data.pipeline import make_batches, make_dataset, make_tokenizer
from dallegan.data.source import Example, Source

COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 220)}


class Discs(Source):
    """Discs of three colours anywhere in the image; each example is a function of its index alone."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return 10_000

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """Returns an image, its caption and a false caption. `rng` would choose among several captions."""
        drawn = np.random.default_rng(index)
        name, other = drawn.permutation(list(COLOURS))[:2]
        x, y = drawn.uniform(0.2, 0.8, 2) * self.size
        rows, columns = np.mgrid[: self.size, : self.size]
        disc = (columns - x) ** 2 + (rows - y) ** 2 < (self.size / 6) ** 2
        image = np.where(disc[..., None], COLOURS[str(name)], 255).astype(np.uint8)
        return Example(image, f"a {name} disc", f"a {other} disc")

    # The rest is inherited. `captions` (for the tokenizer) and `prompts` (for sample grids) come from the
    # examples: override them if images take long to make. `splits` is ("train",), `skipped` is empty.


# %%
config = load_preset("quickstart")
source = Discs(config.data.size)
tokenizer = make_tokenizer(source, config)
batch = next(make_batches(make_dataset(source, tokenizer, config), config, 0))
print({name: (array.dtype.name, array.shape) for name, array in batch.items()})
print(tokenizer.decode(batch["tokens"][0]), "and not", tokenizer.decode(batch["negative"][0]))
# `dallegan.loop.train(config, source)` trains on them as `dallegan train` does; own_loop.py has its own loop
