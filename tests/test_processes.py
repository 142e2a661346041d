"""The processes of a run: settings that contradict each other, the watchdog, the clock."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dallegan.config import ParallelConfig
from dallegan.errors import UserError
from dallegan.run.processes import Clock, Stop, join


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"processes": 2}, "--parallel.processes 2: needs --parallel.coordinator HOST:PORT"),
        (
            {"coordinator": "localhost:1", "processes": 2, "process": 2},
            "--parallel.process 2: the 2 processes are numbered from 0",
        ),
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


def test_a_closed_terminal_stops_a_run_once_it_has_saved():
    """SIGHUP and SIGTERM may come twice, and only the second Ctrl-C interrupts."""
    before = signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        for number in (signal.SIGHUP, signal.SIGTERM):
            with Stop() as stop:
                assert not stop.at(1)
                for _ in range(2):
                    signal.raise_signal(number)
                    assert stop.at(1)
            assert signal.getsignal(number) == signal.SIG_DFL
        with Stop() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.at(1)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # by nohup
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.at(1)
    finally:
        signal.signal(signal.SIGHUP, before)


PAUSED = """
import time
from dallegan.run.processes import Watchdog
with Watchdog(2) as watchdog:
    watchdog.alive()
    print("training", flush=True)
    time.sleep(1)  # which the pause does not count in
    print("continued", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGTSTP"), reason="no Ctrl-Z here")
def test_a_pause_is_no_hang(tmp_path):
    """A process that Ctrl-Z paused for longer than the watchdog waits continues; it ends if it hangs."""
    (tmp_path / "program.py").write_text(PAUSED)
    command = [sys.executable, tmp_path / "program.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "training\n"
        process.send_signal(signal.SIGTSTP)
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        time.sleep(3)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("continued\n", 1)
    assert "Timeout" in err
    assert "program.py" in err
