"""The training loop, read from top to bottom: check, build, restore or initialize, step."""

import contextlib
import dataclasses
import json
import pathlib
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax

from dallegan.config import Config, check, conflicts
from dallegan.data.pipeline import make_batches, make_dataset, make_source, make_tokenizer
from dallegan.data.source import Source, describe
from dallegan.errors import UserError
from dallegan.evaluation.quick import make_quick
from dallegan.io.files import local_path, writing
from dallegan.io.image import grid, save_png
from dallegan.io.text import say
from dallegan.optim import make_optimizer
from dallegan.parallel import check_devices, make_runner
from dallegan.run import workdir as directory
from dallegan.run.boards import make_boards
from dallegan.run.checkpoint import KEEP, Checkpoints
from dallegan.run.log import Log
from dallegan.run.processes import Clock, Stop, Watchdog, all_agree, all_same, from_main, is_main, on_main
from dallegan.run.report import can_report, write_report
from dallegan.sampling import WEIGHTS, Model, load, make_gan
from dallegan.tokenizer import SentenceVectors, load_tokenizer
from dallegan.warmstart import check_origin, enlarge, start_from


def train(config: Config, source: Source | None = None) -> None:
    """Trains to `config.steps`, or resumes a run that was stopped.

    In a run of several processes, each of them calls `dallegan.run.processes.join` and then this function.

    Args:
        config: the settings of the run.
        source: captioned images to train on, instead of those that `config.data.source` names. The settings
            that the run saves have the name of its class.

    Raises:
        UserError: if settings contradict each other, the data, or what is in the directory. The run has then
            written nothing but the lock of its directory.
        Diverged: if ten steps in a row were not finite.
    """
    # 1. Check what can be checked before memory is taken.
    clock = Clock("init")
    if source is not None:
        named = dataclasses.replace(config.data, source=type(source).__name__)
        config = dataclasses.replace(config, data=named)
    check(config)
    if not config.workdir:
        raise UserError("--workdir is empty: name a directory")
    check_devices(config)
    workdir = local_path(config.workdir)
    if (workdir / WEIGHTS).exists():  # `load` would take these weights, and never the run's checkpoints
        hint = f"choose another --workdir, and --init-from {workdir} to fine-tune it"
        raise UserError(f"{workdir} holds a saved model: {hint}")
    source = make_source(config) if source is None else source
    data = {"images": len(source), **source.identity()}
    if not all_same(f"{data} {sorted(source.skipped)}"):
        found = f"{len(source)} images here, and not the same on all processes"
        raise UserError(f"--data.source {config.data.source}: {found}; give every host the same data")
    origin = load_origin(config) if config.init_from and not directory.has_checkpoints(workdir) else None
    if config.text.encoder == "frozen":
        SentenceVectors()  # raises UserError if its extra is not installed

    with contextlib.ExitStack() as stack:
        # 2. Build: the directory, the tokenizer, the networks, the step.
        locate: Callable[[], str] = str  # the main process's returns where the directory lies now

        def prepare_workdir() -> None:
            nonlocal locate
            locate = stack.enter_context(directory.hold(workdir))
            directory.claim(workdir, config, data)
            write_tokenizer(workdir, config, source, origin)

        on_main(prepare_workdir)
        if not all_agree((workdir / directory.TOKENIZER).exists()):
            hint = "all processes must see the same directory; name one on a file system that they share"
            raise UserError(f"--workdir {workdir}: {hint}")
        for line in describe(source) if is_main() else ():
            say(line, sys.stderr, 1000)
        if directory.write_skipped(workdir, source.skipped):
            say(f"data: {workdir}/skipped*.log names what was skipped", sys.stderr)
        tokenizer = load_tokenizer(workdir / directory.TOKENIZER, config.text)
        gan = make_gan(config, tokenizer.size)
        runner = make_runner(gan, make_optimizer(gan, config.optim, config.steps), config)

        # 3. Restore the newest checkpoint that can be read, or initialize.
        identity = directory.identity(workdir, config, data)
        checkpoints = Checkpoints(workdir, KEEP, writer=True, identity=identity)
        stack.enter_context(contextlib.closing(checkpoints))
        restored = checkpoints.restore(runner.global_abstract)
        state = runner.init() if restored is None else runner.place(restored)
        if origin is not None and restored is None:  # another run may have saved while this one waited for it
            params = enlarge(origin.params, config.data.size // origin.config.data.size)
            state = runner.place(start_from(runner.view(state), params))
        origin = restored = params = None  # each holds a copy of the parameters
        step = int(runner.view(state).step)
        if step >= config.steps:
            say(f"{workdir} is complete: {step} steps. Sample it: dallegan sample PROMPT --model {workdir}")
            return
        if is_main():
            directory.record_machine(workdir)
            sizes = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in runner.abstract.params.items()}
            parameters = ", ".join(f"{name} {size / 1e6:.1f} M" for name, size in sizes.items())
            devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
            devices += f" of {jax.process_count()} processes" * (jax.process_count() > 1)
            say(f"{workdir}: {config.data.source} at {config.data.size} px on {devices}; {parameters}")

        # 4. Step. Metrics are read one step late, so that the device always has a step to compute.
        dataset = make_dataset(source, tokenizer, config, jax.process_index(), jax.process_count())
        batches = make_batches(dataset, config, step)
        evaluate = make_quick(config, source)
        log = Log(workdir, config.batch, config.steps, step, clock, make_boards(workdir, config))
        stack.enter_context(contextlib.closing(log))
        with clock("data"):
            batch = runner.put(next(batches))
        with clock("compile"):
            start = time.perf_counter()
            runner.compile(state, batch)
            log.note(f"compiled in {time.perf_counter() - start:.1f} s")
        stop, watchdog = stack.enter_context(Stop()), stack.enter_context(Watchdog())
        log.start()
        every, stopped = config.log, False
        while step < config.steps and not stopped:
            watchdog.alive()
            state, metrics = runner.step(state, batch)
            step += 1
            log.add(metrics)
            if step < config.steps:
                with clock("data"):
                    batch = runner.put(next(batches))
            stopped = stop.at(step) and step < config.steps
            to_save, to_draw = is_due(step, every.checkpoint, config), is_due(step, every.samples, config)
            to_evaluate = evaluate is not None and (to_save or is_due(step, every.evaluate, config))
            to_write = to_evaluate or stopped or is_due(step, every.metrics, config)
            if not (to_save or to_draw or to_write):
                continue
            log.sync()
            checkpoints.check_place(from_main(locate()), step, runner.view(state))
            scores: dict[str, Any] = {}
            if to_draw or to_evaluate:
                with clock("eval"):
                    average = runner.local(runner.view(state).ema)
                    model = Model(gan, {"generator": average}, tokenizer, config)
                    if evaluate and to_evaluate and is_main():
                        scores = evaluate(model)
                    if to_draw and is_main():
                        with directory.warn_on_oserror("the sample grid"):
                            path = workdir / "samples" / f"{step * config.batch:08d}.png"
                            save_samples(model, source.prompts(), path)
            if to_write:
                log.write(step, scores)
            if to_save or stopped:
                with clock("save"):
                    checkpoints.save(step, runner.view(state), from_main(scores.get("alignment")))
                    directory.write_skipped(workdir, source.skipped)
        with clock("save"):
            saved = checkpoints.wait()
        if stopped and saved:
            log.note(f"stopped and saved at step {step} of {config.steps}; the same command resumes")
    if not all_agree(saved):
        hint = "mend what the warning says, and the same command resumes from the one before"
        raise UserError(f"the last checkpoint could not be written to {workdir}: {hint}")
    if is_main() and not stopped and can_report():
        try:
            write_report(workdir)
        except Exception as error:  # matplotlib and Pillow raise any type, and the run itself is done
            warnings.warn(f"report.html could not be written: {error}", stacklevel=2)


