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
from dallegan.evaluation.judge import VALUES, WEIGHTS, Facts, Judge, facts, load_judge, log_likelihood, obeys, read

BEAR, CAR = Thing("bear", "brown", "big", "standing"), Thing("car", "red", "small", None)
ONE, PAIR = Scene("snow", (BEAR,)), Scene("snow", (BEAR, CAR), "right")  # the bear stands right of the car
ALL = Caption("", "en", frozenset({"place", "side", *(f"{i}.{k}" for i in (0, 1) for k in VALUES)}))


def seen(scene):
    """What a judge that is nearly sure of a scene reads."""
    truth = facts([scene])
    sure = lambda index, n: jnp.log(0.9 * jax.nn.one_hot(index, n) + 0.1 / n)
    sizes = {k: len(v) for k, v in VALUES.items()}
    return Facts(sure(truth.place, len(PLACES)), sure(truth.count, 2), {k: sure(v, sizes[k]) for k, v in truth.things.items()})


def verdict(scene, of, said=ALL):
    return {k for k, v in obeys(seen(of), facts([scene], [said])).items() if not v[0]}


def change(scene, i, **changes):
    return dataclasses.replace(scene, things=tuple(dataclasses.replace(t, **changes) if k == i else t for k, t in enumerate(scene.things)))


def test_facts_place_each_object_at_its_side():
    kinds = facts([ONE, PAIR]).things["kind"]
    bear, car = VALUES["kind"].index("bear"), VALUES["kind"].index("car")
    assert kinds.tolist() == [[bear, bear], [car, bear]]
    assert facts([ONE], [Caption("", "en", frozenset({"0.kind"}))]).things["colour"].tolist() == [[-1, -1]]


def test_each_thing_that_is_wrong_is_named_once():
    assert verdict(ONE, ONE) == verdict(PAIR, PAIR) == set()
    assert verdict(ONE, dataclasses.replace(ONE, place="sea")) == {"place", "all"}
    for scene in (ONE, PAIR):
        for name, value in {"kind": "cat", "colour": "blue", "size": "small", "pose": "sitting"}.items():
            assert verdict(scene, change(scene, 0, **{name: value})) == {name, "all"}, name
    assert verdict(PAIR, dataclasses.replace(PAIR, side="left")) == {"side", "all"}
    assert "count" in verdict(ONE, PAIR)
    assert {"count", "side"} <= verdict(PAIR, ONE)  # of one object no side can be told


def test_colours_bound_to_the_wrong_objects_are_seen():
    crossed = change(change(PAIR, 0, colour="red"), 1, colour="brown")
    assert verdict(PAIR, crossed) == {"colour", "all"}


def test_what_the_caption_leaves_out_is_not_asked():
    assert verdict(ONE, change(ONE, 0, colour="blue"), Caption("", "en", ALL.mentions - {"0.colour"})) == set()


def test_a_true_caption_is_likelier():
    said, false = facts([ONE, PAIR], [ALL] * 2), facts([change(ONE, 0, kind="cat"), change(PAIR, 1, colour="blue")], [ALL] * 2)
    what = jax.tree.map(lambda *x: jnp.concatenate(x), seen(ONE), seen(PAIR))
    sure = [np.log(0.9 + 0.1 / n) for n in (8, 2, 16, 10, 2, 3)]  # place, count, and the four of an object, counted once
    assert float(log_likelihood(what, said)[0]) == pytest.approx(np.mean(sure), rel=1e-4)
    short = facts([ONE, PAIR], [Caption("", "en", frozenset({"0.kind"}))] * 2)
    np.testing.assert_allclose(log_likelihood(what, said), log_likelihood(what, short), atol=0.02)  # saying little is no merit
    assert (log_likelihood(what, said) > log_likelihood(what, false)).all()


@pytest.mark.parametrize(("size", "objects", "least"), [(64, 1, 0.98), (64, 2, 0.97), (32, 1, 0.97), (32, 2, 0.9)])
@pytest.mark.parametrize("split", ["test", "heldout"])
def test_the_shipped_judge_reads_real_pictures(size, objects, least, split):
    source, judge = Storybook(size, split, 5, objects), load_judge()
    examples = [source.example(i) for i in range(300)]
    said = facts(*zip(*(e.truth for e in examples), strict=True))
    right = np.asarray(obeys(read(judge, np.stack([e.image for e in examples])), said)["all"])
    assert right.mean() >= least


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
    picture = lambda size: jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    params = jax.eval_shape(Judge().init, jax.random.key(0), picture(32))
    for size in (32, 64):
        assert jax.eval_shape(Judge().apply, params, picture(size)).place.shape == (2, len(PLACES))
    assert {name for name in params["params"] if "32" in name or "64" in name} == {"stem32", "stem64"}
