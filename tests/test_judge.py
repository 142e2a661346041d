import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax

from dallegan.data.storybook.grammar import PLACES, Caption, Scene, Thing
from dallegan.data.storybook.scenes import Storybook
from dallegan.errors import UserError
from dallegan.evaluation.judge import (
    VALUES,
    WEIGHTS,
    Facts,
    Judge,
    classify,
    correct_attributes,
    encode_facts,
    load_judge,
    log_likelihood,
)

BEAR, CAR = Thing("bear", "brown", "big", "standing"), Thing("car", "red", "small", None)
ONE, PAIR = Scene("snow", (BEAR,)), Scene("snow", (BEAR, CAR), "right")  # the bear stands right of the car
ALL = Caption("", "en", frozenset({"place", "side", *(f"{i}.{k}" for i in (0, 1) for k in VALUES)}))


def confident(scene):
    """What a judge that is nearly sure of a scene reads."""
    truth = encode_facts([scene])
    sure = lambda index, n: jnp.log(0.9 * jax.nn.one_hot(index, n) + 0.1 / n)
    things = {name: sure(index, len(VALUES[name])) for name, index in truth.things.items()}
    return Facts(sure(truth.place, len(PLACES)), sure(truth.count, 2), things)


def wrong(scene, shown, caption=ALL):
    """The attributes that are wrong if an image shows one scene and its caption is of another."""
    found = correct_attributes(confident(shown), encode_facts([scene], [caption]))
    return {name for name, correct in found.items() if not correct[0]}


def change(scene, i, **changes):
    things = (dataclasses.replace(t, **changes) if k == i else t for k, t in enumerate(scene.things))
    return dataclasses.replace(scene, things=tuple(things))


def test_facts_place_each_object_at_its_side():
    kinds = encode_facts([ONE, PAIR]).things["kind"]
    bear, car = VALUES["kind"].index("bear"), VALUES["kind"].index("car")
    assert kinds.tolist() == [[bear, bear], [car, bear]]
    only_kind = Caption("", "en", frozenset({"0.kind"}))
    assert encode_facts([ONE], [only_kind]).things["colour"].tolist() == [[-1, -1]]


def test_each_thing_that_is_wrong_is_named_once():
    assert wrong(ONE, ONE) == wrong(PAIR, PAIR) == set()
    assert wrong(ONE, dataclasses.replace(ONE, place="sea")) == {"place", "all"}
    for scene in (ONE, PAIR):
        for name, value in {"kind": "cat", "colour": "blue", "size": "small", "pose": "sitting"}.items():
            assert wrong(scene, change(scene, 0, **{name: value})) == {name, "all"}, name
    assert wrong(PAIR, dataclasses.replace(PAIR, side="left")) == {"side", "all"}
    assert "count" in wrong(ONE, PAIR)
    assert {"count", "side"} <= wrong(PAIR, ONE)  # a single object has no side


def test_colours_bound_to_the_wrong_objects_are_seen():
    crossed = change(change(PAIR, 0, colour="red"), 1, colour="brown")
    assert wrong(PAIR, crossed) == {"colour", "all"}


def test_what_the_caption_leaves_out_does_not_count():
    without_colour = Caption("", "en", ALL.mentions - {"0.colour"})
    assert wrong(ONE, change(ONE, 0, colour="blue"), without_colour) == set()


def test_a_true_caption_is_likelier():
    named = encode_facts([ONE, PAIR], [ALL] * 2)
    false = encode_facts([change(ONE, 0, kind="cat"), change(PAIR, 1, colour="blue")], [ALL] * 2)
    read = jax.tree.map(lambda *x: jnp.concatenate(x), confident(ONE), confident(PAIR))
    # place, count, and the four attributes of an object, counted once
    sure = [np.log(0.9 + 0.1 / n) for n in (8, 2, 16, 10, 2, 3)]
    assert float(log_likelihood(read, named)[0]) == pytest.approx(np.mean(sure), rel=1e-4)
    short = encode_facts([ONE, PAIR], [Caption("", "en", frozenset({"0.kind"}))] * 2)
    # saying little is no merit
    np.testing.assert_allclose(log_likelihood(read, named), log_likelihood(read, short), atol=0.02)
    assert (log_likelihood(read, named) > log_likelihood(read, false)).all()


@pytest.mark.parametrize(
    ("size", "objects", "least"), [(64, 1, 0.98), (64, 2, 0.97), (32, 1, 0.97), (32, 2, 0.9)]
)
@pytest.mark.parametrize("split", ["test", "heldout"])
def test_the_shipped_judge_reads_real_images(size, objects, least, split):
    source, judge = Storybook(size, split, 5, objects), load_judge()
    examples = [source.example(i) for i in range(300)]
    named = encode_facts(*zip(*(example.truth for example in examples), strict=True))
    read = classify(judge, np.stack([example.image for example in examples]))
    assert np.mean(correct_attributes(read, named)["all"]) >= least


def test_weights_are_small_and_checked(tmp_path):
    assert WEIGHTS.stat().st_size <= 2_000_000
    with pytest.raises(UserError, match="cannot be read"):
        load_judge(tmp_path / "none")
    (tmp_path / "damaged").write_bytes(WEIGHTS.read_bytes()[:1000] + os.urandom(50))
    with pytest.raises(UserError, match="cannot be read"):
        load_judge(tmp_path / "damaged")
    safetensors.flax.save_file({"a": jnp.ones(3)}, tmp_path / "other")
    with pytest.raises(UserError, match="another network"):
        load_judge(tmp_path / "other")


def test_both_sizes_share_the_trunk():
    image = lambda size: jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    params = jax.eval_shape(Judge().init, jax.random.key(0), image(32))
    for size in (32, 64):
        assert jax.eval_shape(Judge().apply, params, image(size)).place.shape == (2, len(PLACES))
    assert {name for name in params["params"] if "32" in name or "64" in name} == {"stem32", "stem64"}