def load_origin(config: Config) -> Model:
    """Returns the model that `init_from` names. Raises UserError if the run's network cannot continue it."""
    try:
        origin = load(config.init_from)
    except UserError as error:
        hint = "the file of a preset in configs/ lists the commands that come before it"
        raise type(error)(f"--init-from: {error} ({hint})") from None
    check_origin(config.init_from, origin.config, config)
    if is_main() and (shrink := conflicts(origin.config, config).get("model.shrink")):
        change = f"its images change at once (model.shrink: {shrink[0]} -> {shrink[1]})"
        say(f"warning: not the shrinkage of {config.init_from}: {change}", sys.stderr)
    return origin


def write_tokenizer(workdir: pathlib.Path, config: Config, source: Source, origin: Model | None) -> None:
    """Writes the run's tokenizer, which is the one of `origin` plus new words if the run fine-tunes a model.

    Raises UserError if a run that resumes has lost its tokenizer: another one would number the words
    otherwise.
    """
    path = workdir / directory.TOKENIZER
    if directory.has_checkpoints(workdir) and not path.exists():
        hint = "put back the one of their token ids, or choose another --workdir"
        raise UserError(f"{workdir} has checkpoints but no {directory.TOKENIZER}: {hint}")
    if origin is not None or not path.exists():
        tokenizer = make_tokenizer(source, config)
        if origin is not None:
            tokenizer = origin.tokenizer.extended(tokenizer, config.text.vocab)
        with writing(path):
            tokenizer.save(path)


def is_due(step: int, every: int, config: Config) -> bool:
    """Returns whether this step passed a multiple of `every` images, or is the last."""
    return step == config.steps or step * config.batch // every != (step - 1) * config.batch // every


def save_samples(model: Model, prompts: list[str], path: pathlib.Path, n: int = 8, seed: int = 0) -> None:
    """Writes a captioned grid of `n` images for each prompt, with the same noise each time."""
    images = model.sample(prompts, n, seed)
    rows = [list(images[i * n : (i + 1) * n]) for i in range(len(prompts))]
    metadata = {"prompts": json.dumps(prompts, ensure_ascii=False), "seed": str(seed)}
    save_png(grid(rows, prompts, cell=64), path, metadata)
