"""The training loop, read from top to bottom: build, restore or init, step."""

import contextlib
import dataclasses
import json
import math
import pathlib
import signal
import sys
import time
from types import FrameType
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dallegan import config as configs
from dallegan.checkpoint import Checkpoints
from dallegan.config import Config
from dallegan.data.pipeline import make_batches, make_dataset, make_source, make_tokenizer
from dallegan.errors import UserError
from dallegan.evaluate import make_quick
from dallegan.files import write_whole
from dallegan.image import grid, save_png
from dallegan.optim import optimizer
from dallegan.parallel import Runner, check_devices
from dallegan.sampling import Model, load, make_gan
from dallegan.state import GanState, init_state, start_from
from dallegan.steps import make_train_step
from dallegan.tokenizer import Tokenizer

MAX_SKIPPED = 10  # steps in a row that may come out not finite
REPORTED = ("d_loss", "g_loss", "r1", "r2", "match_gap", "score_real", "score_fake", "grad_norm_g", "grad_norm_d")


class Diverged(Exception):
    """Ten steps in a row were not finite."""


def train(config: Config) -> None:
    """Trains to `config.steps`, or goes on from where the same command stopped.

    Raises UserError for bad settings, before anything is written, and Diverged.
    """
    # 1. Check what can be checked before memory is taken.
    configs.check(config)
    check_devices(config)
    workdir = pathlib.Path(config.workdir).expanduser()
    source = make_source(config)
    origin = _origin(workdir, config)

    # 2. Build: the run's directory, tokenizer, the four parts.
    _claim(workdir, config)
    if skipped := getattr(source, "skipped", None):
        write_whole(workdir / "skipped.log", "".join(f"{name}\t{why}\n" for name, why in sorted(skipped.items())))
        print(f"{len(skipped)} files skipped, named in {workdir / 'skipped.log'}; {len(source)} pictures kept", file=sys.stderr)
    if origin is None and (workdir / "tokenizer.model").exists():
        tokenizer = Tokenizer.load(workdir / "tokenizer.model", config.text.length)
    else:
        tokenizer = origin.tokenizer if origin else make_tokenizer(source, config)
        tokenizer.save(workdir / "tokenizer.model")
    gan, adam = make_gan(config, tokenizer.size), optimizer(config)
    runner = Runner(config, lambda: init_state(gan, adam, config), lambda axis: make_train_step(gan, adam, config, axis))

    # 3. Restore the newest checkpoint that can be read, or begin.
    checkpoints = Checkpoints(workdir, config.log.keep, writer=True)
    shardings = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), runner.abstract, runner.state_shardings)
    restored = checkpoints.restore(shardings)
    state = runner.init() if restored is None else runner.place(restored)
    if origin is not None:
        state = runner.place(start_from(runner.view(state), origin.params))
        del origin  # a copy of the parameters, whole on one device
    step = int(runner.view(state).step)
    if step >= config.steps:
        print(f"{workdir} is complete: {step} steps. Sample it: python sample.py PROMPT --model {workdir}")
        return

    count = {name: sum(x.size for x in jax.tree.leaves(tree)) / 1e6 for name, tree in runner.abstract.params.items()}
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(
        f"{workdir}: {config.data.source} at {config.data.size} px on {device}; "
        f"parameters: generator {count['generator']:.1f} M, discriminator {count['discriminator']:.1f} M"
    )

    def average(state: GanState) -> Model:
        """The model as it is now: the moving average."""
        return Model(gan, {"generator": runner.view(state).ema}, tokenizer, config)

    # 4. Steps.
    batches = make_batches(make_dataset(source, tokenizer, config, jax.process_index(), jax.process_count()), config, step)
    quick = make_quick(config)
    log = Log(workdir, config, step)
    start = time.perf_counter()
    batch = runner.put(next(batches))
    runner.compile(state, batch)
    log.note(f"compiled in {time.perf_counter() - start:.1f} s")
    pending: Any = None
    with contextlib.closing(checkpoints), contextlib.closing(log), Stop() as stop:
        log.start()
        while step < config.steps and not stop.asked:
            state, metrics = runner.step(state, batch)
            step += 1
            if pending is not None:  # read the step before: the device is already busy with this one
                log.add(pending)
            pending = metrics
            if step < config.steps:
                waited = time.perf_counter()
                batch = runner.put(next(batches))
                log.waited += time.perf_counter() - waited
            every = config.log
            metrics_due, samples_due, checkpoint_due = (_due(step, images, config) for images in (every.metrics, every.samples, every.checkpoint))
            evaluation_due = quick is not None and _due(step, every.evaluate, config)
            if metrics_due or samples_due or evaluation_due or checkpoint_due:
                log.add(pending)
                pending = None
            if quick and evaluation_due:
                log.evaluated = quick(average(state))
            if metrics_due or evaluation_due:
                log.write(step)
            if samples_due:
                save_samples(average(state), source.prompts(), workdir / "samples" / f"{step * config.batch:08d}.png")
            if checkpoint_due:
                checkpoints.save(step, runner.view(state))
        if pending is not None:
            log.add(pending)
        if step < config.steps:
            checkpoints.save(step, runner.view(state))
            log.note(f"stopped and saved at step {step} of {config.steps}; the same command goes on")


