"""The machine under a run: the command that it reports, and the restart with huge pages."""

import os
import platform
import subprocess
import sys

import pytest
from conftest import ROOT

from dallegan.run.machine import about

PROGRAM = """
import os, sys
from dallegan.run.machine import restart_with_huge_pages
print("started")
restart_with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""


def output(tmp_path, **environment):
    (tmp_path / "program.py").write_text(PROGRAM)
    clean = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    command = [sys.executable, str(tmp_path / "program.py"), "a b", "--c"]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own setting")
def test_a_program_restarts_once_with_its_arguments(tmp_path):
    assert output(tmp_path) == ["started", "started", "glibc.malloc.hugetlb=1 ['a b', '--c']"]


def test_a_setting_of_the_users_own_is_kept(tmp_path):
    expected = ["started", "glibc.malloc.check=0 ['a b', '--c']"]
    assert output(tmp_path, GLIBC_TUNABLES="glibc.malloc.check=0") == expected


@pytest.mark.parametrize(
    ("program", "shown"),
    [
        (f"{ROOT}/train.py", "python train.py"),
        (f"{ROOT}/benchmarks/quality.py", "python benchmarks/quality.py"),
        (f"{ROOT}/dallegan/__main__.py", "python -m dallegan"),
        ("/usr/local/bin/dallegan", "dallegan"),
        ("/home/someone/own.py", "python own.py"),
    ],
)
def test_the_command_can_be_typed_again(monkeypatch, program, shown):
    monkeypatch.setattr(sys, "argv", [program, "evaluate", "--model", "my run"])
    assert about()["command"] == f"{shown} evaluate --model 'my run'"
