"""The examples run, as scripts and as notebooks."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs(name, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py"], cwd=tmp_path, env=os.environ | {"STEPS": "3"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_all_are_listed():
    text = (ROOT / "examples" / "README.md").read_text()
    assert all(f"`{name}.py`" in text for name in EXAMPLES)
