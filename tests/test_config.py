import dataclasses

import pytest
from conftest import TINY, tiny

from dallegan.config import check, conflicts, from_json, load_preset, presets, to_json
from dallegan.errors import UserError
from dallegan.io.cli import parse_config


@pytest.mark.parametrize("name", presets())
def test_presets_are_valid_and_survive_json(name):
    config = load_preset(name)
    check(config)
    assert config.workdir == f"runs/{name}"
    assert from_json(to_json(config)) == config


def test_attention_may_be_nowhere():
    check(tiny(model__attention=()))


def test_presets_are_listed():
    assert {"quickstart", "dcgan", "storybook32", "storybook64", "emoji64", "base256"} <= set(presets())


def test_flags_override_a_preset():
    config = parse_config(["dcgan", "--steps", "7", "--data.size", "64", "--optim.lr", "1e-3", "1e-4", "--data.flip"])
    assert (config.steps, config.data.size, config.optim.lr, config.data.flip) == (7, 64, (1e-3, 1e-4), True)
    assert config.model.recipe == "dcgan"
    assert parse_config([]) == load_preset("quickstart")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__size": 48}, r"--data.size 48: must be 8 .* power of two, for example 16, 32, 64"),
        ({"data__size": 4}, "power of two"),
        ({"model__attention": (4, 8)}, "--model.attention 8: blocks of 16 px work on maps of sides 4; take of these"),
        ({"optim__beta2": (0.9, 1.0)}, "--optim.beta2 0.9 1.0: must be from 0 to below 1"),
        ({"optim__eps": 0.0}, "--optim.eps 0.0: must be above 0"),
        ({"log__hang": 10**10}, "--log.hang 10000000000: must be a number from 0 to 1000000"),
        ({"steps": 0}, "--steps 0"),
        ({"batch": 0}, "--batch 0"),
        ({"model__base": 6}, "--model.base 6"),
        ({"text__heads": 3}, "--text.heads 3"),
        ({"text__vocab": 100}, "--text.vocab 100"),
        ({"loss__penalty_share": 0.0}, "--loss.penalty-share"),
        ({"loss__penalty_share": 0.7}, "1, 1/2, 1/3"),
        ({"loss__penalty_share": 1e-7}, "--loss.penalty-share 1e-07: must be 1, 1/2, 1/3, ..., 1/1000"),
        ({"model__critic_widths": (), "model__critic_blocks": ()}, "at least one block"),
        ({"model__critic_patch": 16}, "--model.critic-patch 16"),
        ({"model__detail": (0,)}, "--model.detail 0: must be a number from 1 to 65536"),
        ({"model__detail": (8, 8), "model__patch": 2}, r"--model.detail 8 8: each halves --model.patch 2 and --model.critic-patch \d+; take fewer, or"),
        ({"model__shrink": (1.0,) * 5}, "--model.shrink: 5 scales, each twice the one before: 16 px have 4"),
        ({"model__shrink": (-1.0,)}, "--model.shrink -1.0: must be a number from 0 to 65536"),
        ({"model__recipe": "dcgan"}, "--loss.contrast"),
        ({"model__recipe": "dcgan", "loss__contrast": (0.0, 0.0), "optim__muon": 25.0}, "--optim.muon 25.0"),
        ({"text__width": 17, "text__heads": 1}, "--text.width 17"),
        ({"log__samples": 0}, "--log.samples 0: must be at least 1"),
        ({"optim__lr": (-1.0, 0.0)}, "--optim.lr -1.0 0.0: must be at least 0"),
        ({"optim__lr": (float("nan"), 0.0)}, "--optim.lr nan 0.0: must be at least 0"),
        ({"optim__lr": (float("inf"), 0.0)}, "--optim.lr inf 0.0: must be at least 0, and finite"),
        ({"text__layers": 10**9}, "--text.layers 1000000000: must be a number from 1 to 256"),
        ({"model__width": 130}, "--model.width 130"),
        ({"seed": 2**32}, r"--seed 4294967296: must be below 2\^32"),
        ({"augment__cutout": 1.0}, "--loss.cutout 1.0: a share"),
        ({"loss__diversity": 1.0, "loss__apart": 0.0}, "--loss.apart 0.0: must be above 0"),
        ({"loss__diversity": 1.0, "data__size": 20, "model__patch": 5, "model__critic_patch": 5}, "--loss.diversity 1.0: needs .* multiple of 8"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check(tiny(**changes))


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "{", '{"data": 3}', '{"unheard_of": 1}', "null"])
def test_not_a_configuration(text):
    with pytest.raises(UserError, match="not a dallegan configuration"):
        from_json(text)


def test_conflicts_name_the_fields_and_allow_what_changes_nothing():
    assert conflicts(TINY, tiny(model__width=32, steps=9)) == ["steps: 6 -> 9", "model.width: 16 -> 32"]
    assert not conflicts(TINY, tiny(workdir="x", log__samples=5, parallel__strategy="pmap"))


def test_config_is_hashable_and_frozen():
    assert hash(TINY) == hash(tiny())
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.steps = 3
