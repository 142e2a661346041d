"""What a run tells while it trains: progress bar, metrics.jsonl, TensorBoard, Weights & Biases."""

import contextlib
import importlib.util
import json
import math
import pathlib
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dallegan.config import Config, flatten
from dallegan.errors import TransientError, UserError
from dallegan.io.files import write_atomic, writing
from dallegan.run.metrics_file import read_metrics
from dallegan.run.processes import Clock, is_main

MAX_SKIPPED = 10  # steps in a row that may come out not finite
WANDB_ID = "wandb.id"
REPORTED = ("d_loss", "g_loss", "r1", "r2", "match_gap", "score_real", "score_fake", "grad_norm_g", "grad_norm_d")


class Diverged(UserError):
    """Ten steps in a row were not finite."""


@contextlib.contextmanager
def warn_on_oserror(what: str) -> Iterator[None]:
    """A full disk costs this file and not the run: a warning."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"{what} could not be written ({error.strerror}); training goes on", stacklevel=3)


class Log:
    """Progress bar, metrics.jsonl (the truth), TensorBoard where tensorboardX is installed, Weights & Biases where `log.wandb` names a project; on the
    main process only.

    Read-outs are means since the last line or the start of the process; `seconds` are those of the whole run, by what they were
    spent on, `lost` being work that a kill undid (as far as lines tell), and `goodput` the share of steps in them.
    """

    def __init__(self, workdir: pathlib.Path, config: Config, first: int, clock: Clock) -> None:
        """first: the step that this process starts at."""
        self.path, self.config, self.clock = workdir / "metrics.jsonl", config, clock
        self.evaluated: dict[str, float | None] = {}  # what the next line tells of the model
        lines = read_metrics(self.path)
        kept = [line for line in lines if line["step"] <= first]  # a kill may have left later ones
        before, after = ((part[-1].get("seconds", {}) if part else {}) for part in (kept, lines))
        clock.seconds |= {name: seconds + clock.seconds.get(name, 0.0) for name, seconds in before.items()}
        clock.seconds["lost"] = clock.seconds.get("lost", 0.0) + max(0.0, sum(after.values()) - sum(before.values()))
        self._sums: dict[str, list[float]] = {}
        self._skipped = kept[-1].get("skipped", 0) if kept else 0
        self._last_step, self._read = first, dict(clock.seconds)
        self._bar, self._boards, self._torn = tqdm(disable=True), [], False
        if not is_main():
            return
        if config.log.wandb:
            self._boards.append(WandB(workdir, config))
        with writing(self.path):
            write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        tty = sys.stderr.isatty()
        self._bar = tqdm(
            total=config.images, initial=first * config.batch, unit="img", unit_scale=True, smoothing=0.05, dynamic_ncols=tty,
            mininterval=0.5 if tty else 30, desc=workdir.name,
        )  # fmt: skip
        if importlib.util.find_spec("tensorboardX"):
            self._boards.append(TensorBoard(workdir / "tensorboard"))

    def start(self) -> None:
        """From here on it is training."""
        self.clock.enter("step")
        self._read = dict(self.clock.seconds)
        self._bar.unpause()

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Takes in one step's metrics; raises Diverged after ten steps in a row that were not finite."""
        values = {k: float(v) for k, v in metrics.items()}
        if (skipped := int(values["skipped"])) > self._skipped:
            self.note(f"step {int(values['step'])} was not finite and is left out")
        self._skipped = skipped
        for name in REPORTED:
            if name in values:
                self._sums.setdefault(name, []).append(values[name])
        self._bar.update(self.config.batch)
        if values["skipped_in_a_row"] >= MAX_SKIPPED:
            raise Diverged(
                f"{MAX_SKIPPED} steps in a row, up to {int(values['step'])}, had a loss or gradient that is not finite; parameters are as before them. "
                "In a new --workdir, raise --loss.gamma, lower --optim.lr-d and --optim.lr, or try --parallel.precision float32"
            )

    def write(self, step: int) -> None:
        """One line of metrics.jsonl."""
        self.clock.enter("step")
        seconds = {name: round(value, 3) for name, value in self.clock.seconds.items()}
        spent = {name: value - self._read.get(name, 0.0) for name, value in seconds.items()}
        total = max(sum(spent.values()), 1e-9)
        line: dict[str, Any] = {"step": step, "images": step * self.config.batch}
        line |= {name: float(np.mean(values)) for name, values in self._sums.items()} | self.evaluated
        line = {k: (v if v is not None and math.isfinite(v) else None) for k, v in line.items()}
        line |= {"images_per_second": (step - self._last_step) * self.config.batch / total, "data_wait": max(0.0, spent.get("data", 0.0)) / total}
        line |= {"skipped": self._skipped, "goodput": seconds["step"] / max(sum(seconds.values()), 1e-9), "seconds": seconds}
        if is_main():
            with warn_on_oserror(self.path.name):
                torn, self._torn = self._torn, True  # until this line is whole: the next does not go on in it
                with self.path.open("a") as file:
                    file.write("\n" * torn + json.dumps(line) + "\n")
                self._torn = False
        for board in self._boards:
            board.write(line)
        self._bar.set_postfix({k: f"{line[k]:.3g}" for k in ("d_loss", "g_loss", "match_gap") if line.get(k) is not None}, refresh=False)
        self.evaluated = {}
        self._sums, self._last_step, self._read = {}, step, seconds

    def note(self, text: str) -> None:
        """A line above the progress bar."""
        if is_main():
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Ends bar and writers."""
        self._bar.close()
        for board in self._boards:
            board.close()


class TensorBoard:
    """The lines of metrics.jsonl as TensorBoard's scalars, over images. What cannot be written ends it, and nothing else: of tensorboardX's SummaryWriter
    a full disk ends the thread that writes, and the run then waits for it without end."""

    def __init__(self, folder: pathlib.Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        self._events: Any = None
        with warn_on_oserror(folder.name):
            folder.mkdir(exist_ok=True)
            self._events = EventsWriter(str(folder / "events"))

    def write(self, line: dict[str, Any]) -> None:
        """The numbers of a line."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  # generated code
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        if self._events is None:
            return
        found = {name: value for name, value in line.items() if isinstance(value, int | float) and name not in ("step", "images")}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in found.items()])
        with warn_on_oserror("tensorboard"):
            try:
                self._events.write_event(Event(wall_time=time.time(), step=line["images"], summary=summary))
                self._events.flush()
            except OSError:
                self.close()
                raise

    def close(self) -> None:
        """Ends the file."""
        if self._events is not None:
            events, self._events = self._events, None
            with contextlib.suppress(OSError):  # of what is left, which was told
                events.close()


