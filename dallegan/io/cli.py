"""Command lines: presets and flags to a configuration, and errors to one line and an exit code."""

import contextlib
import difflib
import io
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import tyro

from dallegan.config import Config, feature_sides, flatten, load_preset, presets
from dallegan.errors import TransientError, UserError, is_permanent
from dallegan.io.files import local_path
from dallegan.io.text import say

T = TypeVar("T")
# settings by the names that other programs give them
MEANT = {"data": "data.source", "model": "init-from", "batch-size": "batch", "out": "workdir"}
LESS_MEMORY = (
    "Training needs less with a larger --parallel.accumulate, with --parallel.fsdp over several devices, "
    "or with a smaller --batch"
)


def parse(kind: type[T], prog: str, **options: Any) -> T:
    """Parses a command line by `tyro.cli`, whose keyword arguments `options` are, and expands "~" in paths.

    A shell leaves "~" as it is in --out=~/x. Raises UserError for bad flags, and for a path that is an
    address or in the home of an unknown user.
    """
    args = _call_tyro(kind, prog=prog, **options)
    paths = {name: value for name, value in vars(args).items() if isinstance(value, pathlib.Path)}
    return replace(args, **{name: local_path(path) for name, path in paths.items()})  # type: ignore[type-var]


def _call_tyro(kind: type[T], **options: Any) -> Any:
    """Calls `tyro.cli`. Raises UserError, with the main sentence of tyro's message, if it finds a fault."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
    whole = re.sub("[│╭╮╰╯├┤]", " ", said.getvalue())
    title, *parts = re.split("[-─]{8,}", whole)
    message = " ".join((parts or [title])[0].split()).rstrip(".")
    if near := re.search(r"Perhaps you meant:?[\s─-]*(--[\w.-]+)", whole):
        message += f"; did you mean {near[1]}?"
    if "literal for int()" in message:
        message += ", which must be a whole number in digits"
    if misplaced := [word for word in presets() if repr(word) in message]:
        message += f" (a preset stands before all flags: {options['prog'].rpartition(' ')[0]} {misplaced[0]})"
    raise UserError(f"{message}. {options['prog']} --help lists all flags".replace("?.", "?"))


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
    parsed, unknown = _call_tyro(Config, return_unknown_args=True, **options)
    if not unknown:
        return parsed
    flag = unknown[0].partition("=")[0]
    if not flag.startswith("-"):
        raise UserError(f"{flag!r} is not a flag; name one preset, before all flags: {usage}")
    name, names = flag.strip("-").replace("_", "-"), [name.replace("_", "-") for name in flatten(config)]
    ends = [full for full in names if full.endswith(f".{name}")]
    meant = [MEANT[name]] if name in MEANT else ends or difflib.get_close_matches(name, names, 3)
    also = f"; did you mean --{' or --'.join(meant)}?" if meant else "."
    raise UserError(f"no flag {flag}{also} {prog} --help lists all")


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


class Forgiving:
    """A stream that drops text if its reader has gone or its disk is full, so that work goes on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes a text as far as possible."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Sends what was written."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _set_up_streams() -> None:
    """Makes warnings one line, and printing work with closed streams and without a Chinese locale."""
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}", sys.stderr, 2000)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115  # None if a shell has closed it
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = Forgiving(sys.stderr or open(os.devnull, "w"))  # noqa: SIM115
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
        say(f"error: {error}", sys.stderr, 2000)
        return 1 if isinstance(error, TransientError) else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:
        if error.errno is None:
            raise
        say(f"error: {error.filename or 'the system says'}: {error.strerror}", sys.stderr, 2000)
        return 2 if is_permanent(error) else 1
    except (MemoryError, RuntimeError, AssertionError) as error:
        if platforms := unusable_platforms():
            missing = f"JAX_PLATFORMS={platforms}, and no such device can be used here"
            how = "unset it, or pip install 'dallegan[cuda]', 'dallegan[tpu]'"
            say(f"error: {missing}: {how}", sys.stderr)
            return 2
        said = str(error)
        if not isinstance(error, MemoryError) and not said.startswith("RESOURCE_EXHAUSTED"):  # as XLA says it
            raise
        what = (said or type(error).__name__).splitlines()[0]
        say(f"error: out of memory ({what}). {LESS_MEMORY}", sys.stderr, 2000)
        return 2
    finally:
        try:
            sys.stdout.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):  # if stdout has no file descriptor
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's flush
    return 0
