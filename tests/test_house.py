"""The house holds together: imports go down, files are short, nothing heavy is imported by accident."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT


def test_imports_go_down():
    """The layers stand in pyproject.toml, [tool.importlinter]."""
    pytest.importorskip("importlinter")
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_files_are_short():
    for path in [*(ROOT / "dallegan").rglob("*.py"), *(ROOT / "configs").glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, path
    for name in ("train.py", "sample.py"):
        assert len((ROOT / name).read_text().splitlines()) < 20
    assert len([*(ROOT / "dallegan").glob("*.py")]) <= 16, "the root of the package is the method"


def test_no_tensorflow(tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('it is imported')")
    for imported, code in (("tensorflow", 1), ("dallegan.loop, dallegan.data.tfds", 0)):
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-c", f"import {imported}"]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, "it is imported" in done.stderr) == (code, bool(code)), done.stderr


def test_importing_the_package_imports_no_training_code():
    training = [
        "optax",
        "orbax",
        "grain",
        "array_record",
        "tensorflow_datasets",
        "dallegan.steps",
        "dallegan.losses",
    ]
    program = f"import sys, dallegan; print([name for name in {training} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
