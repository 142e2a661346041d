import itertools

import numpy as np
import pytest
from conftest import tiny

from dallegan.data.pipeline import make_batches, make_dataset, make_source, make_tokenizer
from dallegan.data.source import Example, Source
from dallegan.errors import UserError


@pytest.fixture(scope="module")
def parts():
    config = tiny()
    source = make_source(config)
    return source, make_tokenizer(source, config), config


def test_a_batch_is_a_function_of_seed_and_step(parts):
    straight = make_batches(make_dataset(*parts), parts[2], 0)
    first = [next(straight) for _ in range(5)]
    resumed = next(make_batches(make_dataset(*parts), parts[2], 3))
    for key in ("image", "tokens", "negative"):
        np.testing.assert_array_equal(first[3][key], resumed[key])
    other = tiny(seed=1)
    assert (
        next(make_batches(make_dataset(make_source(other), parts[1], other), other, 0))["image"]
        != first[0]["image"]
    ).any()


def test_shapes(parts):
    batch = make_dataset(*parts)[0]
    assert batch["image"].shape == (8, 16, 16, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["tokens"].shape == batch["negative"].shape == (8, 14)
    assert (batch["tokens"] != batch["negative"]).any(1).all()


@pytest.mark.parametrize("shards", [2, 4])
def test_processes_share_the_same_global_batch(parts, shards):
    whole = make_dataset(*parts)
    pieces = [make_dataset(*parts, shard, shards) for shard in range(shards)]
    for step in (0, 5):
        np.testing.assert_array_equal(
            np.concatenate([p[step]["image"] for p in pieces]), whole[step]["image"]
        )


def test_unknown_source():
    for source in ("laion", "folder:", "storybook:x"):
        with pytest.raises(UserError, match="choose storybook, emoji, folder:PATH"):
            make_source(tiny(data__source=source))


def test_images_of_another_type_are_refused(parts):
    source, tokenizer, config = parts

    class Floats(Source):
        def __len__(self):
            return len(source)

        def example(self, index, rng):
            found = source.example(index, rng)
            return found._replace(image=found.image / np.float32(255))

    with pytest.raises(UserError, match=r"image \d+ is float32\[16, 16, 3\], and must be uint8\[16, 16, 3\]"):
        next(make_batches(make_dataset(Floats(), tokenizer, config), config, 0))


class Shades(Source):
    """Grey images; all that a source must have."""

    def __len__(self):
        return 20

    def example(self, index, rng):
        caption = rng.choice([f"shade {index}", f"grey {index}"])
        return Example(np.full((16, 16, 3), index, np.uint8), str(caption), f"shade {(index + 1) % 20}")


def test_a_source_of_your_own_needs_two_methods():
    source, config = Shades(), tiny(text__vocab=300)
    assert (source.splits, source.truth, *map(len, (source.skipped, source.tokenizers))) == (
        ("train",),
        False,
        0,
        0,
    )
    assert len(source.captions(9)) == 9
    assert len(source.captions(99)) == 20
    assert [prompt.split()[1] for prompt in source.prompts()] == [str(i) for i in range(0, 16, 2)]
    batch = make_dataset(source, make_tokenizer(source, config), config)[0]
    assert batch["image"].shape == (8, 16, 16, 3)

    class Half(Source):
        def __len__(self):
            return 1

    with pytest.raises(TypeError, match=r"abstract method '?example"):
        Half()


@pytest.mark.parametrize(("name", "truth"), [("storybook", True), ("emoji", False)])
def test_procedural_sources_have_the_splits_that_they_name(name, truth):
    config = tiny(data__source=name)
    source = make_source(config)
    assert (source.splits, source.truth, dict(source.skipped)) == (("train", "test", "heldout"), truth, {})
    captions = [make_source(config, split).captions(20) for split in source.splits]
    assert all(a != b for a, b in itertools.combinations(captions, 2))
