"""The wheel is enough: in an empty directory, without the repository, everything works."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, TINY_FLAGS


@pytest.mark.slow
def test_train_sample_load_export_evaluate_report(tmp_path):
    wheels, installed, empty = (tmp_path / name for name in ("wheels", "installed", "empty"))
    empty.mkdir()
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, ROOT], check=True)
    (wheel,) = wheels.iterdir()
    assert wheel.stat().st_size < 20 * 2**20
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", installed, wheel], check=True
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}

    def call(*command):
        done = subprocess.run(
            [str(word) for word in command],
            cwd=empty,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    python = lambda *command: call(sys.executable, *command)
    assert python("-c", "import dallegan; print(dallegan.__file__)").startswith(str(installed))
    assert "一只" in call(installed / "bin" / "dallegan-sample", "一只棕色的大熊站在雪地里", "--n", 1)
    call(installed / "bin" / "dallegan-train", "quickstart", *TINY_FLAGS)
    assert {path.name for path in (empty / "runs" / "quickstart").iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "samples",
        "checkpoints",
        "report.html",
    }
    (line,) = call(
        installed / "bin" / "dallegan-sample", "a red car", "--model", "runs/quickstart", "--n", 1, "--json"
    ).splitlines()
    assert (empty / json.loads(line)["path"]).exists()
    assert (
        python("-c", "import dallegan; print(dallegan.load('runs/quickstart@best').sample('a cat').shape)")
        == "(1, 32, 32, 3)\n"
    )
    python("-m", "dallegan.commands.export", "--model", "runs/quickstart", "--out", "cars.jax")
    python("cars.py")
    assert "alignment" in python(
        "-m", "dallegan.evaluation.measure", "--model", "runs/quickstart", "--n", 50, "--features", "none"
    )
    python("-m", "dallegan.run.report", "runs/quickstart", "--out", "page.html")
    python("-m", "dallegan", "prepare", "storybook", "shards", "--help")
