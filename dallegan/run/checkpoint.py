"""Checkpoints: Orbax writes them whole or not at all, beside the training; loading falls back to the newest step that is intact."""

import contextlib
import json
import logging
import pathlib
import warnings
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from dallegan.errors import UserError
from dallegan.io.files import write_atomic
from dallegan.run.processes import all_agree, is_main, told_by_main

KEEP = 2  # newest checkpoints that are kept, beside the best one
SUMS = "checksums.json"  # in a checkpoint's folder: {file: [bytes, crc32]}, written last
BLOCK = 2**24  # bytes read at once

# Orbax tells of each save, by absl's logger, which is others' as well
logging.getLogger("absl").addFilter(lambda record: not {"orbax", "etils"} & {*pathlib.Path(record.pathname).parts})


class Checkpoints:
    """The checkpoints of a run, in `WORKDIR/checkpoints`: the newest `keep`, and the one of the best score.

    Only the writer removes what a kill left half written. With several processes all must call everything, on one shared file system.
    """

    def __init__(self, workdir: str | pathlib.Path, keep: int, writer: bool = False) -> None:
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        self._keep, self._writer = keep, writer
        self._thread = ThreadPoolExecutor(1)
        self._saving: tuple[int, Future[None]] | None = None
        self._damaged: set[int] = set()
        self._open()

    def _open(self) -> None:
        policies = ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=lambda metrics: metrics["score"], n=1, keep_checkpoints_without_metrics=False)
        keep: Any = policies.AnyPreservationPolicy([policies.LatestN(self._keep), best])
        self._orbax = ocp.training.Checkpointer(str(self.directory), preservation_policy=keep, cleanup_tmp_directories=self._writer)

    def steps(self) -> list[int]:
        """Steps that were saved, oldest first."""
        return sorted(c.step for c in self._orbax.checkpoints)

    def best(self) -> int | None:
        """The step of the best score; None where none was scored."""
        scored = [(c.metrics["score"], c.step) for c in self._orbax.checkpoints if isinstance(c.metrics, dict)]
        return max(scored)[1] if scored else None

    def chosen(self, at: str) -> int | None:
        """The step that RUN@`at` names: "best" or a number; None for "", the newest that can be read."""
        return self.best() if at == "best" else int(at) if at else None

    def newest(self) -> int | None:
        """The newest step whose files are intact, which `restore` takes; None where there is none."""
        return next((step for step in reversed(self.steps()) if not self._fault(step)), None)

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Begins to write the state of a step, which may be donated as soon as this returns; the write before is waited for.

        What cannot be written, on a full disk say, is a warning: the checkpoints before it stay as they are.
        """
        self.wait()
        if step in self.steps() and step not in self._damaged:
            return
        metrics: Any = None if score is None else {"score": score}
        try:
            response = self._orbax.save_checkpointables_async(step, {"state": state}, force=True, overwrite=step in self._damaged, metrics=metrics)
        except Exception as error:  # Orbax wraps what the file system says in errors of its own
            failed: Future[None] = Future()
            failed.set_exception(error)
            self._saving = step, failed  # what was begun is told by `wait`, wherever it ended
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
        """Waits for the write in progress; whether it, if there was one, succeeded."""
        if self._saving is None:
            return True
        (step, future), self._saving = self._saving, None
        try:
            future.result()
        except Exception as error:
            self._failed(step, error)
            return False
        return True

    def _failed(self, step: int, error: Exception) -> None:
        reason = str(error).strip().splitlines()[0].split(": ")[-1][:200] if str(error).strip() else type(error).__name__
        warnings.warn(
            f"CHECKPOINT {step} COULD NOT BE WRITTEN ({reason}). Training goes on, and those before it are intact; make room in {self.directory}, "
            "for a kill now would go back to them",
            stacklevel=3,
        )
        with contextlib.suppress(Exception):
            self._orbax.close()
        self._open()  # which removes what is half written

    def restore(self, abstract: Any, step: int | None = None, partial: bool = False) -> Any | None:
        """The state of a step, or the newest that is intact, with the shapes and shardings of `abstract`; None where nothing was saved.

        Several processes restore the same one. UserError where checkpoints exist and none can be read.
        """
        steps = self.steps() if step is None else [step]
        for step in reversed(steps):
            fault, state = self._fault(step), None
            if not fault:
                try:
                    with _partially() if partial else contextlib.nullcontext():
                        state = self._orbax.load_checkpointables(step, {"state": abstract})["state"]
                except Exception as error:  # Orbax raises KeyError, NoEntryError, ValueError, ... for what is damaged
                    fault = type(error).__name__
            if all_agree(not fault):
                return state
            self._damaged.add(step)
            then = ": trying the one before" if step != steps[0] else ""
            warnings.warn(f"checkpoint {step} cannot be read ({fault or 'by another process'}){then}", stacklevel=2)
        if steps:
            raise UserError(f"none of the checkpoints {steps} in {self.directory} can be read by this model")
        return None

    def _fault(self, step: int) -> str:
        """What is wrong with the files of a step, looked at by one process for all; "" for nothing, or where no checksums were written yet."""
        found = ""
        if is_main():
            folder = self.directory / str(step)
            try:
                found = _compare(json.loads((folder / SUMS).read_text()), _checksums(folder))
            except FileNotFoundError:
                pass  # killed between the last byte and the checksums, or older: Orbax's own commit marker stands for it
            except (OSError, ValueError, AttributeError) as error:
                found = type(error).__name__
        return told_by_main(found)

    def close(self) -> None:
        """Waits for what is being written, and releases Orbax's threads."""
        self.wait()
        self._thread.shutdown()
        self._orbax.close()


def _checksums(folder: pathlib.Path) -> dict[str, list[int]]:
    """{file: [bytes, crc32]} of all files of a checkpoint."""
    sums = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS):
        crc = size = 0
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                crc, size = zlib.crc32(block, crc), size + len(block)
        sums[path.relative_to(folder).as_posix()] = [size, crc]
    return sums


def _compare(written: dict[str, list[int]], found: dict[str, list[int]]) -> str:
    changed = sorted(name for name in written if found.get(name) != written[name])
    return "" if not changed else f"{changed[0]} is {'damaged' if changed[0] in found else 'missing'}"


def _partially() -> Any:
    """Orbax's context in which a part of a state may be restored."""
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    return context


def load_state(folder: str | pathlib.Path, abstract: Any, at: str = "") -> Any:
    """Restores a state, or the part of it that `abstract` has, from a run on one device.

    at: "" for the newest intact checkpoint, "best", or a step. Raises UserError if there is none.
    """
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract)
    with contextlib.closing(Checkpoints(folder, KEEP)) as checkpoints:
        steps, step = checkpoints.steps(), checkpoints.chosen(at)
        if not steps:
            raise UserError(f"{folder} has no checkpoint yet: let train.py run until its first one")
        if at and step not in steps:
            raise UserError(f"{folder} has no checkpoint @{at}: there are {', '.join(map(str, steps))}")
        state = checkpoints.restore(abstract, step, partial=True)
    assert state is not None
    return state
