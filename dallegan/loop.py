"""The training loop, read from top to bottom: build, restore or init, step."""

import contextlib
import dataclasses
import errno
import json
import pathlib
import sys
import time
import warnings
from typing import Any

import jax

from dallegan import config as configs
from dallegan.config import Config
from dallegan.data.pipeline import make_batches, make_dataset, make_source, make_tokenizer
from dallegan.data.source import Source
from dallegan.errors import UserError
from dallegan.evaluation.obedience import make_quick
from dallegan.io.files import lock_byte, write_atomic, writing
from dallegan.io.image import grid, save_png
from dallegan.optim import make_optimizer
from dallegan.parallel import check_devices, make_runner
from dallegan.run.checkpoint import KEEP, Checkpoints
from dallegan.run.log import WANDB_ID, Log, warn_on_oserror
from dallegan.run.processes import HANG, Clock, Stop, Watchdog, about, all_agree, all_same, from_main, is_main, on_main
from dallegan.run.report import can_report, write_report
from dallegan.sampling import WEIGHTS, Model, load, make_gan
from dallegan.state import GanState
from dallegan.tokenizer import SentenceVectors, load_tokenizer
from dallegan.warmstart import check_origin, enlarge, start_from

PATIENCE = 100  # seconds to wait for whoever trains in the directory: longer than a file server keeps the locks of a machine that died


def train(config: Config, source: Source | None = None) -> None:
    """Trains to `config.steps`, or goes on from where the same command stopped; as one process of several after `runtime.join`.

    source: pictures and captions of one's own, in place of those that `config.data.source` names; the run's configuration has the name of its class.
    Raises UserError for bad settings, before anything but the lock of the directory is written, and Diverged.
    """
    if source is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=type(source).__name__))
    with contextlib.ExitStack() as held:
        _train(config, source, held)


