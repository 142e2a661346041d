"""Fine-tuning: a run computes what its model did, and a network that cannot is refused."""

import shutil

import jax
import numpy as np
import pytest
from conftest import Jitted, tiny

import dallegan
from dallegan import loop
from dallegan.data.pipeline import make_source, make_tokenizer
from dallegan.errors import UserError
from dallegan.loop import load_origin, train
from dallegan.models.layers import shrink
from dallegan.optim import make_optimizer
from dallegan.sampling import Model, make_gan
from dallegan.state import init_state
from dallegan.warmstart import enlarge, start_from


def begun(workdir, origin, **changes):
    """Returns the model that a run which fine-tunes `origin` begins with, without the run."""
    config = tiny(workdir=str(workdir), init_from=str(origin), **changes)
    model, made = load_origin(config), make_tokenizer(make_source(config), config)
    tokenizer = model.tokenizer.extended(made, config.text.vocab)
    gan = make_gan(config, tokenizer.size)
    state = jax.jit(lambda: init_state(gan, make_optimizer(gan, config.optim, config.steps), config.seed))()
    params = enlarge(model.params, config.data.size // model.config.data.size)
    return Model(gan, start_from(state, params).params, tokenizer, config)


def inputs(model, *captions, seed=0):
    """Returns token ids and noise for the captions."""
    noise = np.random.default_rng(seed).normal(size=(len(captions), model.gan.model.noise))
    return model.tokenizer.encode(list(captions)), noise.astype(np.float32)


def test_a_run_may_start_from_a_trained_model(finished, tmp_path):
    """Without learning, the model comes out as it went in, whether `init_from` is a run or a saved model."""
    shutil.copytree(finished, tmp_path / "trained")
    model = dallegan.load(finished)
    model.save(tmp_path / "saved")
    rates = {"optim__lr": (0.0, 0.0), "optim__lr_d": (0.0, 0.0)}
    for origin in (tmp_path / "trained", tmp_path / "saved"):
        workdir = tmp_path / f"from-{origin.name}"
        workdir.mkdir()  # left by a kill before the first checkpoint, with the tokenizer of another origin
        (workdir / "tokenizer.model").write_bytes(b"rubbish")
        config = tiny(workdir=str(workdir), steps=2, init_from=str(origin), **rates)
        train(config)
        again = dallegan.load(config.workdir)
        assert again.tokenizer.encode("a cat").tolist() == model.tokenizer.encode("a cat").tolist()
        expected = jax.tree.leaves(dallegan.load(origin).params)
        for new, old in zip(jax.tree.leaves(again.params), expected, strict=True):
            np.testing.assert_allclose(new, old, rtol=1e-6)  # the moving average rounds
    # a run that has begun does not need its origin any more
    shutil.rmtree(tmp_path / "trained" / "checkpoints")
    away = str(tmp_path / "trained")
    train(tiny(workdir=str(tmp_path / "from-trained"), steps=2, init_from=away, **rates))
    with pytest.raises(UserError, match=r"--init-from: .* is not a model"):
        train(tiny(workdir=str(tmp_path / "other"), steps=2, init_from=away, **rates))
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_network_with_more_blocks_starts_where_the_model_stood(finished, tmp_path):
    """Its images and scores are the same, to rounding: new layers are the identity until they learn."""
    deeper = {"model__blocks": 2, "model__critic_blocks": (2, 3), "model__refine": 8, "model__detail": (8,)}
    small, large = dallegan.load(finished), begun(tmp_path / "deeper", finished, **deeper)
    large.save(tmp_path / "saved")
    had, has = (jax.tree.structure(m.params["generator"]["decoder"]) for m in (small, large))
    assert had != has
    had, has = (jax.tree.leaves(m.params["discriminator"]) for m in (small, large))
    assert sum(x.size for x in had) < sum(x.size for x in has)
    tokens, noise = inputs(small, "a cat", "a red car")
    narrow, wide = Jitted(small.gan), Jitted(large.gan)
    images = narrow.synthesize(small.params, tokens, noise)
    assert float(np.std(images)) > 0.01
    np.testing.assert_allclose(wide.synthesize(large.params, tokens, noise), images, atol=1e-5)
    scores = narrow.discriminate(small.params, images, tokens)
    np.testing.assert_allclose(wide.discriminate(large.params, images, tokens), scores, atol=1e-4)
    settings = (
        r"model.refine: 8 -> 0; model.detail: \(8,\) -> \(\); model.blocks: 2 -> 1; model.critic_blocks"
    )
    with pytest.raises(UserError, match=rf"another network \({settings}"):  # fewer blocks are no continuation
        train(tiny(workdir=str(tmp_path / "flatter"), init_from=str(tmp_path / "saved")))
    assert not (tmp_path / "flatter").exists()


@pytest.mark.slow
def test_captions_with_new_words_start_where_the_model_stood(finished, tmp_path):
    """New words are new rows; a caption of words that the model knows is encoded as it was."""
    small, large = dallegan.load(finished), begun(tmp_path / "pairs", finished, data__objects=2)
    for player in ("generator", "discriminator"):
        had, has = (m.params[player]["encoder"]["embed"]["embedding"] for m in (small, large))
        assert len(had) == small.tokenizer.size < len(has) == large.tokenizer.size
        np.testing.assert_array_equal(has[: len(had)], had)
        assert np.std(has[len(had) :]) > 0.01
    captions = ["a red cat", "雪地里有一只猫"]
    np.testing.assert_array_equal(large.sample(captions), small.sample(captions))


@pytest.mark.slow
def test_a_run_may_add_shrinkage(finished, tmp_path, monkeypatch, capsys):
    """Shrinkage has no parameters: the first images are the model's, shrunk, and a warning says so."""
    scales = (9.0, 4.0)
    small, large = dallegan.load(finished), begun(tmp_path / "shrunk", finished, model__shrink=scales)
    tokens, noise = inputs(small, "a red cat")
    plain = Jitted(small.gan).synthesize(small.params, tokens, noise)
    shrunk = Jitted(large.gan).synthesize(large.params, tokens, noise)
    assert np.abs(shrunk - plain).max() > 1e-3
    np.testing.assert_allclose(shrunk, shrink(plain, scales), atol=1e-5)
    monkeypatch.setattr(loop, "make_gan", lambda *_: pytest.fail("far enough"))
    capsys.readouterr()
    with pytest.raises(pytest.fail.Exception):
        train(tiny(workdir=str(tmp_path / "shrunk"), init_from=str(finished), model__shrink=scales))
    message = "its images change at once (model.shrink: () -> (9.0, 4.0))"
    assert f"warning: not the shrinkage of {finished}: {message}" in capsys.readouterr().err


def test_a_gru_may_begin_to_read_through_a_layer_norm_and_not_stop(finished, tmp_path):
    model = begun(tmp_path / "normed", finished, text__prenorm=True)
    small, large = (m.params["generator"]["encoder"] for m in (dallegan.load(finished), model))
    assert set(large) - set(small) == {"norm0"}
    np.testing.assert_array_equal(large["forward0"]["hr"]["kernel"], small["forward0"]["hr"]["kernel"])
    model.save(tmp_path / "saved")
    with pytest.raises(UserError, match=r"another network \(text.prenorm: True -> False\)"):
        train(tiny(workdir=str(tmp_path / "plain"), init_from=str(tmp_path / "saved")))


@pytest.mark.slow
def test_larger_images_start_where_the_model_stood(finished, tmp_path):
    """In larger patches, each pixel is drawn four times, and the discriminator sees the mean of four pixels.

    Refinement may be new or wider, attention new or the same, detail stages new or more, and captions longer.
    """
    larger = {"data__size": 32, "model__patch": 4, "model__critic_patch": 8, "text__length": 18}
    plain, had = dallegan.load(finished), tiny(model__refine=8, model__detail=(8,), model__attention=())
    gan = make_gan(had, plain.tokenizer.size)
    disturb = lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape)
    params = jax.tree.map(disturb, jax.jit(gan.init)(jax.random.key(0)))
    Model(gan, params, plain.tokenizer, had).save(tmp_path / "saved")
    saved = dallegan.load(tmp_path / "saved")  # rounded to bfloat16
    new = {"model__refine": 8, "model__detail": (8,)}
    more = {"model__refine": 12, "model__detail": (8, 4), "model__attention": (4, 8)}
    for small, origin, parts in ((plain, finished, new), (saved, tmp_path / "saved", more)):
        large = begun(tmp_path / "new", origin, **larger, **parts)
        tokens, noise = inputs(small, "a cat", "a red car")
        narrow, wide = Jitted(small.gan), Jitted(large.gan)
        images = narrow.synthesize(small.params, tokens, noise)
        assert float(np.std(images)) > 0.01
        repeated = np.repeat(np.repeat(images, 2, 1), 2, 2)
        np.testing.assert_allclose(wide.synthesize(large.params, tokens, noise), repeated, atol=1e-4)
        images = np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
        means = images.reshape(2, 16, 2, 16, 2, 3).mean((2, 4))
        scores = narrow.discriminate(small.params, means, tokens)
        found = wide.discriminate(large.params, images, tokens)
        np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"another network \(data.size: 16 -> 32; model.patch: 2 -> 4\)"):
        train(tiny(workdir=str(tmp_path / "seen"), init_from=str(finished), data__size=32, model__patch=4))
    assert not (tmp_path / "seen").exists()


@pytest.mark.slow
def test_a_run_with_another_network_begins_with_that_model(finished, tmp_path):
    """What the tests above compare is what a run begins with, all of it at once."""
    changes = {
        "data__size": 32, "data__objects": 2, "model__patch": 4, "model__critic_patch": 8, "text__length": 28,
        "text__prenorm": True, "model__blocks": 2, "model__critic_blocks": (1, 2), "model__refine": 8,
        "model__detail": (8,), "steps": 1, "log__evaluate": 0, "optim__lr": (0.0, 0.0),
        "optim__lr_d": (0.0, 0.0),
    }  # fmt: skip
    expected = begun(tmp_path / "run", finished, **changes)
    train(expected.config)
    found = dallegan.load(tmp_path / "run")
    assert found.tokenizer.encode("a red cat").tolist() == expected.tokenizer.encode("a red cat").tolist()
    assert jax.tree.structure(found.params) == jax.tree.structure(expected.params)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_model_of_another_width_is_refused(finished, tmp_path):
    with pytest.raises(UserError, match=r"another network \(model.width: 16 -> 32\)"):
        train(tiny(workdir=str(tmp_path / "wide"), init_from=str(finished), model__width=32))
    assert not (tmp_path / "wide").exists()
