"""The wheel is enough: in an empty directory, without the repository, everything works."""

import json
import os
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT, TINY_FLAGS


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    wheels = tmp_path_factory.mktemp("wheels")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, ROOT], check=True)
    (path,) = wheels.iterdir()
    return path


@pytest.mark.slow
def test_the_wheel_has_each_preset_once_and_one_model(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    presets = {path.name for path in (ROOT / "configs").glob("*.py")}
    assert sorted(name for name in names if "configs" in name) == sorted(
        f"dallegan/configs/{p}" for p in presets
    )
    assert not any("storybook-32" in name or name.startswith(("recipes", "tests")) for name in names)
    assert {"dallegan/py.typed", "dallegan/assets/storybook-64/model.safetensors"} <= set(names)
    assert wheel.stat().st_size < 20 * 2**20


@pytest.mark.slow
def test_train_sample_load_export_evaluate_report(wheel, tmp_path):
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", installed, wheel]
    subprocess.run(pip, check=True)
    environment = os.environ | {"PYTHONPATH": str(installed)}

    def call(*command):
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=empty, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def python(*command):
        return call(sys.executable, *command)

    def dallegan(*command):
        return call(installed / "bin" / "dallegan", *command)

    assert python("-c", "import dallegan; print(dallegan.__file__)").startswith(str(installed))
    assert "一只" in dallegan("sample", "一只棕色的大熊站在雪地里", "--n", 1)
    dallegan("train", "quickstart", *TINY_FLAGS)
    written = {path.name for path in (empty / "runs" / "quickstart").iterdir()}
    assert written >= {"config.json", "metrics.jsonl", "samples", "checkpoints", "report.html"}
    words = ["a red car", "--model", "runs/quickstart", "--n", 1, "--json"]
    (line,) = python("-m", "dallegan", "sample", *words).splitlines()
    assert (empty / json.loads(line)["path"]).exists()
    shape = "import dallegan; print(dallegan.load('runs/quickstart@best').sample('a cat').shape)"
    assert python("-c", shape) == "(1, 32, 32, 3)\n"
    dallegan("export", "--model", "runs/quickstart", "--out", "cars.jax")
    python("cars.py")
    assert "alignment" in dallegan("evaluate", "--model", "runs/quickstart", "--n", 50, "--features", "none")
    dallegan("report", "runs/quickstart", "--out", "page.html")
    dallegan("prepare", "storybook", "shards", "--help")
    bad = subprocess.run([installed / "bin" / "dallegan", "trian"], env=environment, check=False)
    assert bad.returncode == 2
