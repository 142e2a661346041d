"""Checkpoints: Orbax writes each one whole or not at all, beside the training; loading skips damaged ones."""

import contextlib
import json
import logging
import pathlib
import shutil
import warnings
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from dallegan.errors import UserError
from dallegan.io.files import parse_object, read_file, write_atomic
from dallegan.run.processes import all_agree, from_main, is_main
from dallegan.run.workdir import TOKENIZER, tokenizer_digest

KEEP = 2  # newest checkpoints that are kept, beside the best one
SUMS = "checksums.json"  # in the folder of a checkpoint: {file: [bytes, crc32]}, written last
BLOCK = 2**24  # bytes that are read at once for a checksum
# Orbax raises the system's OSError, TensorStore's errors as ValueError, and XLA's as RuntimeError
WRITE_ERRORS = (OSError, ValueError, RuntimeError)


class Checkpoints:
    """Saves and restores the states of a run in `WORKDIR/checkpoints`.

    It keeps the newest `keep` checkpoints and the one with the best score. In a run of several processes, all
    of them must call each method, and see one directory. Only an object with `writer=True` removes what a
    kill left half written. While an object is open, Orbax's own messages about each save are silenced.
    `identity` is stored in each checkpoint, and `restore` refuses one that has other values of the same keys.
    """

    def __init__(
        self, workdir: str | pathlib.Path, keep: int = KEEP, writer: bool = False, identity: Any = None
    ) -> None:
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        self._keep, self._writer = keep, writer
        self._identity: dict[str, Any] = json.loads(json.dumps(identity or {}))  # with lists for tuples
        self._thread = ThreadPoolExecutor(1)
        self._saving: tuple[int, Future[None]] | None = None
        self._damaged: set[int] = set()
        self._filter = lambda record: not {"orbax", "etils"} & {*pathlib.Path(record.pathname).parts}
        logging.getLogger("absl").addFilter(self._filter)  # which other packages log to as well
        self._open()

    def _open(self) -> None:
        self._failed = False  # whether a write has failed since
        policies = ocp.training.preservation_policies
        score = lambda metrics: metrics["score"]
        best = policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        keep: Any = policies.AnyPreservationPolicy([policies.LatestN(self._keep), best])
        try:
            self._orbax = ocp.training.Checkpointer(
                str(self.directory), preservation_policy=keep, cleanup_tmp_directories=self._writer
            )
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):  # of damaged metadata
            logging.getLogger("absl").removeFilter(self._filter)
            steps = [path.name for path in self.directory.glob("*") if path.name.isdigit()]
            damaged = [step for step in steps if self._fault(int(step))] or steps
            which = f"checkpoint {' or '.join(damaged)} in {self.directory}"
            raise UserError(f"{which} is damaged: remove it, and the run resumes from another one") from None

    def steps(self) -> list[int]:
        """Returns the steps that were saved, oldest first."""
        if self._failed:
            self._open()  # removes what is half written
        return sorted(c.step for c in self._orbax.checkpoints)

    def best(self) -> int | None:
        """Returns the step with the best score, or None if none has a score."""
        saved = [(c.metrics, c.step) for c in self._orbax.checkpoints]
        scored = [(metrics["score"], step) for metrics, step in saved if isinstance(metrics, dict)]
        return max(scored)[1] if scored else None

    def chosen(self, at: str) -> int | None:
        """Returns the step that RUN@`at` names, "best" or a number; None for "", the newest intact one."""
        return self.best() if at == "best" else int(at) if at else None

    def newest(self) -> int | None:
        """Returns the newest step whose files are intact, or None if there is none."""
        return next((step for step in reversed(self.steps()) if not self._fault(step)), None)

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Begins to write a state, which may be donated as soon as this returns; waits for the write before.

        A write that fails, for example on a full disk, is a warning, and earlier checkpoints stay as they
        are.
        """
        self.wait()
        if step in self.steps() and step not in self._damaged:
            return
        metrics = None if score is None else {"score": score}
        again = step in self._damaged
        try:
            options: Any = {"metrics": metrics, "custom_metadata": self._identity}
            response = self._orbax.save_checkpointables_async(
                step, {"state": state}, force=True, overwrite=again, **options
            )
        except WRITE_ERRORS as error:
            failed: Future[None] = Future()
            failed.set_exception(error)
            self._saving = step, failed  # `wait` reports it, like an error that comes later
            return
        self._damaged.discard(step)
        self._saving = step, self._thread.submit(self._finish, step, response)

    def _finish(self, step: int, response: Any) -> None:
        response.result()
        if is_main():
            folder = self.directory / str(step)
            with contextlib.suppress(OSError):  # the checkpoint itself is whole
                write_atomic(folder / SUMS, json.dumps(_checksums(folder)))

    def wait(self) -> bool:
        """Waits for the write in progress, and returns False if it failed."""
        if self._saving is None:
            return True
        (step, future), self._saving = self._saving, None
        try:
            future.result()
        except WRITE_ERRORS as error:
            self._recover(step, error)
            return False
        return True

    def _recover(self, step: int, error: Exception) -> None:
        message = str(error).strip() or type(error).__name__
        reason = message.splitlines()[0].split(": ")[-1][:200]
        warnings.warn(
            f"CHECKPOINT {step} COULD NOT BE WRITTEN ({reason}). Training goes on, and earlier checkpoints "
            f"are intact: a restart would resume from the newest. Mend the cause in {self.directory}",
            stacklevel=3,
        )
        with contextlib.suppress(*WRITE_ERRORS):
            self._orbax.close()
        self._failed = True

    def restore(self, abstract: Any, step: int | None = None, partial: bool = False) -> Any | None:
        """Restores the state of a step, or the newest one that is intact, on all processes alike.

        Args:
            abstract: shapes, dtypes and shardings of the state.
            step: the step; None for the newest one that can be read.
            partial: whether `abstract` may be a part of the state that was saved.

        Returns:
            The state, or None if nothing was saved yet.

        Raises:
            UserError: if there are checkpoints, but none that can be read; or if the one that would be used
                has another `identity`.
        """
        steps = self.steps() if step is None else [step]
        for step in reversed(steps):
            fault, state = self._fault(step), None
            if not fault:
                self._check_identity(step)
                context = ocp.Context()
                context.pytree.loading.partial_load = partial
                try:
                    with context:
                        state = self._orbax.load_checkpointables(step, {"state": abstract})["state"]
                except Exception as error:  # on damaged files, Orbax fails with nearly any type
                    fault = type(error).__name__
            if all_agree(not fault):
                return state
            self._damaged.add(step)
            reason = fault or "by another process"
            then = ": trying the one before" if step != steps[0] else ""
            warnings.warn(f"checkpoint {step} cannot be read ({reason}){then}", stacklevel=2)
        if steps:
            raise UserError(f"none of the checkpoints {steps} in {self.directory} can be read by this model")
        return None

    def check_place(self, place: str, step: int, state: Any) -> None:
        """Checks that `place`, where the run's directory lies now, is where it lay when this was opened.

        Raises UserError if it was renamed, after saving the state there, or if it is gone (`place` is "").
        """
        home, saved = self.directory.parent, False
        if place == str(home):
            return
        self.wait()
        if place:
            with contextlib.closing(Checkpoints(place, self._keep, identity=self._identity)) as there:
                there.save(step, state)
                saved = there.wait()
        if (saved or not place) and [path.name for path in home.glob("*")] == [self.directory.name]:
            shutil.rmtree(home, ignore_errors=True)  # made again by a save that was in progress
        if not place:
            raise UserError(f"{home} was removed, or taken by another process, before step {step} was saved")
        was = f"{home} was renamed to {place} while it trained"
        raise UserError(f"{was}: stopped{' and saved' * saved} at step {step}; --workdir {place} resumes")

    def _check_identity(self, step: int) -> None:
        stored: Any = {}
        with contextlib.suppress(Exception):  # damage, which the load after this reports
            stored = self._orbax.checkpointables_metadata(step).custom_metadata or {}
        if changed := from_main([k for k, v in self._identity.items() if stored.get(k, v) != v]):
            raise UserError(
                f"checkpoint {step} of {self.directory.parent} was trained with other values of "
                f"{', '.join(changed)}: put them back, or choose another --workdir"
            )

    def _fault(self, step: int) -> str:
        """Returns what is wrong with the files of a step, as the main process sees them; "" if nothing is.

        There may be no checksums yet, after a kill between the last byte and them. Orbax's own commit marker
        then tells whether the checkpoint is whole.
        """
        fault = ""
        if is_main():
            folder = self.directory / str(step)
            try:
                fault = _compare(parse_object(read_file(folder / SUMS, 2**26)), _checksums(folder))
            except FileNotFoundError:
                pass
            except (OSError, ValueError) as error:
                fault = type(error).__name__
        return from_main(fault)

    def close(self) -> None:
        """Waits for the write in progress, and releases Orbax's threads."""
        self.wait()
        self._thread.shutdown()
        if not self._failed:
            self._orbax.close()
        logging.getLogger("absl").removeFilter(self._filter)


