import dataclasses
import json
import re

import pytest
from annotated_types import Ge
from conftest import ROOT, TINY, tiny

from dallegan.config import (
    Config,
    _settings,
    check,
    conflicts,
    flatten,
    from_json,
    load_preset,
    presets,
    to_json,
)
from dallegan.errors import UserError
from dallegan.io.cli import debug, parse_config


@pytest.mark.parametrize("name", presets())
def test_presets_are_valid_and_survive_json(name):
    config = load_preset(name)
    check(config)
    assert config.workdir == f"runs/{name}"
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize("name", presets())
def test_debug_makes_a_small_run_of_any_preset(name):
    config, small = load_preset(name), debug(load_preset(name))
    check(small)
    assert (small.workdir, small.steps, small.init_from) == (f"runs/{name}-debug", 10, "")
    assert small.data.size <= 32
    assert (small.model.recipe, small.model.tied) == (config.model.recipe, config.model.tied)
    for setting in ("refine", "detail", "shrink", "attention"):
        assert bool(getattr(small.model, setting)) == bool(getattr(config.model, setting)), setting
    assert small.loss == config.loss
    assert bool(small.log.evaluate) == bool(config.log.evaluate)
    assert parse_config([name, "--debug", "--steps", "3"]) == dataclasses.replace(small, steps=3)


@pytest.mark.parametrize("name", presets())
def test_headers_of_presets_are_short(name):
    header = (ROOT / "configs" / f"{name}.py").read_text().split('"""')[1]
    assert len(header.splitlines()) <= 10
    assert f"python train.py{' ' + name if name != 'quickstart' else ''}" in header


def test_every_number_has_a_lower_bound():
    for name, value in flatten(Config()).items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                assert any(isinstance(mark, Ge) for mark in _settings()[name]), name


def test_attention_may_be_nowhere():
    check(tiny(model__attention=()))


