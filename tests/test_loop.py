"""Training end to end: metrics, grids, resuming bit for bit, signals, conflicts."""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, Jitted, final, tiny
from PIL import Image

import dallegan
from dallegan import loop
from dallegan.config import from_json, to_json
from dallegan.data.pipeline import make_source, make_tokenizer
from dallegan.data.storybook.scenes import Storybook
from dallegan.errors import UserError
from dallegan.loop import train
from dallegan.models.layers import shrink
from dallegan.optim import make_optimizer
from dallegan.run.metrics_file import evaluated, read_metrics
from dallegan.run.log import Diverged, Log
from dallegan.run.processes import Clock
from dallegan.sampling import Model, make_gan
from dallegan.state import init_state
from dallegan.steps import make_train_step
from dallegan.warmstart import enlarge, start_from


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "done"
    train(tiny(workdir=str(workdir)))
    return workdir


def begun(config):
    """The model that a run of another network begins with, without the run."""
    origin, made = loop._origin(pathlib.Path(config.workdir), config), make_tokenizer(make_source(config), config)
    tokenizer = origin.tokenizer.extended(made, config.text.vocab)
    gan = make_gan(config, tokenizer.size)
    state = jax.jit(lambda: init_state(gan, make_optimizer(gan, config.optim, config.steps), config.seed))()
    return Model(gan, start_from(state, enlarge(origin.params, config.data.size // origin.config.data.size)).params, tokenizer, config)


def test_a_run_leaves_what_the_contract_says(finished):
    assert {"config.json", "metrics.jsonl", "samples", "checkpoints", "tokenizer.model"} <= {p.name for p in finished.iterdir()}
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [16, 32, 48]
    named = {"step", "images", "d_loss", "g_loss", "r1", "r2", "match_gap", "grad_norm_g", "grad_norm_d", "images_per_second", "data_wait"}
    assert named <= set(lines[0])
    assert all(np.isfinite(line["d_loss"]) and line["images_per_second"] > 0 and 0 <= line["data_wait"] <= 1 for line in lines)
    grids = sorted((finished / "samples").iterdir())
    assert [g.name for g in grids] == ["00000024.png", "00000048.png"]
    assert np.asarray(Image.open(grids[0])).std() > 10


def test_a_run_needs_a_directory():
    with pytest.raises(UserError, match="--workdir is empty"):
        train(tiny(workdir=""))


@pytest.mark.slow
def test_a_pretrained_encoder_takes_the_tokenizers_place(tmp_path):
    workdir = tmp_path / "run"
    train(tiny(workdir=str(workdir), text__encoder="frozen", steps=3))
    model = dallegan.load(workdir)
    text = model.gan.encode(model.params, model.tokenizer.encode(["一只猫", "a cat"]))
    assert (text.sentence.shape, text.tokens.shape, text.mask.shape) == ((2, 16), (2, 1, 16), (2, 1))
    model.save(tmp_path / "saved")
    saved = dallegan.load(tmp_path / "saved")
    images = saved.sample(["一只猫", "a cat"], n=2)
    np.testing.assert_array_equal(images[2:], saved.sample("a cat", n=2))
    assert saved.interpolate("一只猫", "a cat", 3).shape == (3, 16, 16, 3)
    done = subprocess.run(
        [sys.executable, "-m", "dallegan.commands.export", "--model", tmp_path / "saved", "--out", tmp_path / "cat.jax"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    subprocess.run([sys.executable, tmp_path / "cat.py"], cwd=tmp_path, check=True)
    with Image.open(tmp_path / "cat.png") as image:
        assert image.size == (16, 16)


def test_what_evaluation_tells_is_logged_when_it_was_told_and_the_best_is_kept(tmp_path, monkeypatch):
    scores = iter([0.9, 0.1])
    monkeypatch.setattr(loop, "make_quick", lambda config, source: lambda model: {"alignment": next(scores), "side": None})
    train(tiny(workdir=str(tmp_path / "run"), log__metrics=1000, log__evaluate=24, log__checkpoint=24, log__keep=1))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [24, 48]
    assert [line["alignment"] for line in lines] == [0.9, 0.1]
    assert lines[1]["side"] is None
    draw = lambda at: dallegan.load(f"{tmp_path / 'run'}{at}").sample("a red cat")
    np.testing.assert_array_equal(draw("@best"), draw("@3"))
    np.testing.assert_array_equal(draw("@6"), draw(""))
    assert not np.array_equal(draw("@3"), draw("@6"))
    with pytest.raises(UserError, match="no checkpoint @5: there are 3, 6"):
        draw("@5")


def test_training_then_sampling(finished):
    model = dallegan.load(finished)
    images = model.sample(["一只棕色的大熊站在雪地里"], n=2, seed=0)
    assert images.shape == (2, 16, 16, 3)
    assert images.dtype == np.uint8


def test_a_finished_run_is_left_alone(finished, capsys):
    before = final(finished)
    train(tiny(workdir=str(finished)))
    assert "complete" in capsys.readouterr().out
    assert final(finished) == before


def test_resumed_equals_uninterrupted(finished, tmp_path, monkeypatch):
    # stop after step 3, between two checkpoints

    workdir, add, seen = tmp_path / "part", Log.add, []

    def stopping(self, metrics):
        add(self, metrics)
        seen.append(1)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Log, "add", stopping)
    train(tiny(workdir=str(workdir)))
    monkeypatch.undo()
    assert len(seen) < 6
    train(tiny(workdir=str(workdir)))
    assert final(workdir) == final(finished)
    strip = lambda path: [{k: v for k, v in json.loads(x).items() if k in ("step", "images")} for x in (path / "metrics.jsonl").read_text().splitlines()]
    assert strip(workdir) == strip(finished)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(finished, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(finished, workdir)
    newest = max((p for p in (workdir / "checkpoints").iterdir() if p.is_dir()), key=lambda p: int(p.name))
    shutil.rmtree(newest / "state")
    with pytest.warns(UserWarning, match="cannot be read"):
        train(tiny(workdir=str(workdir)))
    # the damaged step is written anew: from here on nothing warns
    assert final(workdir) == final(finished)


def test_a_run_may_start_from_a_trained_model(finished, tmp_path):
    """Without learning, the model comes out as it went in, moving average and all; a saved folder does as well as a run."""
    model = dallegan.load(finished)
    model.save(tmp_path / "saved")
    for origin in (finished, tmp_path / "saved"):
        workdir = tmp_path / f"from-{origin.name}"
        workdir.mkdir()  # as a kill before the first checkpoint left it, of another origin
        (workdir / "tokenizer.model").write_bytes(b"rubbish")
        config = tiny(workdir=str(workdir), steps=2, init_from=str(origin), optim__lr=(0.0, 0.0), optim__lr_d=(0.0, 0.0))
        train(config)
        again = dallegan.load(config.workdir)
        assert again.tokenizer.encode("a cat").tolist() == model.tokenizer.encode("a cat").tolist()
        for new, old in zip(jax.tree.leaves(again.params), jax.tree.leaves(dallegan.load(origin).params), strict=True):
            np.testing.assert_array_equal(new, old)
    (finished / "checkpoints").rename(finished / "moved")  # what has begun needs its origin no more
    try:
        train(dataclasses.replace(config, workdir=str(tmp_path / "from-done"), init_from=str(finished)))
        with pytest.raises(UserError, match=r"--init-from: .* is not a model"):
            train(dataclasses.replace(config, workdir=str(tmp_path / "other"), init_from=str(finished)))
    finally:
        (finished / "moved").rename(finished / "checkpoints")
    assert not (tmp_path / "other").exists()


def test_a_network_of_more_blocks_starts_where_the_model_stood(finished, tmp_path):
    """Same pictures and same scores, to rounding: what is added is the identity until it learns. With fewer blocks there is no start."""
    deeper = {"model__blocks": 2, "model__critic_blocks": (2, 3), "model__refine": 8, "model__detail": (8,)}
    small, large = dallegan.load(finished), begun(tiny(workdir=str(tmp_path / "deeper"), init_from=str(finished), **deeper))
    large.save(tmp_path / "saved")
    assert jax.tree.structure(large.params["generator"]["decoder"]) != jax.tree.structure(small.params["generator"]["decoder"])
    count = [sum(x.size for x in jax.tree.leaves(m.params["discriminator"])) for m in (small, large)]
    assert count[1] > count[0]
    tokens, noise = small.tokenizer.encode(["a cat", "a red car"]), np.random.default_rng(0).normal(size=(2, small.gan.model.noise)).astype(np.float32)
    narrow, wide = Jitted(small.gan), Jitted(large.gan)
    images = narrow.draw(small.params, tokens, noise)
    assert float(np.std(images)) > 0.01
    np.testing.assert_allclose(wide.draw(large.params, tokens, noise), images, atol=1e-5)
    scores = narrow.discriminate(small.params, images, tokens)
    np.testing.assert_allclose(wide.discriminate(large.params, images, tokens), scores, atol=1e-4)
    with pytest.raises(UserError, match=r"another network \(model.refine: 8 -> 0; model.detail: \(8,\) -> \(\); model.blocks: 2 -> 1; model.critic_blocks"):
        train(tiny(workdir=str(tmp_path / "flatter"), init_from=str(tmp_path / "saved")))
    assert not (tmp_path / "flatter").exists()


def test_captions_of_new_words_start_where_the_model_stood(finished, tmp_path):
    """Their rows are new; a caption of the words that the model knows is encoded, drawn and judged as it was."""
    small, large = dallegan.load(finished), begun(tiny(workdir=str(tmp_path / "pairs"), init_from=str(finished), data__objects=2))
    for player in ("generator", "discriminator"):
        had, has = (m.params[player]["encoder"]["embed"]["embedding"] for m in (small, large))
        assert len(had) == small.tokenizer.size < len(has) == large.tokenizer.size
        np.testing.assert_array_equal(has[: len(had)], had)
        assert np.std(has[len(had) :]) > 0.01
    np.testing.assert_array_equal(large.sample(["a red cat", "雪地里有一只猫"]), small.sample(["a red cat", "雪地里有一只猫"]))


def test_a_run_may_shrink_what_the_model_painted(finished, tmp_path, monkeypatch, capsys):
    """It has no parameters: the first pictures are the model's, shrunk; and that is said."""
    small, large = dallegan.load(finished), begun(tiny(workdir=str(tmp_path / "shrunk"), init_from=str(finished), model__shrink=(9.0, 4.0)))
    tokens, noise = small.tokenizer.encode(["a red cat"]), np.random.default_rng(0).normal(size=(1, small.gan.model.noise)).astype(np.float32)
    painted = Jitted(small.gan).draw(small.params, tokens, noise)
    drawn = Jitted(large.gan).draw(large.params, tokens, noise)
    assert np.abs(drawn - painted).max() > 1e-3
    np.testing.assert_allclose(drawn, shrink(painted, (9.0, 4.0)), atol=1e-5)
    monkeypatch.setattr(loop, "make_gan", lambda *_: pytest.fail("far enough"))
    with pytest.raises(pytest.fail.Exception):
        train(tiny(workdir=str(tmp_path / "shrunk"), init_from=str(finished), model__shrink=(9.0, 4.0)))
    assert f"warning: not the shrinkage of {finished}, whose pictures change at once (model.shrink: () -> (9.0, 4.0))" in capsys.readouterr().err


def test_a_gru_may_begin_to_read_through_a_layer_norm_and_not_stop(finished, tmp_path):
    model = begun(tiny(workdir=str(tmp_path / "normed"), init_from=str(finished), text__prenorm=True))
    small, large = (m.params["generator"]["encoder"] for m in (dallegan.load(finished), model))
    assert set(large) - set(small) == {"norm0"}
    np.testing.assert_array_equal(large["forward0"]["hr"]["kernel"], small["forward0"]["hr"]["kernel"])
    model.save(tmp_path / "saved")
    with pytest.raises(UserError, match=r"another network \(text.prenorm: True -> False\)"):
        train(tiny(workdir=str(tmp_path / "plain"), init_from=str(tmp_path / "saved")))


def test_larger_pictures_start_where_the_model_stood(finished, tmp_path):
    """In larger patches: each pixel is drawn four times, and of four pixels the discriminator sees the mean. The refinement may be new or wider,
    attention new or the same, stages of detail new or more, and a GRU's captions longer."""
    larger, plain = {"data__size": 32, "model__patch": 4, "model__critic_patch": 8, "text__length": 18}, dallegan.load(finished)
    had = tiny(model__refine=8, model__detail=(8,), model__attention=())
    gan = make_gan(had, plain.tokenizer.size)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape), jax.jit(gan.init)(jax.random.key(0)))
    Model(gan, params, plain.tokenizer, had).save(tmp_path / "saved")
    other = dallegan.load(tmp_path / "saved")  # rounded to bfloat16
    start = lambda origin, **parts: begun(tiny(workdir=str(tmp_path / "new"), init_from=str(origin), **larger, **parts))
    pairs = [(plain, start(finished, model__refine=8, model__detail=(8,)))]
    pairs += [(other, start(tmp_path / "saved", model__refine=12, model__detail=(8, 4), model__attention=(4, 8)))]
    for small, large in pairs:
        tokens, rng = small.tokenizer.encode(["a cat", "a red car"]), np.random.default_rng(0)
        noise = rng.normal(size=(2, small.gan.model.noise)).astype(np.float32)
        narrow, wide = Jitted(small.gan), Jitted(large.gan)
        images = narrow.draw(small.params, tokens, noise)
        assert float(np.std(images)) > 0.01
        np.testing.assert_allclose(wide.draw(large.params, tokens, noise), np.repeat(np.repeat(images, 2, 1), 2, 2), atol=1e-4)
        images = rng.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
        scores = narrow.discriminate(small.params, images.reshape(2, 16, 2, 16, 2, 3).mean((2, 4)), tokens)
        np.testing.assert_allclose(wide.discriminate(large.params, images, tokens), scores, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"another network \(data.size: 16 -> 32; model.patch: 2 -> 4\)"):
        train(tiny(workdir=str(tmp_path / "seen"), init_from=str(finished), data__size=32, model__patch=4))
    assert not (tmp_path / "seen").exists()


@pytest.mark.slow
def test_a_run_of_another_network_begins_with_that_model(finished, tmp_path):
    """What the tests above compare is what a run begins with: all of it at once, without learning."""
    larger = {"data__size": 32, "data__objects": 2, "model__patch": 4, "model__critic_patch": 8, "text__length": 28, "text__prenorm": True}
    deeper = {"model__blocks": 2, "model__critic_blocks": (1, 2), "model__refine": 8, "model__detail": (8,)}
    rates = {"optim__lr": (0.0, 0.0), "optim__lr_d": (0.0, 0.0), "log__evaluate": 0}
    config = tiny(workdir=str(tmp_path / "run"), steps=1, init_from=str(finished), **larger, **deeper, **rates)
    expected = begun(config)
    train(config)
    found = dallegan.load(config.workdir)
    assert found.tokenizer.encode("a red cat").tolist() == expected.tokenizer.encode("a red cat").tolist()
    assert jax.tree.structure(found.params) == jax.tree.structure(expected.params)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_model_of_another_shape_is_no_start(finished, tmp_path):
    with pytest.raises(UserError, match=r"another network \(model.width: 16 -> 32\)"):
        train(tiny(workdir=str(tmp_path / "wide"), init_from=str(finished), model__width=32))
    assert not (tmp_path / "wide").exists()


def test_another_configuration_is_refused(finished):
    with pytest.raises(UserError, match=r"model.width: 16 -> 32") as error:
        train(tiny(workdir=str(finished), model__width=32))
    assert "--workdir" in str(error.value)


def test_another_number_of_pictures_is_refused(finished, tmp_path):
    """Batches are a function of it; but a run of before data.json was written goes on, and so does one whose file is damaged."""
    shutil.copytree(finished, tmp_path / "run")
    about = tmp_path / "run" / "data.json"
    pictures = json.loads(about.read_text())["pictures"]
    about.write_text('{"pictures": 380}')
    with pytest.raises(UserError, match=rf"storybook has {pictures} pictures, and had 380 when the run in .*/run began: give it those again"):
        train(tiny(workdir=str(tmp_path / "run")))
    for damaged in ("", "[]", None):
        about.unlink() if damaged is None else about.write_text(damaged)
        train(tiny(workdir=str(tmp_path / "run")))
        assert json.loads(about.read_text()) == {"pictures": pictures}


def test_lines_that_no_run_wrote_are_passed_over(tmp_path):
    whole = {"step": 1, "images": 8, "images_per_second": 4.0, "alignment": 0.5}
    lines = [{"step": "x"}, {"step": 1}, whole | {"images_per_second": 0}, whole | {"images": None}, [], whole]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 2, "ima')
    assert evaluated(tmp_path / "metrics.jsonl") == [whole | {"seconds": 2.0}]


def test_a_full_disk_costs_a_line_and_the_board(tmp_path):
    log = Log(tmp_path, tiny(), 0, Clock("init", {}))
    log.start()
    log.write(1)
    events = next((tmp_path / "tensorboard").iterdir())
    before, (soft, hard) = events.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    assert b"goodput" in before
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size + 20, hard))  # so much room is left
    try:
        with pytest.warns(UserWarning, match="could not be written") as told:
            log.write(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {str(w.message).split(" could")[0] for w in told if w.category is UserWarning} == {"metrics.jsonl", "tensorboard"}
    log.write(3)
    log.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]
    assert events.read_bytes().startswith(before)


def wandb_records(path):
    """The records in a file of W&B's: blocks of 32 KiB of pieces of a record, each behind a checksum, its length and its kind (1: whole, 4: the last)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


def test_weights_and_biases_gets_the_lines(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = tiny(log__wandb="bears")
    other = wandb.init(project="own", dir=tmp_path)  # of the caller's, which is none of this run's business
    for step in (1, 2):  # the second goes on, and fails
        with contextlib.suppress(ZeroDivisionError), contextlib.closing(Log(tmp_path, config, step - 1, Clock("init", {}))) as log:
            log.start()
            log.write(step)
            assert step == 1 or 1 / 0
    other.log({"mine": 1})
    other.finish()
    found, ids = [], set()
    for path in tmp_path.glob("wandb/offline-run-*/*.wandb"):
        records = list(wandb_records(path))
        (begun,), (ended,) = ([r for r in records if r.WhichOneof("record_type") == kind] for kind in ("run", "exit"))
        keys = {item.key or ".".join(item.nested_key) for r in records if r.WhichOneof("record_type") == "history" for item in r.history.item}
        ids.add(begun.run.run_id)
        found.append((begun.run.project, begun.run.run_group, ended.exit.exit_code, {"goodput", "images"} <= keys, "mine" in keys))
    group = (tmp_path / "wandb.id").read_text()
    assert len(ids) == 3
    assert sorted(found) == [("bears", group, 0, True, False), ("bears", group, 1, True, False), ("own", "", 0, False, True)]
    log = Log(tmp_path, config, 2, Clock("init", {}))
    log.start()
    wandb.teardown()  # as if its process had died
    with pytest.warns(UserWarning, match=r"Weights & Biases gets no more of this run \(.*\); training goes on"):
        log.write(3)
    log.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_weights_and_biases_that_cannot_begin(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # it reads its settings once
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"^--log.wandb bears: No API key configured.*`wandb login`.*WANDB_MODE=offline keeps all here"):
        Log(tmp_path, tiny(log__wandb="bears"), 2, Clock("init", {}))
    wandb.teardown()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'dallegan\[wandb\]'"):
        Log(tmp_path, tiny(log__wandb="bears"), 2, Clock("init", {}))


def test_a_run_that_never_saved_gives_way_to_another(tmp_path, monkeypatch):
    def build(config):
        monkeypatch.setattr(loop, "make_gan", lambda *_: pytest.fail("far enough"))
        with pytest.raises(pytest.fail.Exception):
            train(config)
        return from_json((tmp_path / "config.json").read_text()), (tmp_path / "tokenizer.model").read_bytes()

    (small, pieces), (large, more) = (build(tiny(workdir=str(tmp_path), text__vocab=vocab)) for vocab in (400, 500))
    assert (small.text.vocab, large.text.vocab) == (400, 500)
    assert len(more) > len(pieces)
    (tmp_path / "model.safetensors").touch()  # a folder that `Model.save` wrote
    for vocab in (500, 600):
        with pytest.raises(UserError, match=f"holds a saved model: choose another --workdir, and --init-from {tmp_path} to"):
            train(tiny(workdir=str(tmp_path), text__vocab=vocab))


def test_a_run_of_a_configuration_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model": {"detail": 64}}')
    with pytest.raises(UserError, match=r"config.json: not a dallegan configuration: detail is 64: choose another --workdir"):
        train(tiny(workdir=str(tmp_path)))


def test_checkpoints_of_unknown_origin_are_refused(finished, tmp_path):
    shutil.copytree(finished / "checkpoints", tmp_path / "orphan" / "checkpoints")
    with pytest.raises(UserError, match=r"no config.json that says of what"):
        train(tiny(workdir=str(tmp_path / "orphan")))


def test_checkpoints_without_their_tokenizer_are_refused(finished, tmp_path):
    """Another one, of the same size, would scramble the words in silence."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"has checkpoints and no tokenizer.model"):
        train(tiny(workdir=str(tmp_path / "run")))
    assert not (tmp_path / "run" / "tokenizer.model").exists()


def test_a_source_of_ones_own_in_a_thread(tmp_path):
    class Mine(Storybook):
        """Nothing that `data.source` names."""

    config, failed = tiny(workdir=str(tmp_path / "run"), steps=2, log__evaluate=8), []

    def work():
        try:
            train(config, Mine(16, "train"))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)  # where signals cannot be handled
    thread.start()
    thread.join()
    assert not failed
    assert from_json((tmp_path / "run" / "config.json").read_text()).data.source == "Mine"
    assert final(tmp_path / "run")
    assert "alignment" not in (tmp_path / "run" / "metrics.jsonl").read_text()  # the judge does not know what is drawn
    assert dallegan.load(tmp_path / "run").sample("a cat").shape == (1, 16, 16, 3)


