import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import tiny

from dallegan import losses
from dallegan.augment import augment, sample_params
from dallegan.data.pipeline import make_batches, make_dataset, make_source, make_tokenizer
from dallegan.models.gan import Gan
from dallegan.models.layers import to_float
from dallegan.optim import make_optimizer
from dallegan.state import Stream, init_state, stream
from dallegan.steps import DIVERSITY_STRIDE, make_train_step

DCGAN = {
    "model__recipe": "dcgan",
    "loss__contrast": (0.0, 0.0),
    "optim__betas": (0.5, 0.99),
    "optim__muon": 0.0,
    "loss__gamma": (0.0, 0.0),
}


@functools.cache
def build(**changes):
    config = tiny(**changes)
    gan = Gan(config.text, config.model, config.data.size)
    adam = make_optimizer(gan, config.optim, config.steps)
    return jax.jit(lambda: init_state(gan, adam, config.seed))(), jax.jit(make_train_step(gan, adam, config))


@pytest.fixture(scope="module")
def batches():
    config = tiny()
    source = make_source(config)
    found = make_batches(make_dataset(source, make_tokenizer(source, config), config), config, 0)
    return [next(found) for _ in range(4)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="rpgan"),
        pytest.param({"loss__adversarial": "hinge"}, id="hinge", marks=pytest.mark.slow),
        pytest.param({"loss__adversarial": "nonsaturating"}, id="nonsaturating", marks=pytest.mark.slow),
        pytest.param(DCGAN, id="dcgan"),
    ],
)
def test_a_step_moves_everything_and_is_deterministic(batches, changes):
    state, step = build(**changes)
    new, metrics = step(state, batches[0])
    again, _ = step(state, batches[0])
    assert same(new, again)
    assert int(new.step) == 1
    assert int(new.skipped) == 0
    for side, parts in (
        ("generator", ("encoder", "generator", "decoder")),
        ("discriminator", ("encoder", "discriminator")),
    ):
        for part in parts:
            assert not same(new.params[side][part], state.params[side][part]), (side, part)
    assert not same(new.ema, state.ema)
    assert all(jnp.isfinite(v) for v in metrics.values())
    assert {"d_loss", "g_loss", "r1", "r2", "match_gap", "grad_norm_g", "grad_norm_d"} <= set(metrics)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(batches):
    state, step = build()
    spoilt = state.replace(params=jax.tree.map(lambda p: p + jnp.inf, state.params))
    for n in (1, 2):
        new, _ = step(spoilt, batches[0])
        for part in ("params", "ema", "opt"):
            assert same(getattr(new, part), getattr(spoilt, part)), part
        assert (int(new.step), int(new.skipped), int(new.skipped_in_a_row)) == (n, n, n)
        spoilt = new
    mended = spoilt.replace(params=state.params)
    new, _ = step(mended, batches[0])
    assert (int(new.skipped), int(new.skipped_in_a_row)) == (2, 0)
    assert not same(new.params, state.params)