def test_presets_are_listed():
    table = (ROOT / "README.md").read_text().split("## Presets")[1].split("## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(presets())


def test_flags_override_a_preset():
    config = parse_config(
        ["dcgan", "--steps", "7", "--data.size", "64", "--optim.lr", "1e-3", "1e-4", "--data.flip"]
    )
    assert (config.steps, config.data.size, config.optim.lr, config.data.flip) == (7, 64, (1e-3, 1e-4), True)
    assert config.model.recipe == "dcgan"
    assert parse_config([]) == load_preset("quickstart")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__size": 48}, r"--data.size 48: must be 16 .* power of two, for example 32, 64, 128"),
        ({"data__size": 4}, "power of two"),
        (
            {"model__attention": (4, 8)},
            "--model.attention 8: blocks of 16 px work on maps of sides 4; take some of these",
        ),
        ({"optim__betas": (0.9, 1.0)}, "--optim.betas 0.9 1.0: must be a number from 0 to below 1"),
        ({"steps": 0}, "--steps 0"),
        ({"batch": 0}, "--batch 0"),
        ({"text__vocab": 100}, "--text.vocab 100"),
        ({"loss__penalty_share": 0.0}, "--loss.penalty-share"),
        ({"loss__penalty_share": 0.7}, "1, 1/2, 1/3"),
        (
            {"loss__penalty_share": 1 / 3, "loss__packing": 1.0},
            "must be 1, 1/2, 1/4, ... with --loss.packing",
        ),
        ({"loss__diversity": 1.0, "loss__packing": 1.0}, "--loss.packing and --loss.diversity: two ways"),
        ({"loss__penalty_share": 1e-7}, "--loss.penalty-share 1e-07: must be a number from 0.001 to 1"),
        (
            {"model__critic_widths": (), "model__critic_blocks": ()},
            "--model.critic-widths .none. and .*: need one value a resolution each, at least one",
        ),
        (
            {"model__critic_blocks": (1,)},
            "--model.critic-widths 16 16 and --model.critic-blocks 1: need one value",
        ),
        ({"model__blocks": 0}, "--model.blocks 0: must be a number from 1 to 256"),
        ({"model__critic_patch": 16}, "--model.critic-patch 16"),
        ({"model__detail": (0,)}, "--model.detail 0: must be a number from 1 to 65536"),
        (
            {"model__detail": (8, 8), "model__patch": 2},
            r"--model.detail 8 8: each halves --model.patch 2 and --model.critic-patch \d+; give fewer, or",
        ),
        (
            {"model__shrink": (1.0,) * 5},
            "--model.shrink 1.0 .*: has 5 values, and 16 px have 4 scales; give fewer",
        ),
        ({"model__shrink": (-1.0,)}, "--model.shrink -1.0: must be a number from 0 to 65536"),
        ({"model__recipe": "dcgan"}, "--loss.contrast"),
        ({"model__recipe": "unet"}, "--model.recipe unet: choose residual or dcgan"),
        ({"loss__adversarial": "wgan"}, "--loss.adversarial wgan: choose rpgan, hinge or nonsaturating"),
        ({"model__recipe": "dcgan", "loss__contrast": (0.0, 0.0), "optim__muon": 25.0}, "--optim.muon 25.0"),
        ({"text__width": 17}, "--text.width 17"),
        ({"log__samples": 0}, "--log.samples 0: must be at least 1"),
        ({"optim__lr": (-1.0, 0.0)}, "--optim.lr -1.0 0.0: must be at least 0"),
        ({"optim__lr": (float("nan"), 0.0)}, "--optim.lr nan 0.0: must be at least 0"),
        ({"optim__lr": (float("inf"), 0.0)}, "--optim.lr inf 0.0: must be at least 0, and finite"),
        ({"text__layers": 10**9}, "--text.layers 1000000000: must be a number from 1 to 256"),
        ({"model__width": 130}, "--model.width 130"),
        ({"seed": 2**32}, "--seed 4294967296: must be a number from 0 to below 4294967296"),
        ({"augment__cutout": 1.0}, "--augment.cutout 1.0: must be a number from 0 to below 1"),
        ({"model__attention": (4,) * 65}, "--model.attention: has 65 values; 64 are the most"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check(tiny(**changes))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        '{"data": ' * 100_000,
        "[]",
        "{",
        "null",
        "3",
        '{"data": 3}',
        '{"data": null}',
        '{"data": {"size": "32"}}',
        '{"data": {"size": 32.5}}',
        '{"data": {"size": true}}',
        '{"data": {"flip": 1}}',
        '{"text": {"encoder": "lstm"}}',
        '{"text": {"encoder": ["rnn"]}}',
        '{"model": {"detail": 3}}',
        '{"model": {"detail": "64"}}',
        '{"model": {"detail": [[64]]}}',
        '{"model": {"detail": ["64"]}}',
        '{"model": {"detail": [true]}}',
        '{"optim": {"lr": [1, 2, 3]}}',
        '{"optim": {"muon": false}}',
        '{"unheard_of": 1}',
        '{"model": {"unheard_of": 1}}',
    ],
)
def test_not_a_configuration(text):
    with pytest.raises(UserError, match=r"not a dallegan configuration: \w+"):
        from_json(text)


def test_what_is_wrong_in_a_file_is_shown_short_and_escaped():
    for text in ('{"data": {"size": "\\u001b[31m%s"}}' % ("9" * 10_000), '{"\\u001b[31m": 1}'):
        with pytest.raises(UserError, match=r"\\x1b\[31m") as caught:
            from_json(text)
        assert len(str(caught.value)) < 200
        assert "\x1b" not in str(caught.value)
    with pytest.raises(UserError, match=r"data\.size is '32'"):
        from_json('{"data": {"size": "32"}}')


def test_integers_may_stand_for_floats():
    config = from_json('{"optim": {"lr": [1, 0], "muon": 25}, "model": {"shrink": [2, 1]}}')
    assert (config.optim.lr, config.optim.muon, config.model.shrink) == ((1, 0), 25, (2, 1))
    assert json.loads(to_json(config))["model"]["detail"] == []


def test_conflicts_name_the_fields_and_allow_what_changes_nothing():
    assert conflicts(TINY, tiny(model__width=32, steps=9)) == {"steps": (6, 9), "model.width": (16, 32)}
    free = {
        "workdir": "x",
        "log__samples": 5,
        "data__threads": 3,
        "parallel__strategy": "pmap",
        "parallel__fsdp": 2,
    }
    assert not conflicts(
        TINY, tiny(**free, parallel__coordinator="host:1", parallel__process=1, parallel__processes=2)
    )
    assert list(conflicts(TINY, tiny(parallel__accumulate=2))) == ["parallel.accumulate"]


def test_config_is_hashable_and_frozen():
    assert hash(TINY) == hash(tiny())
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.steps = 3
