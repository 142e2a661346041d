import os
import platform
import signal
import subprocess
import sys
import time

import pytest

from dallegan.config import ParallelConfig
from dallegan.errors import UserError
from dallegan.run.processes import Clock, join

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
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own setting")
def test_a_program_starts_over_once_with_its_arguments(tmp_path):
    assert output(tmp_path) == ["started", "started", "glibc.malloc.hugetlb=1 ['a b', '--c']"]


def test_a_setting_of_ones_own_is_kept(tmp_path):
    assert output(tmp_path, GLIBC_TUNABLES="glibc.malloc.check=0") == ["started", "glibc.malloc.check=0 ['a b', '--c']"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"processes": 2}, "--parallel.processes 2: needs --parallel.coordinator HOST:PORT"),
        ({"coordinator": "localhost:1", "processes": 2, "process": 2}, "--parallel.process 2: the 2 processes are numbered from 0"),
        ({"coordinator": "somewhere", "processes": 2}, "--parallel.coordinator somewhere: must be HOST:PORT"),
        ({"process": 1}, "--parallel.process 1: the 1 processes"),
    ],
)
def test_settings_of_processes_that_contradict_each_other(settings, message):
    with pytest.raises(UserError, match=message):
        join(ParallelConfig(**settings))


def test_each_second_counts_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Clock("init", {"step": 5.0})

    def spend(seconds):
        now[0] += seconds

    spend(1)
    clock.enter("step")
    spend(2)
    with clock("eval"):
        spend(4)
        with clock("save"):
            spend(8)
        spend(16)
    spend(32)
    clock.enter("step")
    assert clock.seconds == {"init": 1, "step": 5 + 34, "eval": 20, "save": 8}


PAUSED = """
import time
from dallegan.run.processes import Watchdog
with Watchdog(2) as watchdog:
    watchdog.alive()
    print("training", flush=True)
    time.sleep(1)  # of which a pause is no part
    print("went on", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGTSTP"), reason="no Ctrl-Z here")
def test_a_pause_is_no_hang(tmp_path):
    """Paused by Ctrl-Z for longer than the watchdog waits, a process goes on; and ends when it hangs after that."""
    (tmp_path / "program.py").write_text(PAUSED)
    with subprocess.Popen([sys.executable, tmp_path / "program.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "training\n"
        process.send_signal(signal.SIGTSTP)
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        time.sleep(3)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("went on\n", 1)
    assert "Timeout" in err
    assert "program.py" in err
