import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from dallegan.runtime import restart_with_huge_pages
print("started")
restart_with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""


def output(tmp_path, **environment):
    (tmp_path / "program.py").write_text(PROGRAM)
    clean = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    command = [sys.executable, str(tmp_path / "program.py"), "a b", "--c"]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own setting")
def test_a_program_starts_over_once_with_its_arguments(tmp_path):
    assert output(tmp_path) == ["started", "started", "glibc.malloc.hugetlb=1 ['a b', '--c']"]


def test_a_setting_of_ones_own_is_kept(tmp_path):
    assert output(tmp_path, GLIBC_TUNABLES="glibc.malloc.check=0") == ["started", "glibc.malloc.check=0 ['a b', '--c']"]