def _origin(workdir: pathlib.Path, config: Config) -> Model | None:
    """The model that a run starts from; None where it starts from nothing, or has begun already. UserError for one of another shape."""
    if not config.init_from or any(p.name.isdigit() for p in (workdir / "checkpoints").glob("*")):
        return None
    try:
        origin = load(config.init_from)
    except UserError as error:
        raise UserError(f"--init-from: {error}") from None
    shape = [line for line in configs.conflicts(origin.config, config) if line.startswith(("text.", "model.", "data.size:")) and "vocab" not in line]
    if shape:
        raise UserError(f"--init-from {config.init_from} is another network ({'; '.join(shape)}): take its settings, or start from nothing")
    return origin


def _due(step: int, every: int, config: Config) -> bool:
    """Whether a multiple of `every` images was passed in this step, or the run ends."""
    return step == config.steps or step * config.batch // every != (step - 1) * config.batch // every


def _claim(workdir: pathlib.Path, config: Config) -> None:
    """Makes the run's directory and its config.json, or checks that it belongs to this configuration."""
    path = workdir / "config.json"
    try:
        if path.exists():
            differing = configs.conflicts(configs.from_json(path.read_text("utf-8", "replace")), config)
            if differing:
                raise UserError(f"{workdir} holds a run with other settings ({'; '.join(differing)}): choose another --workdir, or the old settings to go on")
        elif any((workdir / "checkpoints").glob("*")):
            raise UserError(f"{workdir} has checkpoints and no config.json that says of what: choose another --workdir")
        for folder in (workdir, workdir / "samples"):
            folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_whole(path, configs.to_json(config))
    except OSError as error:
        raise UserError(f"cannot write to --workdir {workdir}: {error.strerror}") from None


def save_samples(model: Model, prompts: list[str], path: pathlib.Path, n: int = 8, seed: int = 0) -> None:
    """A captioned grid: n pictures of each prompt, the same noise every time."""
    images = model.sample(prompts, n, seed)
    rows = [list(images[i * n : (i + 1) * n]) for i in range(len(prompts))]
    save_png(grid(rows, prompts, cell=64), path, {"prompts": json.dumps(prompts, ensure_ascii=False), "seed": str(seed)})


class Stop:
    """Turns the first Ctrl-C or SIGTERM into a request; the second one acts as usual."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Stop":
        self._old = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()


@dataclasses.dataclass
class Log:
    """Progress bar, metrics.jsonl (the truth) and TensorBoard where tensorboardX is installed.

    Read-outs are means since the last line or the start of the process.
    """

    workdir: pathlib.Path
    config: Config
    first: int  # step that this process started at
    waited: float = 0.0  # seconds spent waiting for data since the last line
    evaluated: dict[str, float | None] = dataclasses.field(default_factory=dict)  # what the next line tells of the model

    def __post_init__(self) -> None:
        self.path = self.workdir / "metrics.jsonl"
        kept = [line for line in _lines(self.path) if json.loads(line)["step"] <= self.first]  # a kill may have left later ones
        write_whole(self.path, "".join(kept))
        self._sums: dict[str, list[float]] = {}
        self._last_step, self._clock = self.first, time.perf_counter()
        c, tty = self.config, sys.stderr.isatty()
        self.bar = tqdm(
            total=c.images, initial=self.first * c.batch, unit="img", unit_scale=True, smoothing=0.05, dynamic_ncols=tty,
            mininterval=0.5 if tty else 30, desc=self.workdir.name,
        )  # fmt: skip
        try:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self.workdir / "tensorboard"), flush_secs=30)
        except ImportError:
            self._board = None

    def start(self) -> None:
        """Starts the clock of images_per_second, after compilation."""
        self._clock, self.waited = time.perf_counter(), 0.0
        self.bar.unpause()

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Takes in one step's metrics; raises Diverged after ten steps in a row that were not finite."""
        values = {k: float(v) for k, v in metrics.items()}
        self._skipped = int(values["skipped"])
        for name in REPORTED:
            if name in values:
                self._sums.setdefault(name, []).append(values[name])
        self.bar.update(self.config.batch)
        if values["skipped_in_a_row"] >= MAX_SKIPPED:
            raise Diverged(
                f"{MAX_SKIPPED} steps in a row had a loss or gradient that is not finite; parameters are as before them. "
                "In a new --workdir, raise --loss.gamma, lower --optim.lr-d and --optim.lr, or try --parallel.precision float32"
            )

    def write(self, step: int) -> None:
        """One line of metrics.jsonl."""
        now = time.perf_counter()
        seconds = max(now - self._clock, 1e-9)
        line: dict[str, Any] = {"step": step, "images": step * self.config.batch}
        line |= {name: float(np.mean(values)) for name, values in self._sums.items()} | self.evaluated
        line = {k: (v if v is not None and math.isfinite(v) else None) for k, v in line.items()}
        line |= {"images_per_second": (step - self._last_step) * self.config.batch / seconds, "data_wait": self.waited / seconds, "skipped": self._skipped}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._board:
            for name, value in line.items():
                if value is not None and name not in ("step", "images"):
                    self._board.add_scalar(name, value, line["images"])
        self.bar.set_postfix({k: f"{line[k]:.3g}" for k in ("d_loss", "g_loss", "match_gap") if line.get(k) is not None}, refresh=False)
        self.evaluated = {}
        self._sums, self._last_step, self._clock, self.waited = {}, step, now, 0.0

    def note(self, text: str) -> None:
        """A line above the progress bar."""
        self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Ends bar and writer."""
        self.bar.close()
        if self._board:
            self._board.close()


def _lines(path: pathlib.Path) -> list[str]:
    """The whole lines of a file; a kill may have cut the last one."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n") and line.startswith("{")]
