"""The shipped models draw what their cards say."""

import shutil

import jax
import numpy as np
import pytest

import dallegan
from dallegan.data.storybook.grammar import Caption, Scene, Thing
from dallegan.evaluation.judge import encode_facts, load_judge
from dallegan.evaluation.obedience import correct_attributes, read_images
from dallegan.sampling import DEFAULT, SHIPPED, WEIGHTS

BEAR = Scene("snow", (Thing("bear", "brown", "big", "standing"),))
NAMED = frozenset({"0.kind", "0.colour", "0.size", "0.pose", "place"})
NAMES = ["storybook-32", "storybook-64"]
SENTENCES = {"一只棕色的大熊站在雪地里": "zh", "a big brown bear standing in the snow": "en"}


def test_the_default_is_one_of_them():
    assert DEFAULT in NAMES
    assert {file.parent.name for file in SHIPPED.glob("*/config.json")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_sentence_to_get_right(name, sentence):
    images = dallegan.load(name).sample(sentence, n=16)
    assert len({image.tobytes() for image in images}) == 16
    named = encode_facts([BEAR] * 16, [Caption(sentence, SENTENCES[sentence], NAMED)] * 16)
    correct = correct_attributes(read_images(load_judge(), images), named)
    assert np.sum(correct["all"]) >= 15, {name: float(np.mean(x)) for name, x in correct.items()}


@pytest.mark.parametrize("name", NAMES)
def test_its_weights_are_those_of_its_network(name, tmp_path):
    """`load` takes this for granted; it checks the weights of a folder elsewhere."""
    model, copy = dallegan.load(name), dallegan.load(shutil.copytree(SHIPPED / name, tmp_path / "copy"))
    assert jax.tree.all(jax.tree.map(np.array_equal, model.params, copy.params))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_has_a_card(name):
    files = {path.name: path.stat().st_size for path in (SHIPPED / name).iterdir()}
    assert set(files) == {"README.md", "config.json", "model.safetensors", "tokenizer.model"}
    assert files["model.safetensors"] <= 16 * 2**20
    card = (SHIPPED / name / "README.md").read_text()
    assert all(word in card for word in ("license: apache-2.0", "## Limits", "recipes/"))


@pytest.mark.parametrize("name", NAMES)
def test_the_file_has_a_digest_and_is_written_again_bit_for_bit(name, tmp_path):
    dallegan.load(name).save(tmp_path)
    shipped = (SHIPPED / name / WEIGHTS).read_bytes()
    assert (tmp_path / WEIGHTS).read_bytes() == shipped
    (tmp_path / WEIGHTS).write_bytes(shipped[:-5] + bytes([shipped[-5] ^ 1]) + shipped[-4:])
    with pytest.raises(dallegan.UserError, match="are damaged, copy the file again: their digest is another"):
        dallegan.load(tmp_path)
