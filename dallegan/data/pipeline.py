"""Batches as a pure function of (seed, step): the state of the pipeline is the step, so resuming is slicing."""

import re
from collections.abc import Iterator

import grain
import numpy as np

from dallegan.config import Config
from dallegan.data.source import Source
from dallegan.errors import UserError
from dallegan.tokenizer import SentenceVectors, Tokenizer

HostBatch = dict[str, np.ndarray]
CAPTIONS_OF = 20_000  # pictures, for the tokenizer
SIDED = re.compile(r"\b(left|right)(most|wards?|hand|side)?\b|[左右]", re.IGNORECASE)  # a caption with one of these forbids mirroring


def make_source(config: Config, split: str = "train", check: bool = True) -> Source:
    """The source that `data.source` names. UserError for an unknown name, a missing folder, an absent extra.

    check: decode a folder's pictures now, to keep them or to skip the broken ones; else all are found out when read.
    """
    data = config.data
    kind, _, rest = data.source.partition(":")
    if kind == "storybook" and not rest:
        from dallegan.data.storybook.scenes import Storybook

        return Storybook(data.size, split, config.seed, data.objects, data.hard_negatives)
    if kind == "emoji" and not rest:
        from dallegan.data.emoji import Emoji

        return Emoji(data.size, split, config.seed)
    if kind == "folder" and rest:
        from dallegan.data.folder import Folder

        return Folder(rest, data.size, data.threads, check)
    if kind == "webdataset" and rest:
        from dallegan.data.webdataset import WebDataset

        return WebDataset(rest, data.size, data.threads)
    if kind == "tfds" and rest:
        from dallegan.data.tfds import Tfds

        return Tfds(rest, data.size)
    if kind == "arrayrecord" and rest:
        from dallegan.data.arrayrecord import ArrayRecord

        return ArrayRecord(rest, data.size)
    raise UserError(f"--data.source {data.source!r}: choose storybook, emoji, folder:PATH, webdataset:PATTERN, tfds:NAME or arrayrecord:DIR")


def make_tokenizer(source: Source, config: Config) -> Tokenizer:
    """The tokenizer that `prepare` left beside the pictures, where it was made for `text.vocab`; else one trained on the source's captions. The
    pretrained encoder of `frozen` takes its place."""
    if config.text.encoder == "frozen":
        return SentenceVectors()
    if path := getattr(source, "tokenizers", {}).get(config.text.vocab):
        return Tokenizer.load(path, config.text.length)
    return Tokenizer.train(source.captions(CAPTIONS_OF), config.text.vocab, config.text.length)


def make_dataset(source: Source, tokenizer: Tokenizer, config: Config, shard: int = 0, shards: int = 1) -> grain.MapDataset:
    """Element s is this process's rows of global batch s: image uint8[B/n, H, W, 3], tokens and negative i32[B/n, T]."""

    def load(index: int, rng: np.random.Generator) -> HostBatch:
        found = source.example(index, rng)
        image, size = found.image, config.data.size
        if image.dtype != np.uint8 or image.shape != (size, size, 3):  # of a source of one's own
            raise UserError(f"{config.data.source}: picture {index} is {image.dtype}{list(image.shape)}, and must be uint8[{size}, {size}, 3]")
        if config.data.flip and rng.random() < 0.5 and not SIDED.search(found.caption):
            image = image[:, ::-1]
        tokens, negative = tokenizer.encode([found.caption, found.negative], quiet=True)
        return {"image": np.ascontiguousarray(image), "tokens": tokens, "negative": negative}

    order = grain.MapDataset.range(len(source)).seed(config.seed).shuffle().repeat()
    return order.random_map(load).batch(config.batch // shards, drop_remainder=True)[shard::shards]


def make_batches(dataset: grain.MapDataset, config: Config, start: int) -> Iterator[HostBatch]:
    """Batches from step `start` on; `data.threads` threads make two batches each ahead."""
    options = grain.ReadOptions(num_threads=config.data.threads, prefetch_buffer_size=2 * config.data.threads)
    return iter(dataset[start:].to_iter_dataset(options))
