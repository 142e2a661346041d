"""Command lines: presets and flags to a configuration, and errors to one line and an exit code."""

import contextlib
import io
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import tyro

from dallegan.config import Config, feature_sides, load_preset, presets
from dallegan.errors import TransientError, UserError, is_permanent

T = TypeVar("T")
LESS_MEMORY = (
    "Training needs less with a larger --parallel.accumulate, with --parallel.fsdp over several devices, "
    "or with a smaller --batch"
)


def parse(kind: type[T], prog: str, **options: Any) -> T:
    """Parses a command line by `tyro.cli`, whose keyword arguments `options` are, and expands "~" in paths.

    A shell leaves "~" as it is in --out=~/x. Bad flags end the program with exit code 2, and tyro says on
    stderr what is wrong.
    """
    return expand_home(tyro.cli(kind, prog=prog, **options))


def expand_home(args: Any) -> Any:
    """Returns a dataclass with "~" expanded in its paths. An unknown user's home stays as it is."""
    paths = {name: value for name, value in vars(args).items() if isinstance(value, pathlib.Path)}
    return replace(args, **{name: pathlib.Path(os.path.expanduser(path)) for name, path in paths.items()})


def parse_config(args: Sequence[str], prog: str = "dallegan train") -> Config:
    """Parses `[PRESET] [--debug] [--FIELD VALUE]...` to a configuration; the default preset is quickstart.

    Raises UserError if there is no such preset, or if a word is neither a flag nor a flag's value.
    """
    named = bool(args) and not args[0].startswith("-")
    preset, flags = (args[0], list(args[1:])) if named else ("quickstart", list(args))
    config = load_preset(preset)
    if "--debug" in flags:
        flags.remove("--debug")
        config = debug(config)
    usage = f"{prog} [PRESET] [--debug] [--FIELD VALUE]..."
    options: dict[str, Any] = {"prog": f"{prog} {preset}", "default": config, "args": flags}
    options["description"] = (
        f"Train a text-to-image GAN: {usage}\n\n"
        f"Presets: {', '.join(presets())}. Default: quickstart. The flags below show {preset}.\n\n"
        "The same command again resumes the run. --debug trains a tiny variant of the preset for 10 steps."
    )
    parsed, unknown = tyro.cli(Config, return_unknown_args=True, **options)
    if not unknown:
        return expand_home(parsed)
    if not unknown[0].startswith("-"):
        raise UserError(f"{unknown[0]!r} is not a flag; name one preset, before all flags: {usage}")
    return tyro.cli(Config, **options)  # ends the program, and says which flag may have been meant


def debug(config: Config) -> Config:
    """Returns a tiny variant of a run: 10 steps from scratch, with every feature that the run has."""
    m, steps, batch = config.model, 10, 32
    tiny = replace(
        config,
        workdir=f"{config.workdir}-debug",
        steps=steps,
        batch=batch,
        init_from="",
        data=replace(config.data, size=max(32, 8 * m.patch, 4 * m.critic_patch), threads=1),
        text=replace(config.text, width=32, layers=1),
        model=replace(
            m,
            noise=16,
            style=32,
            width=32,
            refine=min(m.refine, 16),
            detail=tuple(min(channels, 8) for channels in m.detail),
            blocks=min(m.blocks, 2),
            critic_widths=(32,) * len(m.critic_widths),
            critic_blocks=tuple(min(blocks, 1) for blocks in m.critic_blocks),
        ),
        parallel=replace(config.parallel, fsdp=1, accumulate=1),
    )
    sides = feature_sides(tiny)
    attention = tuple(side for side in m.attention if side in sides) or tuple(sides[:1])
    often = {"metrics": batch, "samples": 5 * batch, "checkpoint": 5 * batch}
    evaluate = 5 * batch if config.log.evaluate else 0
    return replace(
        tiny,
        model=replace(tiny.model, attention=attention if m.attention else ()),
        log=replace(config.log, **often, evaluate=evaluate),
    )


def unusable_platforms() -> str:
    """Returns JAX_PLATFORMS if no device of those platforms can be used here, else "".

    JAX 0.10 raises AssertionError for a platform whose plugin is not installed, RuntimeError for an unknown
    one.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and (jax := sys.modules.get("jax")):  # if JAX is not imported, nothing of it has failed
        try:
            jax.devices()
        except (RuntimeError, AssertionError):
            return platforms
    return ""


def _set_up_streams() -> None:
    """Makes warnings one line, and printing work with closed streams and without a Chinese locale."""
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # None if a shell has closed it
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # stderr does so by default


def run(main: Callable[[], None]) -> int:
    """Runs a command and returns its exit code. For entry points: it changes stdout and warnings globally.

    The code is 2 for bad input, for files that the system denies and for too little memory; 1 if a file
    system or a bucket fails, which another try may mend; 130 for a second Ctrl-C. What was wrong is one line
    on stderr.
    """
    _set_up_streams()
    try:
        main()
        sys.stdout.flush()  # a reader that is gone is noticed here, not at the interpreter's end
    except SystemExit as stop:  # tyro has printed a help page, or what is wrong
        return int(stop.code or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, TransientError) else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # if stdout has no file descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own flush
        return 1
    except OSError as error:
        if error.errno is None:
            raise
        print(f"error: {error.filename or 'the system says'}: {error.strerror}", file=sys.stderr)
        return 2 if is_permanent(error) else 1
    except (MemoryError, RuntimeError, AssertionError) as error:
        if platforms := unusable_platforms():
            missing = f"JAX_PLATFORMS={platforms}, and no such device can be used here"
            how = "unset it, or pip install 'dallegan[cuda]', 'dallegan[tpu]'"
            print(f"error: {missing}: {how}", file=sys.stderr)
            return 2
        said = str(error)
        if not isinstance(error, MemoryError) and not said.startswith("RESOURCE_EXHAUSTED"):  # as XLA says it
            raise
        what = (said or type(error).__name__).splitlines()[0]
        print(f"error: out of memory ({what}). {LESS_MEMORY}", file=sys.stderr)
        return 2
    return 0
