"""Imports go only to a lower floor, and nothing is one house too big."""

import ast
import os
import subprocess
import sys

from conftest import ROOT

FLOORS = [
    ["errors", "terminal", "shapes"],
    ["files"],
    ["remote", "config", "rng", "image", "data.art", "data.grammar"],
    ["tokenizer"],
    ["data.source", "data.sprites"],
    ["models.layers", "models.efficientnet", "models.weights", "metrics"],
    ["models.encoder", "data.storybook", "data.emoji", "data.folder", "data.webdataset", "data.arrayrecord"],
    ["data.tfds"],
    ["models.generator", "models.judge"],
    ["models.decoder", "models.discriminator"],
    ["models.gan"],
    ["losses", "augment", "optim", "data.pipeline"],
    ["state"],
    ["steps"],
    ["parallel"],
    ["runtime"],
    ["checkpoint"],
    ["sampling"],
    ["", "cli"],
    ["features", "curves", "pictures"],
    ["evaluate", "prepare", "sample", "hub", "export", "demo", "report"],
    ["log"],
    ["loop"],
    ["train"],
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}


def modules():
    for path in sorted((ROOT / "dallegan").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "dallegan").with_suffix("").parts).removesuffix("__init__").removesuffix(".")
        yield name, path


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" for a in node.names] + [node.module]
        else:
            continue
        yield from (n.removeprefix("dallegan").removeprefix(".") for n in names if n and n.split(".")[0] == "dallegan")


def test_imports_go_down():
    for name, path in modules():
        if name in ("data", "models"):
            assert len(path.read_text().splitlines()) == 1
            continue
        assert name in LEVEL, f"{name} has no floor: give it one here and in the design"
        for other in imported(path):
            if other in LEVEL and other:
                assert LEVEL[other] < LEVEL[name], f"{name} imports {other}, which is not below it"


def test_files_are_short():
    for path in [*(ROOT / "dallegan").rglob("*.py"), *(ROOT / "configs").glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, path
    for name in ("train.py", "sample.py"):
        assert len((ROOT / name).read_text().splitlines()) < 80


def test_no_tensorflow(tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('it is imported')")
    for imported, code in (("tensorflow", 1), ("dallegan.loop, dallegan.data.tfds", 0)):
        env = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", f"import {imported}"], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, "it is imported" in done.stderr) == (code, bool(code)), done.stderr
