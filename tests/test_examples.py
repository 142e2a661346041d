"""The examples run as scripts and as notebooks."""

import os
import subprocess
import sys

import jupytext
import pytest
from conftest import ROOT
from nbclient import NotebookClient

EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs_as_a_notebook(name, tmp_path, monkeypatch):
    monkeypatch.setenv("STEPS", "3")
    notebook = jupytext.read(ROOT / "examples" / f"{name}.py")
    assert [cell.cell_type for cell in notebook.cells][:2] == ["markdown", "code"]
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert any(
        output.get("name") == "stdout" for cell in notebook.cells for output in cell.get("outputs", ())
    )


@pytest.mark.slow
def test_it_runs_as_a_script(tmp_path):
    """One script stands for all: the notebooks have the same code."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "own_loop.py"],
        cwd=tmp_path,
        env=os.environ | {"STEPS": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_all_are_listed():
    text = (ROOT / "examples" / "README.md").read_text()
    assert all(f"`{name}.py`" in text for name in EXAMPLES)
