"""What a run reports while it trains: a progress bar, and metrics.jsonl, whose lines the boards show."""

import json
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dallegan.errors import UserError
from dallegan.io.files import write_atomic, writing
from dallegan.io.text import shown
from dallegan.run.boards import Board
from dallegan.run.metrics_file import read_metrics
from dallegan.run.processes import Clock, is_main
from dallegan.run.workdir import warn_on_oserror

MAX_SKIPPED = 10  # steps in a row that may be skipped because they are not finite
AVERAGED = (
    "d_loss", "g_loss", "r1", "r2", "match_gap", "pair_gap", "score_real", "score_fake",
    "grad_norm_g", "grad_norm_d",
)  # fmt: skip  # metrics of a step; a line has their means
IN_BAR = "d_loss", "g_loss", "match_gap"  # shown beside the progress bar


class Diverged(UserError):
    """Raised after MAX_SKIPPED steps in a row whose loss or gradient was not finite."""


class Log:
    """Writes metrics.jsonl, and shows a progress bar and boards, on the main process alone.

    The metrics in a line are means since the line before, or since the process started. `seconds` counts the
    whole run by phase. Its phase "lost" is work that a kill undid, as far as the lines tell, and `goodput` is
    the fraction of all seconds that steps took.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        batch: int,
        steps: int,
        start: int,
        clock: Clock,
        boards: Sequence[Board] = (),
    ) -> None:
        """Continues the metrics.jsonl of a run.

        Args:
            workdir: the directory of the run.
            batch: images in a step.
            steps: length of the run.
            start: the step that this process starts at. Later lines, which a kill may have left, are removed.
            clock: measures the phases of this process; the seconds of earlier processes are added to it.
            boards: where each line is shown, too.
        """
        self._path, self._batch, self._clock, self._boards = workdir / "metrics.jsonl", batch, clock, boards
        lines = read_metrics(self._path)
        kept = [line for line in lines if line["step"] <= start]
        before, after = ((part[-1].get("seconds", {}) if part else {}) for part in (kept, lines))
        clock.seconds |= {name: seconds + clock.seconds.get(name, 0.0) for name, seconds in before.items()}
        lost = max(0.0, sum(after.values()) - sum(before.values()))
        clock.seconds["lost"] = clock.seconds.get("lost", 0.0) + lost
        self._pending: Mapping[str, jax.Array] | None = None  # metrics of the newest step, not yet read
        self._values: dict[str, list[float]] = {}  # metrics of the steps since the last line
        self._skipped = kept[-1].get("skipped") or 0 if kept else 0
        self._last_step, self._last_seconds = start, dict(clock.seconds)
        self._torn = False  # whether the last line may lack its end, so that the next one must not follow it
        self._bar = tqdm(disable=True)
        if not is_main():
            return
        with writing(self._path):
            write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        tty = sys.stderr.isatty()
        self._bar = tqdm(
            desc=shown(workdir.name, 40),
            total=steps * batch,
            initial=start * batch,
            unit="img",
            unit_scale=True,
            smoothing=0.05,
            dynamic_ncols=tty,
            mininterval=0.5 if tty else 30,
        )

    def start(self) -> None:
        """Begins to count time as training."""
        self._clock.enter("step")
        self._last_seconds = dict(self._clock.seconds)
        self._bar.unpause()

    def add(self, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of a step that was just dispatched, and reads those of the step before.

        So the device always has a step to compute. Raises Diverged.
        """
        self.sync()
        self._pending = metrics

    def sync(self) -> None:
        """Waits for the newest step and reads its metrics. Raises Diverged."""
        if self._pending is None:
            return
        values, self._pending = {name: float(value) for name, value in self._pending.items()}, None
        step, skipped = int(values["step"]), int(values["skipped"])
        if skipped > self._skipped:
            self.note(f"step {step} was not finite and is left out")
        self._skipped = skipped
        for name in AVERAGED:
            if name in values:
                self._values.setdefault(name, []).append(values[name])
        self._bar.update(self._batch)
        if values["skipped_in_a_row"] >= MAX_SKIPPED:
            raise Diverged(
                f"{MAX_SKIPPED} steps in a row, up to step {step}, had a loss or gradient that is not finite."
                " The parameters are as before. In a new --workdir, raise --loss.gamma, lower "
                "--optim.lr-d and --optim.lr, or try --parallel.precision float32"
            )

    def write(self, step: int, scores: Mapping[str, float | None] | None = None) -> None:
        """Writes a line of metrics.jsonl, with the `scores` of an evaluation if there was one."""
        self.sync()
        self._clock.enter("step")
        seconds = {name: round(value, 3) for name, value in self._clock.seconds.items()}
        spent = {name: value - self._last_seconds.get(name, 0.0) for name, value in seconds.items()}
        total = max(sum(spent.values()), 1e-9)
        means = {name: float(np.mean(values)) for name, values in self._values.items()} | dict(scores or {})
        line: dict[str, Any] = {"step": step, "images": step * self._batch}
        line |= {name: x if x is not None and math.isfinite(x) else None for name, x in means.items()}
        line |= {
            "images_per_second": (step - self._last_step) * self._batch / total,
            "data_wait": max(0.0, spent.get("data", 0.0)) / total,  # fraction of the time
            "skipped": self._skipped,
            "goodput": seconds["step"] / max(sum(seconds.values()), 1e-9),
            "seconds": seconds,
        }
        if is_main():
            with warn_on_oserror(self._path.name):
                separator, self._torn = "\n" * self._torn, True
                with self._path.open("a") as file:
                    file.write(f"{separator}{json.dumps(line)}\n")
                self._torn = False
        for board in self._boards:
            board.write(line)
        self._bar.set_postfix({k: f"{line[k]:.3g}" for k in IN_BAR if line.get(k) is not None}, refresh=False)
        self._values, self._last_step, self._last_seconds = {}, step, seconds

    def note(self, text: str) -> None:
        """Prints a line above the progress bar."""
        if is_main():
            self._bar.write(shown(text), file=sys.stderr)

    def close(self) -> None:
        """Ends the progress bar and the boards."""
        self._bar.close()
        for board in self._boards:
            board.close()
