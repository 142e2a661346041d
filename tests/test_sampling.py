import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from conftest import tiny
from PIL import Image

import dallegan
from dallegan import sampling
from dallegan.data.storybook import Storybook
from dallegan.errors import UserError
from dallegan.sampling import Model, make_gan, write_samples
from dallegan.tokenizer import Tokenizer

BEAR, CAR = "一只棕色的大熊站在雪地里", "a small red car in the desert"


@pytest.fixture(scope="module")
def model():
    config = tiny(text__length=20)
    tokenizer = Tokenizer.train(Storybook(16).captions(2000), 600, config.text.length)
    gan = make_gan(config, tokenizer.size)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(2), p.shape), jax.jit(gan.init)(jax.random.key(0)))
    return Model(gan, params, tokenizer, config)


def test_the_same_seed_gives_the_same_pixels_whatever_the_batch(model):
    many = model.sample([CAR, BEAR, "a cat"], n=9, seed=5)
    assert many.shape == (27, 16, 16, 3)
    assert (model.sample([BEAR], n=9, seed=5) == many[9:18]).all()
    assert (model.sample(BEAR, n=1, seed=5) == many[9:10]).all()
    assert (model.sample(["a cat", BEAR], n=20, seed=5)[20:29] == many[9:18]).all()
    assert (model.sample([BEAR], n=9, seed=6) != many[9:18]).any()


def test_noise_and_caption_both_matter(model):
    images = model.sample([CAR, BEAR], n=4)
    assert len({image.tobytes() for image in images}) == 8


def test_token_ids_are_captions(model):
    ids = model.tokenizer.encode(BEAR)
    assert (model.sample(ids, n=2) == model.sample([BEAR], n=2)).all()
    assert (model.sample(np.stack([ids, ids])) == model.sample([BEAR, BEAR])).all()


def test_truncation_zero_has_no_variety(model):
    images = model.sample([BEAR], n=3, truncation=0.0)
    assert (images == images[0]).all()


@pytest.mark.parametrize("captions", [[""], ["a cat", "  "], np.zeros((1, 3), np.int32), np.zeros((1, 20))])
def test_bad_captions(model, captions):
    with pytest.raises(UserError, match=r"empty caption|captions must be"):
        model.sample(captions)


def test_bad_count(model):
    with pytest.raises(UserError, match="at least one"):
        model.sample([BEAR], n=0)


def test_a_very_long_prompt_is_cut_and_drawn(model):
    with pytest.warns(UserWarning, match="cut to 19"):
        assert model.sample(["bear " * 2000]).shape == (1, 16, 16, 3)


def test_pngs_carry_prompt_and_seed_and_never_overwrite(model, tmp_path):
    paths = list(write_samples(model, [BEAR, "../../evil/.. path"], tmp_path / "out", n=2, seed=3))
    assert len(paths) == 5
    assert {p.parent for p in paths} == {tmp_path / "out"}
    image = Image.open(paths[0])
    assert image.text["prompt"] == BEAR
    assert (image.text["seed"], image.text["best_of"]) == ("3", "1")
    assert (np.asarray(image) == model.sample([BEAR], n=2, seed=3)[0]).all()
    grid = Image.open(paths[-1])
    assert json.loads(grid.text["prompts"])[0] == BEAR
    again = list(write_samples(model, [BEAR], tmp_path / "out", n=2, seed=3))
    assert not set(again) & set(paths)


def test_unwritable_out(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        list(write_samples(model, [BEAR], tmp_path / "file" / "x"))


def test_a_shipped_model_is_loaded_by_its_name(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "SHIPPED", tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    model.save(tmp_path / "assets" / "tiny-16")
    assert dallegan.load("tiny-16").config == model.config
    for path in ("./tiny-16", pathlib.Path("tiny-16"), "assets"):
        with pytest.raises(UserError, match=r"is not a model: no .*In the package: tiny-16"):
            dallegan.load(path)


def test_load_of_what_is_not_a_model(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        dallegan.load(tmp_path / "absent")
    with pytest.raises(UserError, match=r"is not a model: no config.json"):
        dallegan.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "tokenizer.model").write_bytes(b"rubbish")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not a dallegan configuration"):
        dallegan.load(tmp_path)


def test_best_of_keeps_what_the_discriminator_scores_highest(model):
    tokens = model.tokenizer.encode([BEAR, CAR])
    many = model.sample(tokens, n=15, seed=4)  # groups of three do not end where chunks do
    score = model.gan.discriminate(model.params, many / np.float32(127.5) - 1, np.repeat(tokens, 15, 0)).reshape(-1, 3)
    best = many.reshape(10, 3, *many.shape[1:])[np.arange(10), np.argmax(score, 1)]
    assert (model.sample(tokens, n=5, seed=4, best_of=3) == best).all()
    with pytest.raises(UserError, match="best of 0"):
        model.sample(tokens, best_of=0)


def test_a_saved_model_is_the_model(model, tmp_path):
    model.save(tmp_path / "new" / "saved")
    again = dallegan.load(tmp_path / "new" / "saved")
    assert again.config == model.config
    assert jax.tree.structure(again.params) == jax.tree.structure(model.params)
    rounded = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), model.params)
    np.testing.assert_array_equal(again.sample([BEAR], n=2), dataclasses.replace(model, params=rounded).sample([BEAR], n=2))
    np.testing.assert_allclose(again.sample([BEAR], n=2).astype(float), model.sample([BEAR], n=2), atol=16)
    weights = tmp_path / "new" / "saved" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="weights cannot be read"):
        dallegan.load(weights.parent)
    dataclasses.replace(model, params={"generator": model.params["generator"]}).save(weights.parent)
    with pytest.raises(UserError, match="another network"):
        dallegan.load(weights.parent)
    with pytest.raises(UserError, match="cannot write"):
        model.save(weights / "x")
    (weights.parent / "checkpoints").mkdir()
    with pytest.raises(UserError, match="is a run's directory"):
        model.save(weights.parent)
