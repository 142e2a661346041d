"""A process, the machine under it, and the other processes of a run."""

import contextlib
import datetime
import faulthandler
import hashlib
import importlib.metadata
import math
import os
import pathlib
import platform
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dallegan.config import ParallelConfig
from dallegan.errors import TransientError, UserError

HANG = 1800  # seconds without a step after which every process prints its stacks and exits
HEARTBEAT = 30  # seconds without a sign of life after which a process is taken for dead


def restart_with_huge_pages() -> None:
    """Starts this program over, once, with glibc's allocator asking for huge pages; nothing to do where that is not Linux's glibc.

    XLA takes a step's scratch memory anew each time, and touching it in pages of 4 KiB costs a step on a CPU an eighth of its time
    (benchmarks/LOG.md). glibc (2.35 or newer) reads the setting when a process starts, hence the restart; GLIBC_TUNABLES of
    one's own is left as it is.
    """
    if platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def about() -> dict[str, Any]:
    """What a result was measured with: command, date, device, versions."""
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    return {
        "command": f"python {_script()} {shlex.join(sys.argv[1:])}".rstrip(),
        "date": datetime.date.today().isoformat(),
        "device": f"{os.cpu_count()} cores of {_processor()}" if on_cpu else f"{jax.device_count()} x {device.device_kind}",
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
    }


def _script() -> str:
    path = pathlib.Path(sys.argv[0])
    return f"-m dallegan.{path.stem}" if path.parent.name == "dallegan" else f"{path.parent.name}/{path.name}".lstrip("/")


def _processor() -> str:
    """Its name and its widest vector unit, which counts for more: "AMD EPYC" multiplies at 150 or at 450 GF/s on two cores."""
    try:
        with open("/proc/cpuinfo") as file:
            about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in file)}
    except OSError:
        about = {}
    flags = about.get("flags", "").split()
    unit = " (AVX-512)" if "avx512f" in flags else " (AVX2)" if "avx2" in flags else ""
    return about.get("model name", platform.processor()) + unit


def join(parallel: ParallelConfig) -> None:
    """Joins the other processes of a run through `jax.distributed`, before JAX is used; nothing to do for a process by itself.

    A process that dies takes the others down within a minute, instead of leaving them to wait for it. UserError where the
    settings contradict each other or the others are not to be found.
    """
    given = {"coordinator_address": parallel.coordinator, "num_processes": parallel.processes, "process_id": parallel.process} if parallel.coordinator else {}
    if not given and parallel.processes > 1:
        raise UserError(f"--parallel.processes {parallel.processes}: needs --parallel.coordinator HOST:PORT, the address of process 0")
    if parallel.process >= parallel.processes:
        raise UserError(f"--parallel.process {parallel.process}: the {parallel.processes} processes are numbered from 0")
    if given and not re.fullmatch(r".+:\d+", parallel.coordinator):
        raise UserError(f"--parallel.coordinator {parallel.coordinator}: must be HOST:PORT, for example 10.0.0.2:8476")
    try:
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=HEARTBEAT)
    except ValueError as error:  # without settings: no cluster found, so this is the only process
        if given:
            raise UserError(f"--parallel.coordinator {parallel.coordinator}: {error}") from None
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"could not join the other processes of the run ({reason}): check --parallel.coordinator, or the cluster's job") from None


def is_main() -> bool:
    """Whether this process writes what only one may write."""
    return jax.process_index() == 0


def all_agree(fine: bool) -> bool:
    """Whether something is so on every process. All must call it, and wait for the slowest."""
    return fine if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.asarray(fine))))


def all_same(said: str) -> bool:
    """Whether all processes say the same. All must call it."""
    if jax.process_count() == 1:
        return True
    digests = multihost_utils.process_allgather(np.frombuffer(hashlib.sha256(said.encode()).digest(), np.uint8))
    return bool(np.all(digests == digests[0]))


def from_main(value: float | None) -> float | None:
    """The main process's value, on all of them. All must call it."""
    if jax.process_count() == 1:
        return value
    told = float(multihost_utils.broadcast_one_to_all(np.asarray(math.nan if value is None else value)))
    return None if math.isnan(told) else told