def _train(config: Config, source: Source | None, held: contextlib.ExitStack) -> None:
    # 1. Check what can be checked before memory is taken.
    clock = Clock("init", {})
    configs.check(config)
    if not config.workdir:
        raise UserError("--workdir is empty: name a directory")
    check_devices(config)
    workdir = pathlib.Path(config.workdir).expanduser()
    source = make_source(config) if source is None else source
    if not all_same(f"{len(source)} {sorted(getattr(source, 'skipped', ()))}"):
        raise UserError(f"--data.source {config.data.source}: {len(source)} pictures here, and not the same on all processes: give every host the same data")
    origin = _origin(workdir, config)
    if config.text.encoder == "frozen":
        SentenceVectors()  # is its extra there?

    # 2. Build: the run's directory, tokenizer, the four parts.

    def build() -> None:
        _hold(workdir, held)
        _claim(workdir, config)
        _count(workdir, config, len(source))
        if _begun(workdir) and not (workdir / "tokenizer.model").exists():
            raise UserError(f"{workdir} has checkpoints and no tokenizer.model, whose token ids they know: put it back, or choose another --workdir")
        if origin is not None or not (workdir / "tokenizer.model").exists():
            made = make_tokenizer(source, config)
            with writing(workdir / "tokenizer.model"):
                (origin.tokenizer.extended(made, config.text.vocab) if origin else made).save(workdir / "tokenizer.model")

    on_main(build)
    if not all_agree((workdir / "tokenizer.model").exists()):
        raise UserError(f"--workdir {workdir}: all processes must see the same directory; name one on a file system that they share")
    if skipped := _write_skipped(workdir, source):
        print(f"{skipped} files skipped, named in {workdir}/skipped*.log; {len(source)} pictures kept", file=sys.stderr)
    tokenizer = load_tokenizer(workdir / "tokenizer.model", config.text)
    gan = make_gan(config, tokenizer.size)
    runner = make_runner(gan, make_optimizer(gan, config.optim, config.steps), config)

    # 3. Restore the newest checkpoint that can be read, or begin.
    checkpoints = held.enter_context(contextlib.closing(Checkpoints(workdir, KEEP, writer=True)))
    restored = checkpoints.restore(runner.global_abstract)
    state = runner.init() if restored is None else runner.place(restored)
    if origin is not None and restored is None:  # there may be a checkpoint by now of whoever was waited for
        state = runner.place(start_from(runner.view(state), enlarge(origin.params, config.data.size // origin.config.data.size)))
    origin = None  # a copy of the parameters, whole on one device
    step = int(runner.view(state).step)
    if step >= config.steps:
        print(f"{workdir} is complete: {step} steps. Sample it: python sample.py PROMPT --model {workdir}")
        return
    if is_main():
        with warn_on_oserror("machine.json"):
            write_atomic(workdir / "machine.json", json.dumps(about(), indent=2))

    count = {name: sum(x.size for x in jax.tree.leaves(tree)) / 1e6 for name, tree in runner.abstract.params.items()}
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}" + f" of {jax.process_count()} processes" * (jax.process_count() > 1)
    if is_main():
        print(
            f"{workdir}: {config.data.source} at {config.data.size} px on {device}; "
            f"parameters: generator {count['generator']:.1f} M, discriminator {count['discriminator']:.1f} M"
        )

    def average(state: GanState) -> Model:
        """The model as it is now: the moving average."""
        return Model(gan, {"generator": runner.local(runner.view(state).ema)}, tokenizer, config)

    # 4. Steps.
    batches = make_batches(make_dataset(source, tokenizer, config, jax.process_index(), jax.process_count()), config, step)
    quick = make_quick(config, source)
    log = Log(workdir, config, step, clock)
    with clock("data"):
        batch = runner.put(next(batches))
    with clock("compile"):
        start = time.perf_counter()
        runner.compile(state, batch)
        log.note(f"compiled in {time.perf_counter() - start:.1f} s")
    pending: Any = None
    with contextlib.closing(log), Stop() as stop, Watchdog(HANG) as watchdog:
        log.start()
        stopped = False
        while step < config.steps and not stopped:
            watchdog.alive()
            state, metrics = runner.step(state, batch)
            step += 1
            if pending is not None:  # read the step before: the device is already busy with this one
                log.add(pending)
            pending = metrics
            if step < config.steps:
                with clock("data"):
                    batch = runner.put(next(batches))
            every = config.log
            metrics_due, samples_due, checkpoint_due = (_due(step, images, config) for images in (every.metrics, every.samples, every.checkpoint))
            evaluation_due = quick is not None and (_due(step, every.evaluate, config) or checkpoint_due)  # each checkpoint has its score
            stopped = stop.at(step) and step < config.steps
            if metrics_due or samples_due or evaluation_due or checkpoint_due or stopped:
                log.add(pending)
                pending = None
            if samples_due or evaluation_due:
                with clock("eval"):
                    model = average(state)
                    if quick and evaluation_due and is_main():
                        log.evaluated = quick(model)
                    if samples_due and is_main():
                        with warn_on_oserror("the sample grid"):
                            save_samples(model, source.prompts(), workdir / "samples" / f"{step * config.batch:08d}.png")
            score = from_main(log.evaluated.get("alignment")) if evaluation_due else None
            if metrics_due or evaluation_due or stopped:
                log.write(step)
            if checkpoint_due or stopped:
                with clock("save"):
                    checkpoints.save(step, runner.view(state), score)
                    _write_skipped(workdir, source)
        with clock("save"):
            saved = checkpoints.wait()
        if stopped and saved:
            log.note(f"stopped and saved at step {step} of {config.steps}; the same command goes on")
    if not all_agree(saved):
        raise UserError(f"the last checkpoint could not be written to {workdir}: make room, and the same command goes on from the one before")
    if is_main() and not stopped and can_report():
        try:
            write_report(workdir)
        except Exception as error:  # the run is done, whatever becomes of its page
            warnings.warn(f"report.html could not be written: {error}", stacklevel=2)


def _origin(workdir: pathlib.Path, config: Config) -> Model | None:
    """The model that a run starts from; None where it starts from nothing, or has begun already. UserError for one of another shape, unless the run's
    network has residual blocks, attention, stages of detail or a GRU's LayerNorm besides, its pictures and patches are larger, its captions longer, or its
    shrinkage another."""
    if not config.init_from or _begun(workdir):
        return None
    try:
        origin = load(config.init_from)
    except UserError as error:
        raise UserError(f"--init-from: {error} (the commands that come before a preset are at the head of its file in configs/)") from None
    check_origin(config.init_from, origin.config, config)
    other = configs.conflicts(origin.config, config).get("model.shrink")
    if other and is_main():
        print(f"warning: not the shrinkage of {config.init_from} ({other[0]} -> {other[1]}): its images change at once", file=sys.stderr)
    return origin


def _due(step: int, every: int, config: Config) -> bool:
    """Whether a multiple of `every` images was passed in this step, or the run ends."""
    return step == config.steps or step * config.batch // every != (step - 1) * config.batch // every


def _begun(workdir: pathlib.Path) -> bool:
    """Whether there is a checkpoint to go on from, or the remains of one."""
    return any(p.name.isdigit() for p in (workdir / "checkpoints").glob("*"))


def _hold(workdir: pathlib.Path, held: contextlib.ExitStack) -> None:
    """Makes the run's directory this process's own until `held` ends. Another's run in it is waited for, as it may be saving; UserError where it goes on.
    Two runs in one directory would delete each other's checkpoints while they are written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = held.enter_context((workdir / ".lock").open("ab"))
        for second in range(PATIENCE):
            if held.enter_context(lock_byte(file)):
                return
            if not second:
                print(f"{workdir}: another process trains in it: waiting for it to end", file=sys.stderr)
            time.sleep(1)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
            raise UserError(f"cannot write to --workdir {workdir}: {error.strerror}") from None
        return
    raise UserError(f"--workdir {workdir}: another process trains in it: stop that one, or choose another --workdir")


def _claim(workdir: pathlib.Path, config: Config) -> None:
    """Makes the run's config.json, or checks that the directory belongs to this configuration. A run that ended before its first checkpoint has
    nothing to go on from, and gives way to another."""
    path, begun, differing = workdir / "config.json", _begun(workdir), {}
    if (workdir / WEIGHTS).exists():  # which is what `load` takes, whatever checkpoints are beside
        raise UserError(f"{workdir} holds a saved model: choose another --workdir, and --init-from {workdir} to train on from it")
    try:
        if path.exists():
            try:
                differing = configs.conflicts(configs.from_json(path.read_text("utf-8", "replace")), config)
            except UserError as error:
                raise UserError(f"{path}: {error}: choose another --workdir") from None
            if differing and begun:
                raise UserError(f"{workdir} holds a run with other settings ({'; '.join(f'{k}: {a} -> {b}' for k, (a, b) in differing.items())}): choose another --workdir, or the old settings to go on")
        elif begun:
            raise UserError(f"{workdir} has checkpoints and no config.json that says of what: choose another --workdir")
        (workdir / "samples").mkdir(exist_ok=True)
        if differing:
            for name in ("tokenizer.model", WANDB_ID):
                (workdir / name).unlink(missing_ok=True)  # before config.json says that it is this run's
        if differing or not path.exists():
            write_atomic(path, configs.to_json(config))
    except OSError as error:
        raise UserError(f"cannot write to --workdir {workdir}: {error.strerror}") from None


def _count(workdir: pathlib.Path, config: Config, pictures: int) -> None:
    """Notes how many pictures a run has, which its batches are a function of; UserError where it would go on with more or fewer."""
    path, had = workdir / "data.json", None
    if _begun(workdir) and path.exists():
        with contextlib.suppress(ValueError, AttributeError):  # a damaged file
            had = json.loads(path.read_text("utf-8", "replace")).get("pictures")
    if had not in (None, pictures):
        raise UserError(
            f"--data.source {config.data.source} has {pictures} pictures, and had {had} when the run in {workdir} began: "
            f"give it those again, or train on from it with --init-from {workdir} and another --workdir"
        )
    if had is None:
        with writing(path):
            write_atomic(path, json.dumps({"pictures": pictures}))


def save_samples(model: Model, prompts: list[str], path: pathlib.Path, n: int = 8, seed: int = 0) -> None:
    """A captioned grid: n pictures of each prompt, the same noise every time."""
    images = model.sample(prompts, n, seed)
    rows = [list(images[i * n : (i + 1) * n]) for i in range(len(prompts))]
    save_png(grid(rows, prompts, cell=64), path, {"prompts": json.dumps(prompts, ensure_ascii=False), "seed": str(seed)})


def _write_skipped(workdir: pathlib.Path, source: Source) -> int:
    """Names what this process could not use of the source so far; how many."""
    if skipped := dict(getattr(source, "skipped", {})):
        path = workdir / ("skipped.log" if is_main() else f"skipped-{jax.process_index()}.log")
        with warn_on_oserror(path.name):
            write_atomic(path, "".join(f"{name}\t{why}\n" for name, why in sorted(skipped.items())))
    return len(skipped)
