import dataclasses
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import dallegan
from dallegan import sampling
from dallegan.errors import UserError

BEAR, CAR = "一只棕色的大熊站在雪地里", "a small red car in the desert"


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


@pytest.mark.parametrize(
    "captions", [[""], ["a cat", "  "], ["\u200b\x00"], np.zeros((1, 3), np.int32), np.zeros((1, 20))]
)
def test_bad_captions(model, captions):
    with pytest.raises(UserError, match=r"empty caption|captions must be"):
        model.sample(captions)


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_ids_of_another_tokenizer(model, wrong):
    tokens = model.tokenizer.encode("a cat")
    tokens[1] = wrong
    with pytest.raises(UserError, match=f"token ids must be from 0 to {model.tokenizer.size - 1}"):
        model.sample(tokens)


def test_64_bit_numbers_change_no_picture(model):
    before = model.sample("a cat", seed=5)
    with jax.enable_x64(True):
        jax.clear_caches()
        np.testing.assert_array_equal(model.sample("a cat", seed=5), before)


def test_bad_count(model):
    with pytest.raises(UserError, match="at least one"):
        model.sample([BEAR], n=0)


def test_a_very_long_prompt_is_cut_and_drawn(model):
    with pytest.warns(UserWarning, match="cut to 19"):
        assert model.sample(["bear " * 2000]).shape == (1, 16, 16, 3)


def test_scores_are_the_discriminators_of_any_number(model):
    images, captions = model.sample([BEAR, CAR], n=9), [BEAR] * 9 + [CAR] * 9
    scores = model.score(images, captions)
    assert scores.shape == (18,)
    np.testing.assert_array_equal(scores[:1], model.score(images[:1], BEAR))
    direct = model.gan.discriminate(
        model.params, images / np.float32(127.5) - 1, model.tokenizer.encode(captions)
    )
    np.testing.assert_allclose(scores, direct, atol=1e-4)
    with pytest.raises(UserError, match=r"images must be uint8\[1, 16, 16, 3\]"):
        model.score(images, BEAR)


def test_an_interpolation_begins_and_ends_with_what_sample_draws(model):
    way = model.interpolate(BEAR, CAR, frames=20, index=1, seed=4)
    assert way.shape == (20, 16, 16, 3)
    for frame, caption in ((way[0], BEAR), (way[-1], CAR)):
        np.testing.assert_allclose(frame.astype(int), model.sample(caption, n=2, seed=4)[1], atol=1)
    between = np.abs(np.diff(way.astype(int), axis=0)).max((1, 2, 3))
    assert 0 < between.max() < np.abs(way[0].astype(int) - way[-1]).max()
    noises = model.interpolate(BEAR, BEAR + " ", frames=3, index=1, seed=4)  # the same words
    np.testing.assert_allclose(noises[[0, 2]].astype(int), model.sample(BEAR, n=3, seed=4)[1:], atol=1)
    with pytest.raises(UserError, match="at least two"):
        model.interpolate(BEAR, CAR, frames=1)
    with pytest.raises(UserError, match="truncation nan"):
        model.interpolate(BEAR, CAR, truncation=float("nan"))


def test_models_are_told_apart(model):
    other = jax.tree.map(lambda x: x, model.params)
    assert model.digest == dataclasses.replace(model, params=other).digest
    assert model.digest != dataclasses.replace(model, params=jax.tree.map(lambda x: x + 1e-6, other)).digest


def test_a_shipped_model_is_loaded_by_its_name(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "SHIPPED", tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    model.save(tmp_path / "assets" / "tiny-16")
    assert dallegan.load("tiny-16").config == model.config
    for path in ("./tiny-16", pathlib.Path("tiny-16"), "assets"):
        with pytest.raises(UserError, match=r"is not a model: no .*In the package: tiny-16"):
            dallegan.load(path)


def test_loading_a_shipped_model_imports_nothing_of_training(tmp_path):
    """A user who only samples waits for no optimizer, no checkpoints and no data source."""
    code = """
import sys, dallegan
dallegan.load().sample("a cat")
print(*sorted(sys.modules), sep="\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    loaded = set(done.stdout.split())
    packages = {
        "optax",
        "orbax",
        "grain",
        "array_record",
        "tensorflow_datasets",
        "tensorflow",
        "fsspec",
        "PIL",
    }
    assert not loaded & packages
    ours = {"losses", "steps", "optim", "state", "augment", "parallel", "warmstart", "loop", "data", "run"}
    assert not loaded & {f"dallegan.{name}" for name in ours | {"evaluation", "commands"}}


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
    score = model.gan.discriminate(
        model.params, many / np.float32(127.5) - 1, np.repeat(tokens, 15, 0)
    ).reshape(-1, 3)
    best = many.reshape(10, 3, *many.shape[1:])[np.arange(10), np.argmax(score, 1)]
    assert (model.sample(tokens, n=5, seed=4, best_of=3) == best).all()
    with pytest.raises(UserError, match="best of 0"):
        model.sample(tokens, best_of=0)


@pytest.mark.parametrize(("n", "best_of"), [(20, 1), (3, 5), (1, 40)])
def test_a_stream_comes_in_small_pieces(model, n, best_of):
    """A command that is killed loses no more than the candidates of one piece."""
    pieces = list(model.stream([BEAR, CAR], n=n, seed=4, best_of=best_of))
    assert all(1 <= len(piece) <= max(1, sampling.CHUNK // best_of) for piece in pieces)
    np.testing.assert_array_equal(
        np.concatenate(pieces), model.sample([BEAR, CAR], n=n, seed=4, best_of=best_of)
    )


def test_a_saved_model_is_the_model(model, tmp_path):
    model.save(tmp_path / "new" / "saved")
    again = dallegan.load(tmp_path / "new" / "saved")
    assert again.config == model.config
    assert jax.tree.structure(again.params) == jax.tree.structure(model.params)
    rounded = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), model.params)
    np.testing.assert_array_equal(
        again.sample([BEAR], n=2), dataclasses.replace(model, params=rounded).sample([BEAR], n=2)
    )
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


def test_a_model_made_in_code_can_be_saved_and_loaded(model, tmp_path):
    dataclasses.replace(model, config=dataclasses.replace(model.config, workdir="")).save(
        tmp_path / "saved"
    )  # as Config() has it
    np.testing.assert_array_equal(
        dallegan.load(tmp_path / "saved").tokenizer.encode("a cat"), model.tokenizer.encode("a cat")
    )