class WandB:
    """The lines of metrics.jsonl on Weights & Biases, over images: where it is online one run, however often training stops and goes on, with the lines too
    that a kill undid; kept here, a run for each start, in one group. UserError where it cannot begin. What goes wrong later ends it, and nothing else."""

    def __init__(self, workdir: pathlib.Path, config: Config) -> None:
        project, known = config.log.wandb, workdir / WANDB_ID
        try:
            import wandb
            from wandb.errors import UsageError
        except ImportError:
            raise UserError(f"--log.wandb {project}: pip install 'dallegan[wandb]'") from None
        with writing(known):
            if not known.exists():
                write_atomic(known, uuid.uuid4().hex[:8])
            name = known.read_text()
        try:
            # console: or it takes stdout and stderr for itself; reinit: or it would write into a run that the caller has open, and end it
            settings = wandb.Settings(console="off", reinit="create_new", finish_timeout=60)
            going_on: Any = {} if wandb.setup().settings.mode == "offline" else {"id": name, "resume": "allow"}  # which only the server can
            self._run: Any = wandb.init(project=project, name=workdir.name, group=name, dir=workdir, config=flatten(config), settings=settings, **going_on)
            self._run.define_metric("*", step_metric="images")  # not its own count of lines, which may not go back: a kill undoes some
        except Exception as error:  # of the network, of names, of the account
            why = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            kind = UserError if isinstance(error, UsageError) else TransientError
            raise kind(f"--log.wandb {project}: {why}. WANDB_MODE=offline keeps all here, for `wandb sync` later") from None

    def write(self, line: dict[str, Any]) -> None:
        """A line."""
        self._do(lambda run: run.log(line))

    def close(self) -> None:
        """Waits a minute at most until all is sent or kept; the run has failed where an exception is on its way."""
        self._do(lambda run: run.finish(exit_code=int(sys.exc_info()[0] is not None)))
        self._run = None

    def _do(self, what: Callable[[Any], None]) -> None:
        try:
            if self._run is not None:
                what(self._run)
        except Exception as error:  # its own process may have died
            self._run = None
            warnings.warn(f"Weights & Biases gets no more of this run ({type(error).__name__}: {error}); training goes on", stacklevel=3)