def told_by_main(text: str) -> str:
    """The main process's text, up to 1,000 bytes of it, on all of them. All must call it."""
    if jax.process_count() == 1:
        return text
    padded = np.frombuffer(text.encode("utf-8", "replace")[:1000].ljust(1000), np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(padded)).decode(errors="replace").strip()


def on_main(do: Callable[[], object]) -> None:
    """Does something on the main process while the others wait. The UserError that it raises is raised on all of them, so that each says what is wrong
    and ends with the same exit code. All must call it."""
    fault = ""
    if is_main():
        try:
            do()
        except UserError as error:
            fault = f"{'passing' if isinstance(error, TransientError) else 'bad'} {error}"
    if fault := told_by_main(fault):
        kind, _, text = fault.partition(" ")
        raise (TransientError if kind == "passing" else UserError)(text)


class Stop:
    """Asks a run to stop after a step, the same one on all processes: on SIGTERM, as clouds send it before they take a machine, or Ctrl-C.

    The second Ctrl-C acts as usual. Where `jax.distributed` runs, its own SIGTERM handler tells the other processes
    (a handler of ours would disable it), and Ctrl-C is passed on to it.
    """

    def __init__(self) -> None:
        self._asked = False
        self._shared = jax.distributed.is_initialized()

    def __enter__(self) -> "Stop":
        signals = [signal.SIGINT] if self._shared else [signal.SIGINT, signal.SIGTERM]
        if threading.current_thread() is not threading.main_thread():  # which alone may handle signals: that of a notebook's server, say, does
            signals = []
        self._old = {s: signal.signal(s, self._ask) for s in signals}
        return self

    def at(self, step: int) -> bool:
        """Whether to stop after this step; every process must ask at every step."""
        return multihost_utils.reached_preemption_sync_point(step) if self._shared else self._asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._restore()
        if self._shared:
            os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()


class Watchdog:
    """Ends a process that hangs, be it in the data, in a collective or in the device: the stacks of all threads on stderr, exit code 1.

    The processes that this takes down with it show theirs as well. Where there are several, the main one's clock runs `LAST`
    seconds longer: the others die with it, and would be cut short while they write. A process that is paused by SIGTSTP, which
    is Ctrl-Z and Slurm's suspend, does not hang: its clock starts over when it goes on.
    """

    LAST = 10

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds + self.LAST if seconds and is_main() and jax.process_count() > 1 else seconds

    def __enter__(self) -> "Watchdog":
        faulthandler.enable(file=2)  # on SIGABRT, by which `jax.distributed` ends a process whose peer is gone
        self._handles = hasattr(signal, "SIGTSTP") and threading.current_thread() is threading.main_thread()
        if self._handles:
            self._old = signal.signal(signal.SIGTSTP, self._pause)
        return self

    def _pause(self, number: int, frame: FrameType | None) -> None:
        faulthandler.cancel_dump_traceback_later()  # whose clock runs on, and would strike first thing afterwards
        signal.raise_signal(signal.SIGSTOP)
        self.alive()

    def alive(self) -> None:
        """Starts its clock over."""
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=2)

    def __exit__(self, *_: object) -> None:
        if self._handles:
            signal.signal(signal.SIGTSTP, self._old)
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()


class Clock:
    """Seconds of wall-clock by what they were spent on; phases may be nested, and each second counts once."""

    def __init__(self, phase: str, before: dict[str, float]) -> None:
        self.seconds = dict(before)
        self._phase, self._since = phase, time.perf_counter()

    def enter(self, phase: str) -> str:
        """From here on it is this phase's time; returns the one it was."""
        now, old = time.perf_counter(), self._phase
        self.seconds[old] = self.seconds.get(old, 0.0) + now - self._since
        self._phase, self._since = phase, now
        return old

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """This phase's time until the block ends."""
        old = self.enter(phase)
        try:
            yield
        finally:
            self.enter(old)
