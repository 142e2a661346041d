"""Models go to a Hub over real HTTP and come back the same; bad models are refused in one line."""

import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import flax.traverse_util
import fsspec
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import faulty
from hub_server import serve
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dallegan
from dallegan.commands.hub import Download, Upload, download, measured, model_card, upload
from dallegan.config import check, from_json, to_json
from dallegan.errors import TransientError, UserError
from dallegan.io import remote
from dallegan.io.weights import read_weights
from dallegan.run.checkpoint import Checkpoints
from dallegan.tokenizer import Tokenizer

FILES = {"config.json", "model.safetensors", "tokenizer.model"}


@pytest.fixture(scope="module")
def hub():
    with serve() as server:
        yield server


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "saved"
    model.save(folder)
    return folder


def command(hub, cwd, *args, token="hf_secret"):
    env = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cwd / "hf"),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "dallegan", "hub", *map(str, args)],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_up_and_down_again(hub, model, saved, tmp_path):
    done = command(hub, tmp_path, "upload", saved, "someone/bears", "--license", "apache-2.0")
    assert done.returncode == 0, done.stderr
    assert 'dallegan.load("hf://someone/bears")' in done.stdout
    stored = hub.repositories["someone/bears"]
    assert set(stored) == FILES | {"README.md", "samples.png"}
    header = ModelCard(stored["README.md"].decode()).data
    assert (header.license, header.library_name, header.pipeline_tag) == (
        "apache-2.0",
        "dallegan",
        "text-to-image",
    )
    assert header.eval_results is None  # nothing was measured
    stored["evil.pkl"] = b"must stay where it is"
    done = command(hub, tmp_path, "download", "hf://someone/bears", token="")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "bears").iterdir()} == FILES
    assert not any("evil.pkl" in line for line in hub.log)
    there, here = dallegan.load(tmp_path / "bears"), dallegan.load(saved)
    assert there.digest == here.digest
    again = command(hub, tmp_path, "download", "someone/bears")
    assert (again.returncode, again.stderr) == (
        2,
        "error: bears is there already: name a new folder with --to\n",
    )


def test_refusals_are_one_line(hub, saved, tmp_path):
    for args, token, message in [
        (["download", "someone/absent"], "hf_secret", "no such repository or revision"),
        (["download", "hf://bad name"], "hf_secret", "the name must be ORG/NAME"),
        (["upload", saved, "someone/other"], "wrong", "log in with `hf auth login`"),
        (["upload", tmp_path, "someone/other"], "hf_secret", "is not a model"),
    ]:
        done = command(hub, tmp_path, *args, token=token)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_busy_or_absent_hub_may_be_tried_again(hub, saved, tmp_path):
    busy = command(hub, tmp_path, "upload", saved, "someone/other", token="hf_busy")
    assert (busy.returncode, busy.stderr.count("\n")) == (1, 1), busy.stderr
    assert "the Hub asks to wait (429)" in busy.stderr
    absent = SimpleNamespace(url="http://127.0.0.1:1")
    away = command(absent, tmp_path, "download", "someone/bears")
    message = r"error: cannot fetch hf://someone/bears: the Hub cannot be reached \(ConnectError: .*\)"
    assert away.returncode == 1
    assert re.fullmatch(message + ", and there is no copy in the cache\n", away.stderr), away.stderr


def test_a_download_is_whole_or_not_at_all(tmp_path):
    args, (soft, hard) = (
        Download("storybook-32", tmp_path / "mine"),
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))  # as on a disk that has so much room
    try:
        with pytest.raises(UserError, match=r"cannot write to .*mine"):
            download(args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in (tmp_path / "mine").iterdir()] == [".part"]
    download(args)
    assert {p.name for p in (tmp_path / "mine").iterdir()} == FILES


def test_a_shipped_model_is_downloaded_by_its_name(hub, tmp_path):
    assert command(hub, tmp_path, "download", "storybook-32", "--to", "mine").returncode == 0
    assert dallegan.load(tmp_path / "mine").digest == dallegan.load("storybook-32").digest


def test_a_bucket_is_copied_once_and_again_when_it_changes(saved, monkeypatch):
    bucket = fsspec.filesystem("memory")
    for name in FILES:
        bucket.pipe_file(f"/b/model/{name}", (saved / name).read_bytes())
    model = dallegan.load("memory://b/model")
    assert model.digest == dallegan.load(saved).digest
    bucket.pipe_file("/b/model/evil.pkl", b"must stay where it is")
    reads, read = [], type(bucket).open
    count = lambda self, path, *args, **kw: reads.append(path) or read(self, path, *args, **kw)
    monkeypatch.setattr(type(bucket), "open", count)
    dallegan.load("memory://b/model/")
    assert reads == []
    bucket.pipe_file("/b/model/config.json", to_json(model.config).encode() + b"\n")
    reads.clear()
    dallegan.load("memory://b/model")
    assert {path.rpartition("/")[2] for path in reads} == FILES
    bucket.rm("/b/model/config.json")
    with pytest.raises(UserError, match=r"memory://b/model is not a model: no config.json in it"):
        dallegan.load("memory://b/model")
    with pytest.raises(UserError, match=r"cannot read what://b"):
        dallegan.load("what://b/c")