def test_a_step_that_is_not_finite_is_left_out_and_ten_in_a_row_stop_the_run(tmp_path, monkeypatch, capsys):
    def poisoned(*args):
        step = make_train_step(*args)
        spoil = lambda state, image: image.astype(jnp.float32) * jnp.where((state.step == 2) | (state.step >= 5), jnp.nan, 1.0)
        return lambda state, batch: step(state, batch | {"image": spoil(state, batch["image"])})

    monkeypatch.setattr(loop, "make_train_step", poisoned)
    workdir = tmp_path / "run"
    with pytest.raises(Diverged, match="10 steps in a row, up to 15,"):
        train(tiny(workdir=str(workdir), steps=50))
    told = capsys.readouterr().err
    assert "step 3 was not finite and is left out" in told
    assert "step 5 was" not in told
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines[:3]] == [0, 1, 2]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(dallegan.load(workdir).params))


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to --workdir"):
        train(tiny(workdir=str(tmp_path / "file" / "run")))


@pytest.mark.slow
def test_killed_three_times_equals_uninterrupted(tmp_path):
    """kill -9 at random moments, the same command until it is done: the same parameters, bit for bit."""
    config = tiny(steps=400, log__samples=1600, log__checkpoint=160)
    program = "import sys; from dallegan import config, loop; loop.train(config.from_json(sys.stdin.read()))"
    rng, hashes = random.Random(0), []

    def launch(workdir):
        process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        process.stdin.write(to_json(dataclasses.replace(config, workdir=str(workdir))).encode())
        process.stdin.close()
        return process

    for kills in (0, 3):
        workdir = tmp_path / f"killed{kills}"
        for kill in range(kills):
            process = launch(workdir)
            until = (kill + 1) * 400 // 4
            while process.poll() is None:
                metrics = workdir / "metrics.jsonl"
                if metrics.exists() and metrics.read_text().count("\n") * 2 >= until:
                    break
                time.sleep(0.02)
            time.sleep(0.5 * rng.random())
            assert process.poll() is None, "finished before it could be killed"
            process.kill()
            process.wait()
        assert launch(workdir).wait() == 0
        hashes.append(final(workdir))
    assert hashes[0] == hashes[1]


@pytest.fixture
def other(tmp_path):
    """Another process that trains, as far as can be seen, in the directory `run`."""
    (tmp_path / "run").mkdir()
    holds = "import fcntl, sys, time; file = open(sys.argv[1], 'ab'); fcntl.lockf(file, fcntl.LOCK_EX, 1); print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", holds, tmp_path / "run" / ".lock"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_directory_in_which_another_process_trains(tmp_path, other, monkeypatch):
    monkeypatch.setattr(loop, "PATIENCE", 1)
    with pytest.raises(UserError, match=r"run: another process trains in it: stop that one, or choose another --workdir"):
        train(tiny(workdir=str(tmp_path / "run")))
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_run_that_ends_is_waited_for(tmp_path, other, capsys):
    timer = threading.Timer(1.5, other.kill)
    timer.start()
    with contextlib.ExitStack() as held:
        loop._hold(tmp_path / "run", held)
        assert other.wait() == -signal.SIGKILL
    assert capsys.readouterr().err.count("another process trains in it: waiting for it to end") == 1


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with contextlib.ExitStack() as held:
        loop._hold(tmp_path / "run", held)
