"""The claims of the design about the four parts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Jitted, tiny
from jaxtyping import TypeCheckError

from dallegan.models.gan import Gan

KEY = jax.random.key(0)


@functools.cache
def make(size=32, **changes):
    config = tiny(**changes)
    return Jitted(Gan(config.text, config.model, size))


def inputs(gan, batch=3):
    tokens = jax.random.randint(KEY, (batch, gan.text.length), 3, 500).at[:, 12:].set(0)
    return tokens, jax.random.normal(KEY, (batch, gan.model.noise))


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_annotated_shapes_are_checked():
    gan = make()
    params, (tokens, noise) = jax.eval_shape(gan.init, KEY), inputs(gan)
    jax.eval_shape(gan.synthesize, params, tokens, noise)
    for bad in ((tokens, noise[:2]), (tokens[0], noise), (tokens, noise[0]), (tokens.astype(float), noise)):
        with pytest.raises(TypeCheckError):
            jax.eval_shape(gan.synthesize, params, *bad)


@pytest.mark.parametrize("encoder", ["rnn", "transformer"])
@pytest.mark.parametrize("recipe", ["residual", "dcgan"])
def test_shapes(encoder, recipe):
    gan = make(text__encoder=encoder, model__recipe=recipe)
    params, (tokens, noise) = gan.init(KEY), inputs(gan)
    text = gan.encode(params, tokens)
    assert text.sentence.shape == (3, 16)
    assert text.tokens.shape == (3, 14, 16)
    assert text.mask.shape == (3, 14)
    assert text.mask.dtype == bool
    h = gan.generate(params, text, noise)
    assert h.map.shape == (3, 8, 8, h.map.shape[-1])
    image = gan.decode(params, h)
    assert image.shape == (3, 32, 32, 3)
    assert image.dtype == jnp.float32
    assert jnp.abs(image).max() <= 1
    np.testing.assert_allclose(image, gan.synthesize(params, tokens, noise), atol=1e-6)
    assert gan.discriminate(params, image, tokens).shape == (3,)


@pytest.mark.parametrize("recipe", ["residual", "dcgan"])
def test_bytes_are_not_taken_for_pictures(recipe):
    critic, image = make(model__recipe=recipe).gan.critic, jnp.zeros((1, 16, 16, 3), jnp.uint8)
    with pytest.raises(TypeError, match=r"not uint8: use models.layers.to_float"):
        jax.eval_shape(lambda: critic.init(KEY, image, method="image_features"))


def test_match_is_the_sentence_term_of_the_score():
    gan = make()
    params, (tokens, noise) = gan.init(KEY), inputs(gan)
    seen, text = (
        gan.image_features(params, gan.synthesize(params, tokens, noise)),
        gan.encode_caption(params, tokens),
    )
    match = gan.match(params, seen.whole, text.sentence)
    assert match.shape == (3, 3)
    # another picture's sentence with one's own words changes the score by the difference of the two matches
    swapped = text.replace(sentence=text.sentence[::-1])
    np.testing.assert_allclose(
        gan.score(params, seen, swapped) - gan.score(params, seen, text),
        jnp.diag(match[:, ::-1]) - jnp.diag(match),
        atol=1e-5,
    )


def test_feedback_reaches_encoder_generator_and_decoder():
    gan = make(model__refine=8, model__patch=4, model__critic_patch=4, model__detail=(8, 4))
    params, (tokens, noise) = gan.init(KEY), inputs(gan)
    # a block's last layer starts at zero, and hides what is before it at the very first step: move off that
    # point
    params = jax.tree.map(lambda p: p + 0.02 * jax.random.normal(KEY, p.shape), params)

    def feedback(generator):
        p = params | {"generator": generator}
        return jnp.sum(gan.discriminate(p, gan.synthesize(p, tokens, noise), tokens))

    gradient = jax.jit(jax.grad(feedback))(params["generator"])
    for part in ("encoder", "generator", "decoder", "up", "mapping"):
        norms = [float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient[part])]
        assert all(n > 0 for n in norms), part


def test_the_decoder_runs_the_generators_own_block():
    gan = make()
    params, (tokens, noise) = gan.init(KEY), inputs(gan)
    text = gan.encode(params, tokens)
    params = jax.tree.map(lambda p: p + 0.02 * jax.random.normal(KEY, p.shape), params)
    h = gan.generate(params, text, noise)
    image = gan.decode(params, h)
    # there is one block, and a change to it changes both
    assert "up" in params["generator"]
    assert not any(name.startswith("up") for name in params["generator"]["decoder"])
    changed = params | {
        "generator": params["generator"] | {"up": jax.tree.map(lambda p: p * 1.1, params["generator"]["up"])}
    }
    assert jnp.abs(gan.generate(changed, text, noise).map - h.map).max() > 1e-4
    assert jnp.abs(gan.decode(changed, h) - image).max() > 1e-4


def test_a_feature_map_is_decoded_with_the_caption_and_noise_it_was_made_from():
    """It carries style and caption, so that no other ones can be passed; two maps of a batch do not mix."""
    gan = make(model__patch=1, model__critic_patch=1)
    params, (tokens, noise) = gan.init(KEY), inputs(gan)
    params = jax.tree.map(lambda p: p + 0.02 * jax.random.normal(KEY, p.shape), params)
    h = gan.generate(params, gan.encode(params, tokens), noise)
    image, other = gan.decode(params, h), gan.decode(params, h.replace(style=h.style[::-1]))
    assert jnp.abs(image[0] - other[0]).max() > 1e-4, "the decoder reads the style"
    np.testing.assert_allclose(image[1], other[1], atol=1e-6)


def test_resolution_costs_only_modulation_when_tied():
    sizes = {
        tied: [
            count(jax.eval_shape(make(size, model__tied=tied).gan.init, KEY)["generator"])
            for size in (32, 64, 128)
        ]
        for tied in (True, False)
    }
    m = tiny().model
    modulation = (m.style + 1) * 4 * m.width * m.blocks
    assert np.diff(sizes[True]).tolist() == [modulation, modulation]
    block = jax.eval_shape(make().gan.init, KEY)["generator"]["up"]
    at_work = count(block) - count(block["attention"])  # tiny attends at 4×4 alone
    assert np.diff(sizes[False]).tolist() == [modulation + at_work] * 2


def test_functions_work_under_jit_vmap_and_grad():
    gan = make()
    params, (tokens, noise) = gan.init(KEY), inputs(gan)
    image = gan.synthesize(params, tokens, noise)
    np.testing.assert_allclose(gan.gan.synthesize(params, tokens, noise), image, atol=1e-5)
    one = jax.jit(jax.vmap(lambda t, z: gan.synthesize(params, t[None], z[None])[0]))(tokens, noise)
    np.testing.assert_allclose(one, image, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(gan.synthesize(params, tokens, z) ** 2)))(noise)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("recipe", ["residual", "dcgan"])
def test_scores_are_not_rounded_to_bfloat16(recipe):
    """Whose steps between scores of 16 and 32 are an eighth: losses take their differences."""
    gan = Jitted(dataclasses.replace(make(model__recipe=recipe).gan, dtype=jnp.bfloat16))
    params, tokens = gan.init(KEY), jnp.ones((8, gan.text.length), jnp.int32)
    scores = gan.discriminate(params, jax.random.normal(KEY, (8, 32, 32, 3)), tokens)
    assert scores.dtype == jnp.float32
    assert (scores.astype(jnp.bfloat16).astype(jnp.float32) != scores).any()


def test_pictures_of_a_batch_do_not_mix():
    gan = make()
    params, tokens = gan.init(KEY), inputs(gan)[0]
    params = jax.tree.map(lambda p: p + 0.02, params)
    image = jax.random.normal(KEY, (3, 32, 32, 3))
    gradient = jax.jit(jax.jacrev(lambda x: gan.discriminate(params, x, tokens)))(image)
    for i in range(3):
        for k in range(3):
            assert (float(jnp.abs(gradient[i, k]).max()) > 0) == (i == k)


def test_padding_does_not_change_a_caption():
    for changes in (
        {"text__encoder": "rnn"},
        {"text__encoder": "rnn", "text__prenorm": True},
        {"text__encoder": "transformer"},
    ):
        gan = make(**changes)
        params, tokens = gan.init(KEY), inputs(gan)[0]
        assert not tokens[:, 12:].any()
        short, long = gan.encode(params, tokens[:, :12]), gan.encode(params, tokens)
        np.testing.assert_allclose(short.sentence, long.sentence, atol=1e-5)


@pytest.mark.parametrize(("prenorm", "least", "most"), [(False, 0.0, 0.05), (True, 0.1, 0.3)])
def test_a_fresh_gru_hears_the_order_of_words_through_a_layer_norm(prenorm, least, most):
    """Swapping two words moves the sentence by this fraction of the distance to another sentence."""
    gan = make(text__prenorm=prenorm)
    params, tokens = gan.init(KEY), jax.random.randint(KEY, (32, 12), 3, 500)
    sentence = lambda order: gan.encode(params, tokens[:, jnp.array(order)]).sentence
    usual = sentence([*range(12)])
    far = lambda other: float(jnp.mean(jnp.linalg.norm(usual - other, axis=1)))
    assert least < far(sentence([0, 1, 2, 3, 5, 4, *range(6, 12)])) / far(jnp.roll(usual, 1, 0)) < most


def test_the_empty_caption_is_finite():
    gan = make()
    params, (tokens, noise) = gan.init(KEY), inputs(gan)
    assert jnp.isfinite(gan.synthesize(params, tokens * 0, noise)).all()


@pytest.mark.parametrize("recipe", ["residual", "dcgan"])
def test_bfloat16_computes_close_to_float32_and_returns_float32(recipe):
    gan = make(model__recipe=recipe)
    half = Jitted(Gan(gan.text, gan.model, gan.size, jnp.bfloat16))
    params, (tokens, noise) = gan.init(KEY), inputs(gan)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(half.init(KEY)))
    image = half.synthesize(params, tokens, noise)
    assert image.dtype == jnp.float32
    assert jnp.abs(image - gan.synthesize(params, tokens, noise)).max() < 0.05
    assert half.discriminate(params, image, tokens).dtype == jnp.float32
    text = half.encode(params, tokens)
    h = half.generate(params, text, noise)
    assert {x.dtype for x in (text.sentence, text.tokens, h.map)} == {jnp.dtype("float32")}
    assert jnp.abs(image - half.decode(params, h)).max() < 0.01
