"""The processes of a run: how they find each other and agree, stop together, and end if one of them hangs."""

import contextlib
import faulthandler
import hashlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from dallegan.config import ParallelConfig
from dallegan.errors import TransientError, UserError

T = TypeVar("T")
HEARTBEAT = 30  # seconds without a sign of life after which a process is taken for dead
HANG = 1800  # seconds without a step after which every process prints its stacks and exits
HANG_MAIN = 10  # seconds that the main process waits longer than the others


# -------- Finding each other


def join(parallel: ParallelConfig) -> None:
    """Joins the other processes of a run through `jax.distributed`; does nothing if there are no others.

    Must be called before JAX is used. A process that dies later takes the others down within a minute, so
    that they do not wait for it for ever. Raises UserError if the settings contradict each other or no other
    process answers.
    """
    address, count, number = parallel.coordinator, parallel.processes, parallel.process
    if not address and count > 1:
        need = "needs --parallel.coordinator HOST:PORT, the address of process 0"
        raise UserError(f"--parallel.processes {count}: {need}")
    if number >= count:
        raise UserError(f"--parallel.process {number}: the {count} processes are numbered from 0")
    if address and not re.fullmatch(r".+:\d+", address):
        raise UserError(f"--parallel.coordinator {address}: must be HOST:PORT, for example 10.0.0.2:8476")
    try:
        jax.distributed.initialize(
            coordinator_address=address or None,
            num_processes=count if address else None,
            process_id=number if address else None,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except ValueError as error:  # without an address: JAX found no cluster, so this process is the only one
        if address:
            raise UserError(f"--parallel.coordinator {address}: {error}") from None
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        hint = "check --parallel.coordinator, or the cluster's job"
        raise UserError(f"could not join the other processes of the run ({reason}): {hint}") from None


def is_main() -> bool:
    """Returns whether this is the process that writes the files of the run, number 0."""
    return jax.process_index() == 0


# -------- Agreeing: every process must call these, and waits for the slowest


def all_agree(fine: bool) -> bool:
    """Returns whether `fine` is true on every process."""
    if jax.process_count() == 1:
        return fine
    return bool(np.all(multihost_utils.process_allgather(np.asarray(fine))))


def all_same(text: str) -> bool:
    """Returns whether every process passes the same text."""
    if jax.process_count() == 1:
        return True
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    return bool(np.all(digests == digests[0]))


def from_main(value: T) -> T:
    """Returns the main process's value, which must be JSON, on every process."""
    if jax.process_count() == 1:
        return value
    data = json.dumps(value).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(len(data))))
    sent = np.frombuffer(data.ljust(size)[:size], np.uint8)  # as long as the main process's, on all
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(sent)))


def on_main(do: Callable[[], object]) -> None:
    """Calls `do` on the main process while the others wait.

    If `do` raises UserError, every process raises it, so that each says what is wrong and ends with the same
    exit code.
    """
    fault = None
    if is_main():
        try:
            do()
        except UserError as error:
            fault = {"message": str(error), "transient": isinstance(error, TransientError)}
    if fault := from_main(fault):
        raise (TransientError if fault["transient"] else UserError)(fault["message"])


# -------- Stopping


class Stop:
    """Stops a run after the same step on all processes, on SIGTERM, on Ctrl-C, or if its terminal is closed.

    Clouds send SIGTERM before they take a machine. A closed terminal sends SIGHUP, often twice, which `nohup`
    has the process ignore. A second Ctrl-C interrupts at once, as it usually does. In a run of several
    processes, JAX's own SIGTERM handler tells the other processes. A handler of ours would disable it, so
    the other signals are handled here, and passed on as SIGTERM.
    """

    def __init__(self) -> None:
        self._requested = False
        self._distributed = jax.distributed.is_initialized()

    def __enter__(self) -> "Stop":
        signals = [signal.SIGINT] if self._distributed else [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signals.append(signal.SIGHUP)
        if threading.current_thread() is not threading.main_thread():  # as in a notebook's server
            signals = []  # Python handles signals in the main thread alone
        self._previous = {number: signal.signal(number, self._request) for number in signals}
        return self

    def at(self, step: int) -> bool:
        """Returns whether to stop after this step. Every process must call this at every step."""
        return multihost_utils.reached_preemption_sync_point(step) if self._distributed else self._requested

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        if number == signal.SIGINT:
            signal.signal(number, self._previous[signal.SIGINT])
        if self._distributed:
            os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Watchdog:
    """Ends a process that hangs, in its data, in a collective or on the device.

    The process prints the stacks of all threads on stderr and exits with code 1. Processes that die with it
    print theirs, too. The main process waits HANG_MAIN seconds longer than the others, since its end would
    cut them short while they print. A process that SIGTSTP pauses (Ctrl-Z, or Slurm's suspend) does not hang:
    its clock starts over when the process continues.
    """

    def __init__(self, seconds: int | None = None) -> None:
        """Waits `seconds` (default: HANG) between calls of `alive`."""
        longer = HANG_MAIN if is_main() and jax.process_count() > 1 else 0
        self._seconds = (HANG if seconds is None else seconds) + longer

    def __enter__(self) -> "Watchdog":
        faulthandler.enable(
            file=2
        )  # for SIGABRT, by which `jax.distributed` ends a process whose peer is gone
        self._handles = hasattr(signal, "SIGTSTP") and threading.current_thread() is threading.main_thread()
        if self._handles:
            self._previous = signal.signal(signal.SIGTSTP, self._pause)
        return self

    def _pause(self, number: int, frame: FrameType | None) -> None:
        faulthandler.cancel_dump_traceback_later()  # its clock does not pause, and would strike on continuing
        signal.raise_signal(signal.SIGSTOP)
        self.alive()

    def alive(self) -> None:
        """Starts the clock over."""
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=2)

    def __exit__(self, *_: object) -> None:
        if self._handles:
            signal.signal(signal.SIGTSTP, self._previous)
        faulthandler.cancel_dump_traceback_later()


# -------- Time


class Clock:
    """Measures the wall-clock seconds of each phase of a run. Phases nest, and each second counts once."""

    def __init__(self, phase: str, seconds: dict[str, float] | None = None) -> None:
        """Starts in `phase`, on top of the `seconds` of each phase that were measured before."""
        self.seconds = dict(seconds or {})
        self._phase, self._since = phase, time.perf_counter()

    def enter(self, phase: str) -> str:
        """Ends the current phase, begins another, and returns the name of the one that ended."""
        now, ended = time.perf_counter(), self._phase
        self.seconds[ended] = self.seconds.get(ended, 0.0) + now - self._since
        self._phase, self._since = phase, now
        return ended

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Counts the time of the block for `phase`."""
        outer = self.enter(phase)
        try:
            yield
        finally:
            self.enter(outer)