def test_what_a_bucket_does_not_give_is_one_line(saved, monkeypatch):
    bucket = fsspec.filesystem("memory")
    for name in FILES:
        bucket.pipe_file(f"/b/big/{name}", (saved / name).read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(remote, "MODEL_FILES", dict.fromkeys(FILES, 10_000))
        with pytest.raises(
            UserError, match=r"^memory://b/big/\S+: has more than 10,000 bytes, too many for a model$"
        ):
            dallegan.load("memory://b/big")
    for error, kind in ((RuntimeError("503"), TransientError), (RuntimeError("403 Forbidden"), UserError)):
        with monkeypatch.context() as patch:
            patch.setattr(type(bucket), "open", fail := Mock(side_effect=error))
            with pytest.raises(
                UserError, match=rf"^cannot fetch memory://b/big: RuntimeError: {error}$"
            ) as raised:
                dallegan.load("memory://b/big")
        assert type(raised.value) is kind
        assert fail.called
    assert dallegan.load("memory://b/big").digest == dallegan.load(saved).digest  # nothing half fetched stays


@pytest.mark.slow
def test_processes_that_fetch_at_once_do_not_disturb_each_other(saved, tmp_path):
    """Four processes load a model from a bucket, and none of them has it in its cache yet."""
    code = f"""
import fsspec, dallegan
from fsspec.implementations.local import LocalFileSystem
class Bucket(LocalFileSystem):
    protocol = "bucket"
fsspec.register_implementation("bucket", Bucket)
for _ in range(3):
    print(dallegan.load("bucket://{saved}").digest)
"""
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(4)]
    assert {line for process in processes for line in process.communicate()[0].split()} == {
        dallegan.load(saved).digest
    }
    assert not any(process.returncode for process in processes)


def test_the_card_says_what_it_is(model):
    text = model_card(model, "someone/bears", "other", ["一只熊"], {"alignment": 0.5, "images": 12345})
    for said in (
        'sample(["一只熊"]',
        "16×16 pixels",
        "0.500 after 12,345 images",
        model.digest,
        "R1 and R2, γ 1.0 to 0.1",
    ):
        assert said in text
    header = ModelCard(text).data
    assert (header.language, header.model_name) == (["en", "zh"], "bears")
    (result,) = header.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("storybook", "alignment", 0.5)
    assert ModelCard(model_card(model, "someone/bears", "other", ["a bear"], {})).data.language == ["en"]


@pytest.mark.parametrize(
    "evil",
    [
        "<script>alert(1)</script>",
        "a\n---\n<img src=x onerror=alert(1)>",
        "`</code><b>",
        "| a | b |\n|---|---|",
        "[x](javascript:alert(1))",
        "\u202egnp.exe",
        "a: b\n- c",
        "{title} {0}",
        "'\"\\",
        "x" * 10**6,
        "&lt;script&gt;",
        "\x00\x1b[2J",
    ],
)
def test_a_card_is_neither_markup_nor_yaml_of_a_stranger(model, evil):
    config = replace(model.config, data=replace(model.config.data, source=f"folder:{evil}"))
    scores = {"alignment": 0.5, "images": 12345}
    text = model_card(replace(model, config=config), f"someone/{evil}", "other", [f"```{evil}"], scores)
    card, usual = ModelCard(text), ModelCard(model_card(model, "someone/bears", "other", ["a bear"], scores))
    assert set(card.data.to_dict()) == set(usual.data.to_dict())
    outside = re.sub(r"```python.*?```", "", card.text, flags=re.DOTALL)
    assert len(text) < 10_000 + 2 * len(evil)
    assert not re.search(r"<(?!/?code>)|[\x00-\x09\x0b-\x1f\u202e]|\]\(java", outside)
    assert outside.count("\n") == re.sub(r"```python.*?```", "", usual.text, flags=re.DOTALL).count("\n")


@pytest.mark.parametrize("licence", ["mit\nx: y", "<script>", "MIT License", "", "-", "a" * 200])
def test_a_license_is_an_abbreviation(saved, licence):
    with pytest.raises(UserError, match=r"(?s)^--license .*: abbreviate it as the Hub does"):
        upload(Upload(str(saved), "someone/bears", licence))


