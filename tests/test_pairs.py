import numpy as np
import pytest
from conftest import tiny

from dallegan.data.emoji import Emoji
from dallegan.data.pairs import Alike, Nearest
from dallegan.data.pipeline import make_batches, make_dataset, make_source, make_tokenizer
from dallegan.data.source import Example, Source
from dallegan.data.storybook.scenes import Storybook


class Letters(Source):
    """Ten images, grey level i for caption i, of which 3 and 7 have the same words."""

    texts = ("a red dress", "a blue dress", "a green hat", "a red hat", "trousers")
    texts += ("a blue coat", "gloves", "a hat, RED", "a grey coat", "一只棕色的熊")

    def __len__(self):
        return len(self.texts)

    def example(self, index, rng):
        return Example(np.full((32, 32, 3), index, np.uint8), self.texts[index], self.texts[index - 1])


def test_nearest_captions_share_all_but_their_rarest_words():
    captions = ["a red dress", "a blue dress", "a red hat", "red a hat", "trousers", "一只熊", "一只猫"]
    nearest = Nearest(captions)
    assert sorted(nearest.find("A hat, red!")) == [2, 3]
    assert sorted(nearest.find("a red dress")) == [0]
    assert nearest.find("一只狗", 2) == [5, 6]
    assert sorted(nearest.find("a red dress", 99)) == list(range(len(captions)))  # all there are
    assert set(nearest.find("a red dress", 3)) <= {0, 1, 2, 3}
    assert len(nearest.find("", 1)) == 1


def test_a_partner_has_the_same_words_or_nearly_and_is_another_image():
    source = Letters()
    partner, rng = Alike(source).partner, np.random.default_rng(0)
    for index, text in enumerate(source.texts):
        partners = {partner(index, source.example(index, rng), rng).caption for _ in range(20)}
        assert text not in partners
    assert {partner(3, source.example(3, rng), rng).caption for _ in range(9)} == {"a hat, RED"}


def test_several_images_are_different_and_of_the_nearest_captions():
    source, rng = Letters(), np.random.default_rng(0)
    alike = Alike(source)
    assert {e.caption for e in alike.several(7, 2, rng)} == {"a red hat", "a hat, RED"}
    assert len({e.caption for e in alike.several(4, 6, rng)}) == 6
    assert len(alike.several(4, 99, rng)) == 10
    drawn = Alike(Storybook(32)).several(5, 4, rng)
    assert {e.caption for e in drawn} == {Storybook(32).example(5).caption}
    assert len({e.image.tobytes() for e in drawn}) == 4


def test_a_lone_image_is_its_own_partner():
    class One(Letters):
        texts = ("a hat",)

    source, rng = One(), np.random.default_rng(0)
    assert Alike(source).partner(0, source.example(0, rng), rng).caption == "a hat"


@pytest.mark.parametrize("source", [Storybook(32, hard=1.0), Storybook(32, objects=2), Emoji(32)])
def test_a_drawn_partner_is_another_image_of_the_caption(source):
    alike = Alike(source)
    for index in range(8):
        one = source.example(index, np.random.default_rng(0))
        others = [alike.partner(index, one, np.random.default_rng(seed)) for seed in (1, 1, 2)]
        assert {other.caption for other in others} == {one.caption}
        np.testing.assert_array_equal(others[0].image, others[1].image)
        assert np.abs(others[0].image.astype(int) - one.image).mean() > 1
        assert np.abs(others[0].image.astype(int) - others[2].image).mean() > 1


def test_a_drawn_partner_keeps_what_the_caption_names_and_no_more():
    source, kept, changed = Storybook(32), 0, set()
    for index in range(64):
        (scene, caption), (other, same) = (
            source.example(index).truth,
            source.again(index, np.random.default_rng(index)).truth,
        )
        assert same == caption
        facts = {"place": (scene.place, other.place)}
        for name in ("kind", "colour", "size"):
            facts[f"0.{name}"] = tuple(getattr(s.things[0], name) for s in (scene, other))
        for name, (before, after) in facts.items():
            if name in caption.mentions:
                assert before == after
                kept += 1
            elif before != after:
                changed.add(name)
    assert kept > 64
    assert len(changed) >= 2


def test_every_eight_rows_begin_with_two_images_of_a_caption():
    config = tiny(loss__packing=1.0, data__hard_negatives=1.0, batch=16)
    source = make_source(config)
    tokenizer = make_tokenizer(source, config)
    make = lambda *shard: next(make_batches(make_dataset(source, tokenizer, config, *shard), config, 0))
    batch, again = make(), make()
    assert batch["image"].shape == (16, config.data.size, config.data.size, 3)
    np.testing.assert_array_equal(batch["tokens"][[0, 8]], batch["tokens"][[1, 9]])
    assert (batch["image"][[0, 8]] != batch["image"][[1, 9]]).any((1, 2, 3)).all()
    assert len(np.unique(batch["tokens"], axis=0)) == 14
    np.testing.assert_array_equal(batch["image"], again["image"])
    halves = [make(i, 2)["image"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), batch["image"])