@pytest.mark.parametrize("term", ["packing", pytest.param("diversity", marks=pytest.mark.slow)])
def test_each_player_follows_the_gradient_of_its_own_loss_alone(batches, term):
    config = tiny(augment__shift=0.0, text__length=6, **{f"loss__{term}": 2.0})
    batch = {k: v if k == "image" else v[:, :6] for k, v in batches[0].items()}
    gan = Gan(config.text, config.model, config.data.size, packing=term == "packing")
    plain = optax.sgd(1.0)
    state = jax.jit(lambda: init_state(gan, plain, config.seed))()
    params = jax.tree.map(
        lambda p: p + 0.02 * jax.random.normal(jax.random.key(5), p.shape), state.params
    )  # off the zeros of the first step
    state = state.replace(params=params)
    new, _ = jax.jit(make_train_step(gan, plain, config))(state, batch)

    real, tokens, negative = to_float(batch["image"]), batch["tokens"], batch["negative"]
    z = jax.random.normal(stream(config.seed, 0, Stream.NOISE), (config.batch, gan.model.noise))
    z_again = jax.random.normal(
        stream(config.seed, 0, Stream.NOISE_AGAIN), (config.batch // DIVERSITY_STRIDE, gan.model.noise)
    )
    drawn = jax.jit(gan.synthesize)(params, tokens, z)
    same = (tokens[:, None] == jnp.concatenate([tokens, negative])).all(-1)
    valid = (tokens != negative).any(1)

    def contrast(p, image):
        sentences = jnp.concatenate(
            [gan.encode_caption(p, tokens).sentence, gan.encode_caption(p, negative).sentence]
        )
        return losses.contrastive_loss(gan.match(p, gan.image_features(p, image).whole, sentences), same)

    packing = term == "packing"
    # of the pair, for a head that does not train the trunk
    fixed = [gan.image_features(params, x[:2]) for x in (real, drawn)]

    def d_loss(d):
        p = {"discriminator": d}
        own = gan.discriminate(p, real, tokens)
        game = losses.RPGAN.discriminator(own, gan.discriminate(p, drawn, tokens))
        matching = losses.matching_loss(own, gan.discriminate(p, real, negative), valid)
        # half of the rows: every second one, or the first four of eight
        rows = slice(0, 4) if packing else slice(None, None, 2)

        def scores(x):
            found = gan.discriminate(p, x, tokens[rows])
            pair = lambda: gan.score_pairs(p, gan.image_features(p, x[:2]))
            return jnp.append(found, 2 * pair()) if packing else found

        r1, r2 = (jnp.mean(losses.gradient_penalty(scores, image[rows])) for image in (real, drawn))
        game += 2 * losses.RPGAN.discriminator(*(gan.score_pairs(p, x) for x in fixed)) if packing else 0
        return game + matching + contrast(p, real) + 0.5 * (r1 + r2)

    def g_loss(g):
        p = {"generator": g, "discriminator": params["discriminator"]}
        image, again = gan.synthesize(p, tokens, z), gan.synthesize(p, tokens[::DIVERSITY_STRIDE], z_again)
        game = losses.RPGAN.generator(gan.discriminate(p, real, tokens), gan.discriminate(p, image, tokens))
        if packing:
            scores = gan.score_pairs(p, fixed[0]), gan.score_pairs(p, gan.image_features(p, image[:2]))
            pairs = losses.RPGAN.generator(*scores)
            return game + contrast(p, image) + 2 * pairs
        diversity = losses.diversity_loss(*map(losses.layout, (image[::DIVERSITY_STRIDE], again, real)))
        return game + contrast(p, image) + 2 * diversity

    for side, loss in (("discriminator", d_loss), ("generator", g_loss)):
        expected = jax.jit(jax.grad(loss))(params[side])
        for path, gradient in jax.tree_util.tree_leaves_with_path(expected):
            scale = float(jnp.abs(gradient).max())
            moved = [dict(jax.tree_util.tree_leaves_with_path(s.params[side]))[path] for s in (state, new)]
            np.testing.assert_allclose(
                moved[0] - moved[1],
                gradient,
                atol=2e-3 * scale + 1e-5,
                err_msg=f"{side} {jax.tree_util.keystr(path)}",
            )


def test_the_discriminator_learns_to_tell(batches):
    state, step = build(steps=60)
    found, gaps = [], []
    for _ in range(60):
        state, metrics = step(state, batches[0])  # one batch, over and over: learnable by heart
        found.append(float(metrics["d_loss"]))
        gaps.append(float(metrics["match_gap"]))
    assert np.mean(found[-5:]) < 0.7 * np.mean(found[:5])
    assert np.mean(gaps[-5:]) > 0.2 + np.mean(gaps[:5])


def test_penalty_equals_a_finite_difference(batches):
    config, (state, step) = tiny(augment__shift=0.0), build(augment__shift=0.0)
    _, metrics = step(state, batches[0])
    real, tokens = to_float(batches[0]["image"])[::2], batches[0]["tokens"][::2]
    gan = Gan(config.text, config.model, config.data.size)
    text, eps, total = gan.encode_caption(state.params, tokens), 1e-2, 0.0
    score = jax.jit(lambda x, t: gan.score(state.params, gan.image_features(state.params, x), t))
    # E |∇D|² = E over random directions u ~ N(0, I) of (∂D/∂u)²
    u = jax.random.normal(jax.random.key(1), (4000, *real.shape[1:]))
    for i in range(len(real)):
        one = jax.tree.map(lambda t, i=i: jnp.broadcast_to(t[i], (len(u), *t.shape[1:])), text)
        total += float(
            jnp.mean(((score(real[i] + eps * u, one) - score(real[i] - eps * u, one)) / (2 * eps)) ** 2)
        )
    np.testing.assert_allclose(metrics["r1"], total / len(real), rtol=0.1)


def test_keys_are_named_and_independent():
    a, b, c = stream(0, 1, Stream.NOISE), stream(0, 1, Stream.AUGMENT), stream(0, 2, Stream.NOISE)
    assert len({tuple(jax.random.key_data(k).tolist()) for k in (a, b, c, stream(1, 1, Stream.NOISE))}) == 4


def test_seeds_share_one_program_and_not_their_numbers(batches):
    (a, step), (b, other) = (build(seed=seed) for seed in (0, 1))
    assert step.lower(a, batches[0]).as_text() == other.lower(b, batches[0]).as_text()
    assert not same(a.params, b.params)
    assert not same(step(a, batches[0])[0].params, step(a.replace(seed=b.seed), batches[0])[0].params)


def test_real_and_generated_pictures_are_augmented_alike(batches):
    changes = {"augment__colour": 1.0, "augment__cutout": 0.5, "augment__shift": 0.125}
    config, (state, step), batch = tiny(**changes), build(**changes), batches[0]
    gan, params = Gan(config.text, config.model, config.data.size), state.params
    draws = sample_params(stream(config.seed, 0, Stream.AUGMENT), config.batch, 2)
    z = jax.random.normal(stream(config.seed, 0, Stream.NOISE), (config.batch, config.model.noise))
    metrics = step(state, batch)[1]
    score = jax.jit(lambda image: jnp.mean(gan.discriminate(params, image, batch["tokens"])))
    for name, image in {
        "score_real": to_float(batch["image"]),
        "score_fake": jax.jit(gan.synthesize)(params, batch["tokens"], z),
    }.items():
        assert float(metrics[name]) == pytest.approx(
            float(score(augment(image, draws, config.augment, 2))), abs=1e-5
        )
        assert float(metrics[name]) != pytest.approx(float(score(image)), abs=1e-4)


def test_a_batch_in_parts_is_the_whole_batch(batches, monkeypatch):
    """The means agree without the contrastive term, which compares within a part, and if all rows count."""
    monkeypatch.setattr(
        "dallegan.optim.EPSILON", 1e-2
    )  # or a gradient that is rounding alone would be a whole step
    changes = {"loss__contrast": (0.0, 0.0), "loss__penalty_share": 1.0}
    state, whole = build(**changes)
    _, parts = build(**changes, parallel__accumulate=4)
    (a, told), (b, again) = whole(state, batches[0]), parts(state, batches[0])
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    for name in told:
        np.testing.assert_allclose(told[name], again[name], rtol=1e-4, atol=1e-6)
    assert not same(a.params, state.params)
