"""What is exported draws what the model draws, where there is no dallegan."""

import importlib.util
import subprocess
import sys
import types

import jax
import jax.export
import numpy as np
import pytest

from dallegan.commands import export
from dallegan.errors import UserError
from dallegan.sampling import load, to_uint8

BEAR, CAR = "一只棕色的大熊站在雪地里", "a small red car in the desert"


@pytest.fixture(scope="module")
def artifact(model):
    return export.artifact(model)


def given(model, rows):
    tokens = np.resize(model.tokenizer.encode([BEAR, CAR]), (rows, model.tokenizer.length))
    return tokens, np.asarray(jax.random.normal(jax.random.key(rows), (rows, model.config.model.noise)))


@pytest.mark.parametrize("rows", [1, 5])
def test_it_draws_any_number_and_the_same(model, artifact, rows):
    loaded = jax.export.deserialize(bytearray(artifact))
    assert loaded.platforms == ("cpu", "cuda", "tpu")
    tokens, noise = given(model, rows)
    assert off(loaded.call(tokens, noise), model, tokens, noise) <= 1


def off(drawn, model, tokens, noise):
    """How far, of 255."""
    return np.abs(np.asarray(drawn).astype(int) - np.asarray(to_uint8(model.gan.synthesize(model.params, tokens, noise)))).max()


def test_it_is_no_larger_than_the_weights(model, artifact, tmp_path):
    """Saved ones are in bfloat16, and stay in it."""
    model.save(tmp_path / "saved")
    count = sum(x.size for x in jax.tree.leaves(model.params["generator"]))
    assert len(export.artifact(load(tmp_path / "saved"))) - len(artifact) == pytest.approx(-2 * count, rel=0.2)


def run(model, tmp_path, monkeypatch, *args):
    model.save(tmp_path / "saved")
    monkeypatch.setattr(sys, "argv", ["export", "--model", str(tmp_path / "saved"), "--out", str(tmp_path / "out" / "bears.jax"), *args])
    export.main()
    return tmp_path / "out"


@pytest.mark.slow
def test_the_loader_needs_jax_alone(model, tmp_path, monkeypatch):
    """In an environment of its own."""
    out = run(model, tmp_path, monkeypatch)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", f"jax=={jax.__version__}", "flatbuffers"], check=True)
    tokens, noise = given(model, 3)
    np.savez(out / "given.npz", tokens=tokens, noise=noise)
    code = "import bears, numpy; g = numpy.load('given.npz'); numpy.save('drawn.npy', bears.draw(g['tokens'], g['noise']))"
    subprocess.run([python, "-c", code], cwd=out, check=True)
    assert off(np.load(out / "drawn.npy"), load(tmp_path / "saved"), tokens, noise) <= 1
    subprocess.run([python, "-m", "pip", "install", "-q", "sentencepiece", "pillow"], check=True)
    subprocess.run([python, "bears.py"], cwd=out, check=True)
    assert (out / "bears.png").stat().st_size > 100


@pytest.mark.skipif(importlib.util.find_spec("jax2onnx") is None, reason="jax2onnx is not installed")
def test_onnx_draws_the_same(model, tmp_path, monkeypatch):
    import onnxruntime

    out = run(model, tmp_path, monkeypatch, "--onnx", "2")
    session = onnxruntime.InferenceSession(out / "bears.onnx")
    tokens, noise = given(model, 2)
    (drawn,) = session.run(None, dict(zip([x.name for x in session.get_inputs()], (tokens, noise), strict=True)))
    np.testing.assert_allclose(drawn, export.drawing(load(tmp_path / "saved"))(tokens, noise), atol=1e-3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "bears"], "--out bears: name a file such as bears.jax"),
        (["--out", "b.png"], "--out b.png: name a file such as b.jax"),
        (["--out", "b.jax", "--onnx", "-1"], "--onnx -1"),
        (["--out", "jax.jax"], "the loader would be jax.py, and hide the module jax from itself"),
        (["--out", "sample.jax"], "the loader would overwrite sample.py, which is something else"),
    ],
)
def test_refusals(args, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample.py").write_text("print('my own')")
    monkeypatch.setattr(sys, "argv", ["export", *args])
    with pytest.raises(UserError, match=message):
        export.main()


def test_a_converter_that_fails_is_one_line(model, monkeypatch):
    def to_onnx(*_):
        raise AttributeError("no such thing\nat all")

    monkeypatch.setitem(sys.modules, "jax2onnx", types.SimpleNamespace(to_onnx=to_onnx))
    with pytest.raises(UserError, match=rf"jax2onnx fails with JAX {jax.__version__}; 0.17.1 works with JAX 0.10 .AttributeError: no such thing.$"):
        export.onnx(model, 1)


def test_without_the_converter_it_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match="pip install --no-deps jax2onnx"):
        export.onnx(model, 1)
