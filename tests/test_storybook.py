import itertools
import random

import numpy as np
import pytest

from dallegan.data.storybook import grammar
from dallegan.data.storybook.grammar import COLOURS, OBJECTS, PLACES, POSES, Scene, Thing
from dallegan.data.storybook.scenes import RGB, Storybook, is_heldout, negative, render, swap
from dallegan.errors import UserError

BEAR = Scene("snow", (Thing("bear", "brown", "big", "standing"),))


def test_pure_function_of_seed_and_index():
    for i in (0, 7, 2**31 - 2):
        a, b = Storybook(32, seed=3).example(i), Storybook(32, seed=3).example(i)
        assert (a.image == b.image).all()
        assert a[1:] == b[1:]
    assert (Storybook(32, seed=3).example(0).image != Storybook(32, seed=4).example(0).image).any()


@pytest.mark.parametrize("size", [16, 32, 64, 100, 256, 512])
def test_any_size_and_the_same_scene(size):
    image = Storybook(size).example(5).image
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    # an index is the same scene at every size: blocks of the large image average to the small one
    if size % 32 == 0:
        small = image.reshape(32, size // 32, 32, size // 32, 3).mean((1, 3))
        assert np.abs(small - Storybook(32).example(5).image).mean() < 6


def test_a_tenth_of_the_triples_is_held_out_and_never_trained_on():
    triples = list(itertools.product(OBJECTS, COLOURS, PLACES))
    held = {t for t in triples if is_heldout(*t)}
    assert len(held) == len(triples) / 10
    for objects in (1, 2):
        for split in ("train", "test", "heldout"):
            source = Storybook(32, split, objects=objects)
            seen = {
                (t.kind, t.colour, scene.place)
                for scene, _ in map(source.scene, range(3000))
                for t in scene.things
            }
            assert (seen <= held) if split == "heldout" else not seen & held
    # each attribute value still occurs in training with every other
    rest = set(triples) - held
    assert {t[:2] for t in rest} == set(itertools.product(OBJECTS, COLOURS))
    assert {t[1:] for t in rest} == set(itertools.product(COLOURS, PLACES))


def test_test_split_is_not_the_train_split():
    train, test = Storybook(32), Storybook(32, "test")
    assert sum((train.example(i).image == test.example(i).image).all() for i in range(50)) == 0


def test_grammar_yields_the_sentences_of_the_design():
    said = {grammar.caption(BEAR, seed).text for seed in range(4000)}
    assert {
        "一只棕色的大熊站在雪地里",
        "雪地里站着一只棕色的大熊",
        "a big brown bear standing in the snow",
    } <= said
    assert len(said) > 60


def test_captions_name_what_they_say_they_name():
    source = Storybook(16, objects=2)
    for scene, seed in map(source.scene, range(3000)):
        said = grammar.caption(scene, seed)
        for i, thing in enumerate(scene.things):
            words = (
                {
                    "kind": thing.kind,
                    "colour": thing.colour,
                    "pose": thing.pose or "",
                    "size": grammar.EN_SIZE[thing.size][0],
                }
                if said.language == "en"
                else {
                    "kind": grammar.ZH_OBJECT[thing.kind][1],
                    "colour": grammar.ZH_COLOUR[thing.colour],
                    "pose": grammar.ZH_POSE.get(thing.pose or "", ""),
                    "size": grammar.ZH_SIZE[thing.size],
                }
            )
            for field, word in words.items():
                alternatives = (
                    grammar.EN_SIZE[thing.size] if field == "size" and said.language == "en" else (word,)
                )
                named = f"{i}.{field}" in said.mentions
                if named:
                    assert any(w in said.text for w in alternatives), said
                elif word and len(scene.things) == 1:
                    spaced, around = (
                        (f" {said.text} ", " ") if said.language == "en" else (said.text, "")
                    )  # Chinese has no spaces
                    assert not any(f"{around}{w}{around}" in spaced for w in alternatives), said
        assert ("side" in said.mentions) == (len(scene.things) == 2)


def test_left_is_left():
    for seed in range(40):
        for side in ("left", "right"):
            things = (Thing("balloon", "red", "big", None), Thing("house", "blue", "big", None))
            image = render(Scene("snow", things, side), 64, seed).astype(int)
            columns = np.arange(64)

            def centre(colour, image=image, columns=columns):
                near = np.abs(image - np.array(RGB[colour])).sum(-1) < 60
                return (near.sum(0) * columns).sum() / near.sum()

            assert (centre("red") < centre("blue")) == (side == "left")


@pytest.mark.parametrize("objects", [1, 2])
def test_negatives_are_false_of_the_image(objects):
    source, swapped, kinds, related = Storybook(16, objects=objects), 0, 0, {"side": 0, "colours": 0}
    for i in range(2000):
        scene, seed = source.scene(i)
        said = source.example(i).truth[1]
        other, text = negative(scene, said, seed, "train", objects, 0.5)
        assert source.example(i).negative == text.text != said.text
        assert text.language == said.language
        if len(other.things) == len(scene.things) == 1:
            assert not all(grammar.holds(scene, a, other) for a in text.mentions)
        differing = (
            [a for a in said.mentions if not grammar.holds(scene, a, other)]
            if said.mentions == text.mentions
            else []
        )
        swapped += len(differing) == 1
        kinds += len(differing) == 1 and differing[0].endswith("kind")
        # both sentences then have the same words, and differ only in what belongs to what
        if sorted(differing) == ["0.colour", "1.colour"] and [t.colour for t in other.things] == [
            t.colour for t in reversed(scene.things)
        ]:
            related["colours"] += 1
            assert sorted(text.text) == sorted(said.text) or said.language == "en"  # or "a" becomes "an"
        related["side"] += differing == ["side"]
    assert 0.4 < swapped / 2000 < 0.7
    assert (0.4 if objects == 1 else 0.2) < kinds / swapped < 0.65
    assert all(0.04 < count / 2000 < 0.2 if objects == 2 else count == 0 for count in related.values()), (
        kinds / swapped,
        related,
    )


def test_swap_changes_one_attribute_only():
    rng = random.Random(0)
    for attribute in ("place", "0.kind", "0.colour", "0.size", "0.pose"):
        other = swap(BEAR, attribute, rng)
        assert [
            a
            for a in ("place", "0.kind", "0.colour", "0.size", "0.pose")
            if not grammar.holds(BEAR, a, other)
        ] == [attribute]
        assert (other.things[0].pose in POSES) == (other.things[0].kind in grammar.ANIMALS)


def test_prompts_are_in_words_that_captions_use():
    for objects in (1, 2):
        source = Storybook(32, objects=objects)
        prompts, words = source.prompts(), " ".join(source.captions(3000))
        assert len(set(prompts)) == 8
        assert all(
            word in words for prompt in prompts for word in (prompt.split() if prompt.isascii() else prompt)
        )
        assert sum("left" in prompt or "边" in prompt for prompt in prompts) == 4 * (objects - 1)


def test_bad_size_and_split():
    with pytest.raises(UserError, match="16 to 512"):
        Storybook(1024)
    with pytest.raises(UserError, match="no split"):
        Storybook(32, "validation")