def test_a_card_of_ones_own_is_a_text(saved, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gbk").write_bytes("一只熊".encode("gbk"))
    for path, said in (
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "gbk", "not in UTF-8"),
        (tmp_path / "none", "No such file"),
        (tmp_path, "not a regular file"),
        (tmp_path.joinpath("/dev/zero"), "not a regular file"),
    ):
        with pytest.raises(UserError, match=rf"^cannot read {path}: {said}"):
            upload(Upload(str(saved), "someone/bears", card=path))


def test_the_card_has_the_figure_of_the_checkpoint_that_is_loaded(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path, 1, writer=True)) as checkpoints:
        for step, score in ((2, 0.5), (4, 0.25)):
            checkpoints.save(step, {"w": jnp.zeros(3)}, score)
    lines = [
        {"step": step, "images": 8 * step, "images_per_second": 1.0, "alignment": x}
        for step, x in ((2, 0.5), (3, 0.75), (4, 0.25), (5, 1.0))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert measured(str(tmp_path)) == {"images": 32, "alignment": 0.25}
    assert measured(f"{tmp_path}@best") == measured(f"{tmp_path}@2") == {"images": 16, "alignment": 0.5}
    largest = max((tmp_path / "checkpoints" / "4").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    largest.write_bytes(bytes(largest.stat().st_size))
    assert measured(str(tmp_path)) == {"images": 16, "alignment": 0.5}
    assert measured(str(tmp_path / "absent")) == {}


def rewrite(folder, tmp_path, config=None, weights=None, metadata=None, **tensors):
    """Returns a copy of a saved model with changes."""
    new = tmp_path / "changed"
    new.mkdir()
    arrays = safetensors.numpy.load_file(folder / "model.safetensors") | tensors
    (new / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    (new / "config.json").write_text(config or (folder / "config.json").read_text())
    (new / "model.safetensors").write_bytes(
        weights or safetensors.numpy.save({k: v for k, v in arrays.items() if v is not None}, metadata)
    )
    return new


NAME = "generator/encoder/sentence/bias"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"metadata": {"dallegan": "2"}},
            r"of format '2', which this dallegan does not read; a newer one may",
        ),
        ({NAME: None}, rf"the weights of another network: {NAME} is missing$"),
        ({"more": np.zeros(1, np.float32)}, "more is not part of it"),
        ({NAME: np.zeros(3, np.float32)}, rf"{NAME} is \[3\], not \[16\]"),
        ({NAME: np.zeros(16, np.int64)}, "is of type I64"),
        ({"weights": b"rubbish"}, "the weights cannot be read"),
        ({"weights": (2**62).to_bytes(8, "little") + b"{}"}, "the weights cannot be read"),
        ({"config": '{"model_type": "unet"}'}, "unknown settings 'model_type' .written by a newer version"),
        ({"config": "[]"}, "not a dallegan configuration"),
        ({NAME: np.full(16, np.nan, np.float32)}, rf"damaged, copy the file again: {NAME} is not finite"),
        (
            {NAME: np.array([0.0] * 15 + [-np.inf], np.float32)},
            rf"damaged, copy the file again: {NAME} is not finite",
        ),
        ({"metadata": {"dallegan": "1 0123456789abcdef"}}, "are damaged, .* their digest is another"),
        ({"weights": (2**25).to_bytes(8, "little") + bytes(2**25)}, "the header is too large"),
        ({"\x1b[2J\n" + "x" * 10**6: np.zeros(1, np.float32)}, r"network: \\x1b\[2J\\n[x. ]{1,200}.{15}"),
        ({"config": json.dumps({"\x1b[2J\n" + "x" * 10**6: 1})}, r"unknown settings '\\x1b\[2J\\nx{1,200} "),
        (
            {"config": '{"text": {"layers": 100}}'},
            r"\d+ tensors; the layers in config.json have 2408 or more",
        ),
        ({"config": '{"text": {"layers": 129}}'}, r"263 layers at 32 px; 256 are the most"),
    ],
)
def test_what_is_no_model_of_ours_is_refused(saved, tmp_path, changes, message):
    start = time.monotonic()
    with pytest.raises(UserError, match=message) as raised:
        dallegan.load(rewrite(saved, tmp_path, **changes))
    assert len(str(raised.value)) < 1000
    assert time.monotonic() - start < 10


def test_weights_of_zeros_are_refused(saved, tmp_path):
    arrays = safetensors.numpy.load_file(saved / "model.safetensors")
    zeros = {name: np.zeros_like(x) for name, x in arrays.items()}
    with pytest.raises(UserError, match=r"model.safetensors: the weights are damaged, .* all are 0"):
        dallegan.load(rewrite(saved, tmp_path, **zeros))