def _checksums(folder: pathlib.Path) -> dict[str, list[int]]:
    """Returns {file: [bytes, crc32]} for all files of a checkpoint; hidden ones are the file system's."""
    sums = {}
    for path in sorted(p for p in folder.rglob("[!.]*") if p.is_file() and p.name != SUMS):
        crc = size = 0
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                crc, size = zlib.crc32(block, crc), size + len(block)
        sums[path.relative_to(folder).as_posix()] = [size, crc]
    return sums


def _compare(written: dict[str, Any], found: dict[str, list[int]]) -> str:
    changed = sorted(name for name in {*written, *found} if found.get(name) != written.get(name))
    return "" if not changed else f"{changed[0]} is {'damaged' if changed[0] in found else 'missing'}"


def load_state(folder: str | pathlib.Path, abstract: Any, at: str = "") -> Any:
    """Restores a state, or a part of it, from a run to one device.

    Args:
        folder: the directory of the run.
        abstract: shapes and dtypes of the state, or of the part of it that is wanted.
        at: "" for the newest intact checkpoint, "best", or a step.

    Raises:
        UserError: if there is no such checkpoint, if it cannot be read, or if the run's tokenizer is another
            than the one that it was trained with.
    """
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract)
    identity = {TOKENIZER: tokenizer_digest(pathlib.Path(folder))}
    with contextlib.closing(Checkpoints(folder, identity=identity)) as checkpoints:
        steps, step = checkpoints.steps(), checkpoints.chosen(at)
        if not steps:
            raise UserError(f"{folder} has no checkpoint yet: train until the run has saved its first one")
        if at and step not in steps:
            raise UserError(f"{folder} has no checkpoint @{at}: there are {', '.join(map(str, steps))}")
        return checkpoints.restore(placed, step, partial=True)
