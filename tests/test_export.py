"""An exported model draws what the model draws, without dallegan."""

import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

from dallegan.__main__ import main
from dallegan.commands import export
from dallegan.errors import UserError
from dallegan.io.image import open_image
from dallegan.sampling import load, to_uint8

BEAR, CAR = "一只棕色的大熊站在雪地里", "a small red car in the desert"


@pytest.fixture(scope="module")
def artifact(model):
    return export.artifact(model)


def inputs(model, rows):
    tokens = np.resize(model.tokenizer.encode([BEAR, CAR]), (rows, model.tokenizer.length))
    return tokens, np.asarray(jax.random.normal(jax.random.key(rows), (rows, model.config.model.noise)))


@pytest.mark.parametrize("rows", [1, 5])
def test_it_draws_any_number_and_the_same(model, artifact, rows):
    loaded = jax.export.deserialize(bytearray(artifact))
    assert loaded.platforms == ("cpu", "cuda", "tpu")
    tokens, noise = inputs(model, rows)
    assert difference(loaded.call(tokens, noise), model, tokens, noise) <= 1


def draw(model, tokens, noise):
    return np.asarray(to_uint8(model.gan.synthesize(model.params, tokens, noise)))


def difference(drawn, model, tokens, noise):
    """Largest difference between two images, of 255."""
    return np.abs(np.asarray(drawn).astype(int) - draw(model, tokens, noise)).max()


def test_it_is_no_larger_than_the_weights(model, artifact, tmp_path):
    """Weights that were saved in bfloat16 stay in it."""
    model.save(tmp_path / "saved")
    count = sum(x.size for x in jax.tree.leaves(model.params["generator"]))
    assert len(export.artifact(load(tmp_path / "saved"))) - len(artifact) == pytest.approx(
        -2 * count, rel=0.2
    )


def test_the_command_writes_a_model_a_tokenizer_and_a_loader(model, tmp_path, capsys):
    model.save(tmp_path / "saved")
    out = tmp_path / "new" / "bears.jax"
    for _ in range(2):  # its own files are written over
        assert main(["export", "--model", str(tmp_path / "saved"), "--out", str(out)]) == 0
        assert capsys.readouterr().out.endswith(
            f"MiB, for cpu, cuda, tpu; draw with it: python {out.with_suffix('.py')}\n"
        )
    assert {path.name for path in out.parent.iterdir()} == {"bears.jax", "bears.py", "bears.tokenizer.model"}
    drawn = subprocess.run(
        [sys.executable, "bears.py"], cwd=out.parent, capture_output=True, text=True, check=False
    )
    assert (drawn.returncode, drawn.stderr) == (0, "")
    tokens = model.tokenizer.encode([export.PROMPT])
    noise = jax.random.normal(jax.random.key(0), (1, model.config.model.noise))
    assert (
        np.abs(
            open_image(out.parent / "bears.png").astype(int) - draw(load(tmp_path / "saved"), tokens, noise)
        ).max()
        <= 1
    )


@pytest.mark.slow
def test_the_loader_needs_jax_alone(model, tmp_path):
    """The loader runs in an environment that has no dallegan."""
    model.save(tmp_path / "saved")
    export.main(["--model", str(tmp_path / "saved"), "--out", str(tmp_path / "out" / "bears.jax")])
    out = tmp_path / "out"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", f"jax=={jax.__version__}", "flatbuffers"], check=True
    )
    tokens, noise = inputs(model, 3)
    np.savez(out / "given.npz", tokens=tokens, noise=noise)
    code = "import bears, numpy; x = numpy.load('given.npz'); y = bears.draw(x['tokens'], x['noise'])"
    code += "; numpy.save('drawn.npy', y)"
    subprocess.run([python, "-c", code], cwd=out, check=True)
    assert difference(np.load(out / "drawn.npy"), load(tmp_path / "saved"), tokens, noise) <= 1
    subprocess.run([python, "-m", "pip", "install", "-q", "sentencepiece", "pillow"], check=True)
    subprocess.run([python, "bears.py"], cwd=out, check=True)
    assert (out / "bears.png").stat().st_size > 100


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "bears"], "--out bears: name a file such as bears.jax"),
        (["--out", "b.png"], "--out b.png: name a file such as b.jax"),
        (["--out", "jax.jax"], "the loader would be jax.py, and hide the module jax from itself"),
        (["--out", "sample.jax"], "the loader would overwrite sample.py, which is something else"),
    ],
)
def test_refusals(args, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample.py").write_text("print('my own')")
    with pytest.raises(UserError, match=message):
        export.main(args)