@pytest.mark.parametrize("bit", range(0, 8, 3))
def test_a_flipped_bit_is_noticed(saved, tmp_path, bit):
    data = bytearray((saved / "model.safetensors").read_bytes())
    data[len(data) * (bit + 1) // 9] ^= 1 << bit
    with pytest.raises(UserError, match=r"the weights are damaged|cannot be read"):
        dallegan.load(rewrite(saved, tmp_path, weights=bytes(data)))


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "huge", "unreadable"])
def test_a_file_of_another_kind_is_one_line(saved, tmp_path, name, kind):
    """A pipe would be waited for, and a device or a file of holes would fill the memory."""
    folder = shutil.copytree(saved, tmp_path / "changed")
    path = folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        path.touch()
        os.truncate(path, 2**33)
    else:
        faulty(path)
    with pytest.raises(
        UserError, match=rf"{name}: .*(not a regular file|larger than|cannot be read|output error)"
    ):
        dallegan.load(folder)


@pytest.mark.parametrize("change", ["shrink", "precision", "prenorm", "length", "tokenizer", "params"])
def test_the_digest_covers_what_decides_the_pixels(model, change):
    match change:
        case "shrink":
            other = replace(model, gan=replace(model.gan, model=replace(model.gan.model, shrink=(2.0,))))
        case "precision":
            other = replace(model, gan=replace(model.gan, dtype=jnp.bfloat16))
        case "prenorm" | "length":
            text = replace(model.gan.text, **{"prenorm": {"prenorm": True}, "length": {"length": 21}}[change])
            other = replace(model, gan=replace(model.gan, text=text))
        case "tokenizer":
            other = replace(
                model, tokenizer=model.tokenizer.extended(Tokenizer.train(["xyzzy wyvern"] * 9, 300, 20), 999)
            )
        case _:
            params = flax.traverse_util.flatten_dict(model.params)
            params["generator", "encoder", "sentence", "bias"] += 1e-3
            other = replace(model, params=flax.traverse_util.unflatten_dict(params))
    assert other.digest != model.digest
    assert replace(model, config=replace(model.config, workdir="elsewhere")).digest == model.digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"layers": 1', '"layers": 1000000000'),
        ('"encoder": "rnn"', '"encoder": "gpt"'),
        ('"width": 16', '"width": 4000000000'),
        ('"size": 16', '"size": NaN'),
    ],
)
def test_a_hostile_configuration_is_refused_at_once(saved, tmp_path, old, new):
    text = (saved / "config.json").read_text()
    assert old in text
    with pytest.raises(UserError, match=r"must be a number from|not a dallegan configuration"):
        dallegan.load(rewrite(saved, tmp_path, config=text.replace(old, new, 1)))


PATCHES = st.lists(
    st.tuples(st.integers(0, 10**7), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6
)


def patched(data, patches, cut, within):
    data = bytearray(data)
    for place, piece in patches:
        place %= min(len(data), within)
        data[place : place + len(piece)] = piece
    return bytes(data[: cut % (len(data) + 1)] if cut else data)


QUIET = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}


def fuzz(n, folder, name, read, within=10**7):
    """Calls `read` n times on a damaged copy of a model's file: it is read, or refused by UserError."""

    @settings(max_examples=n, **QUIET)
    @given(PATCHES, st.none() | st.integers(1, 10**7))
    def one(patches, cut):
        data = (folder / name).read_bytes()
        try:
            (folder / name).write_bytes(patched(data, patches, cut, within))
            with contextlib.suppress(UserError):
                read()
        finally:
            (folder / name).write_bytes(data)

    one()


@pytest.mark.slow
def test_any_damage_is_read_or_refused(model, saved, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(saved, folder)
    fuzz(
        1000,
        folder,
        "model.safetensors",
        lambda: read_weights(folder / "model.safetensors", model.params),
        within=12_000,
    )  # most of it in the header
    fuzz(
        1000,
        folder,
        "config.json",
        lambda: check(from_json((folder / "config.json").read_text("utf-8", "replace"))),
    )
    fuzz(
        1000,
        folder,
        "tokenizer.model",
        lambda: Tokenizer.load(folder / "tokenizer.model", 20).encode("a cat, 一只猫"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FILES))
def test_any_damage_to_a_folder_is_loaded_or_refused(saved, tmp_path, name):
    folder = tmp_path / "damaged"
    shutil.copytree(saved, folder)
    fuzz(20, folder, name, lambda: dallegan.load(folder).tokenizer.encode("a cat"))
