"""Batches as a pure function of (seed, step): the step is the only state, so resuming is slicing."""

import re
from collections.abc import Iterator

import grain
import numpy as np

from dallegan.config import Config
from dallegan.data.pairs import Alike
from dallegan.data.source import Example, Source
from dallegan.errors import UserError
from dallegan.io.text import check_encoding
from dallegan.tokenizer import SentenceVectors, TextInput, Tokenizer

HostBatch = dict[str, np.ndarray]
SOURCES = "storybook, emoji, folder:PATH, webdataset:PATTERN, tfds:NAME or arrayrecord:DIR"
TOKENIZER_EXAMPLES = 20_000  # examples whose captions train the tokenizer
# images with such a caption are not mirrored
SIDED = re.compile(r"\b(left|right)(most|wards?|hand|side)?\b|[左右]", re.IGNORECASE)


def make_source(config: Config, split: str = "train", check: bool = True) -> Source:
    """Returns the source that `data.source` names.

    Args:
        config: the run's configuration.
        split: one of the source's `splits`. Sources that read files ignore it: they have "train" alone.
        check: whether a folder's images are decoded now, so that broken ones are skipped. If False, they are
            found when they are read.

    Raises:
        UserError: the name is unknown, the data cannot be used, or an extra is not installed.
    """
    data = config.data
    check_encoding(data.encoding)
    kind, _, rest = data.source.partition(":")
    # a source is imported only if it is used: some need extras, or seconds to import
    if kind == "storybook" and not rest:
        from dallegan.data.storybook.scenes import Storybook

        return Storybook(data.size, split, config.seed, data.objects, data.hard_negatives)
    if kind == "emoji" and not rest:
        from dallegan.data.emoji import Emoji

        return Emoji(data.size, split, config.seed)
    if kind == "folder" and rest:
        from dallegan.data.folder import Folder

        return Folder(rest, data.size, data.threads, check, data.encoding)
    if kind == "webdataset" and rest:
        from dallegan.data.webdataset import WebDataset

        return WebDataset(rest, data.size, data.threads, data.encoding)
    if kind == "tfds" and rest:
        from dallegan.data.tfds import Tfds

        return Tfds(rest, data.size)
    if kind == "arrayrecord" and rest:
        from dallegan.data.arrayrecord import ArrayRecord

        return ArrayRecord(rest, data.size)
    raise UserError(f"--data.source {data.source!r}: choose {SOURCES}")


def make_tokenizer(source: Source, config: Config) -> TextInput:
    """Returns the text input of a run: a tokenizer, or `SentenceVectors` with `--text.encoder frozen`.

    The tokenizer is the source's own for `text.vocab` if it has one, else one trained on the source's
    captions.
    """
    if config.text.encoder == "frozen":
        return SentenceVectors()
    if path := source.tokenizers.get(config.text.vocab):
        return Tokenizer.load(path, config.text.length)
    return Tokenizer.train(source.captions(TOKENIZER_EXAMPLES), config.text.vocab, config.text.length)


def make_dataset(
    source: Source, tokenizer: TextInput, config: Config, shard: int = 0, shards: int = 1
) -> grain.MapDataset:
    """Returns a data set whose element s is this process's rows of the global batch of step s.

    A batch holds image uint8[B/n, H, W, 3], tokens i32[B/n, T] and negative i32[B/n, T], n = `shards`. With
    `loss.packing`, the first two of every `loss.group` rows are images of one caption, or of two that are
    near. Raises UserError, when it is read, if the source's images are of another type or shape.
    """
    size = config.data.size

    def load(index: int, rng: np.random.Generator) -> HostBatch:
        return encode(index, source.example(index, rng), rng)

    def encode(index: int, example: Example, rng: np.random.Generator) -> HostBatch:
        image = example.image
        if image.dtype != np.uint8 or image.shape != (size, size, 3):
            kind = f"{image.dtype}{list(image.shape)}"
            raise UserError(
                f"{config.data.source}: image {index} is {kind}, and must be uint8[{size}, {size}, 3]"
            )
        if config.data.flip and rng.random() < 0.5 and not SIDED.search(example.caption):
            image = image[:, ::-1]
        tokens, negative = tokenizer.encode([example.caption, example.negative], quiet=True)
        return {"image": np.ascontiguousarray(image), "tokens": tokens, "negative": negative}

    order = grain.MapDataset.range(len(source)).seed(config.seed).shuffle().repeat()
    rows = config.batch // shards
    if not config.loss.packing:
        return order.random_map(load).batch(rows, drop_remainder=True)[shard::shards]
    alike, group = Alike(source), config.loss.group

    def load_group(indices: np.ndarray, rng: np.random.Generator) -> HostBatch:
        first, *others = map(int, indices)
        example = source.example(first, rng)
        pair = [encode(first, e, rng) for e in (example, alike.partner(first, example, rng))]
        loaded = [*pair, *(load(index, rng) for index in others)]
        return {name: np.stack([row[name] for row in loaded]) for name in pair[0]}

    groups = order.batch(group - 1, drop_remainder=True).random_map(load_group)
    join = lambda batch: {name: x.reshape(-1, *x.shape[2:]) for name, x in batch.items()}
    return groups.batch(rows // group, drop_remainder=True).map(join)[shard::shards]


def make_batches(dataset: grain.MapDataset, config: Config, start: int) -> Iterator[HostBatch]:
    """Returns the batches from step `start` on; `data.threads` threads make two batches each in advance."""
    threads = config.data.threads
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(dataset[start:].to_iter_dataset(options))
