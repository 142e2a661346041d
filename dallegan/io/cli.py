"""Command lines: presets and flags to a configuration, and errors to one line and an exit code."""

import contextlib
import dataclasses
import io
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from dallegan.config import Config, load_preset, presets
from dallegan.errors import TransientError, UserError, is_permanent

T = TypeVar("T")
LESS = "Training needs less with a larger --parallel.accumulate, with --parallel.fsdp over several devices, or with a smaller --batch"


def parse(kind: type[T], prog: str, **options: Any) -> T:
    """`tyro.cli`; its framed complaint about bad flags becomes a UserError of one line. A path's ~ is expanded, as shells leave it in --out=~/x."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            args: Any = tyro.cli(kind, prog=prog, **options)
        paths = {k: pathlib.Path(os.path.expanduser(v)) for k, v in vars(args).items() if isinstance(v, pathlib.Path)}  # no error for ~nobody
        return dataclasses.replace(args, **paths)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
    # a frame, of lines or in ASCII, around sections with a rule between: title, what is wrong, then what may have been meant, help
    plain = re.sub(r"\x1b\[[0-9;]*m", "", complaint.getvalue())  # a terminal gets colours
    sections = re.split("-{5,}", re.sub("[╭╮│╰╯]", "", plain).replace("─", "-"))
    _, wrong, *more = [[line.strip() for line in section.splitlines() if line.strip()] for section in sections if section.strip()]
    meant = next((f"; did you mean {part[1]}?" for part in more if part[0].startswith("Perhaps")), "")
    raise UserError(f"{' '.join(wrong)}{meant} (all flags: {prog} --help)")


def parse_config(args: Sequence[str], prog: str = "train.py") -> Config:
    """`[PRESET] [--FIELD VALUE]...` to a configuration; the preset defaults to quickstart."""
    named = bool(args) and not args[0].startswith("-")
    preset = args[0] if named else "quickstart"
    config = load_preset(preset)
    about = (
        f"Train a text-to-image GAN: {prog} [PRESET] [--FIELD VALUE]...\n\nPresets: {', '.join(presets())} (default: quickstart). Every flag below shows the "
        f"value of {preset}. The same command again goes on where the run stopped."
    )
    return parse(Config, f"{prog} {preset}", default=config, args=list(args[named:]), description=about)


def _away() -> str:
    """What JAX was told to run on, where it finds none; a plugin that is absent makes it fail an assertion (0.10), a name that it does not know otherwise."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and (jax := sys.modules.get("jax")):  # not imported: nothing of JAX has failed
        try:
            jax.devices()
        except (RuntimeError, AssertionError):
            return platforms
    return ""


def run(main: Callable[[], None]) -> int:
    """Runs a command; exit code 2 and one line on stderr for bad input, files that the system denies and too little memory, 1 and a line where a file
    system or a bucket fails, 130 for a second Ctrl-C. Warnings are a line each."""
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    sys.stdout, sys.stdin = sys.stdout or open(os.devnull, "w"), sys.stdin or open(os.devnull)  # noqa: SIM115  # where a shell has closed them
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # where the locale has no word of Chinese; stderr does so by itself
    try:
        main()
        sys.stdout.flush()  # what is left is written here, where a reader that is gone is noticed
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, TransientError) else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # no file descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own flush
        return 1
    except OSError as error:
        if error.errno is None:
            raise
        print(f"error: {error.filename or 'the system says'}: {error.strerror}", file=sys.stderr)
        return 2 if is_permanent(error) else 1
    except (MemoryError, RuntimeError, AssertionError) as error:
        if platforms := _away():
            how = "unset it, or pip install 'dallegan[cuda]', 'dallegan[tpu]'"
            print(f"error: JAX_PLATFORMS={platforms}, and no such device can be used here: {how}", file=sys.stderr)
            return 2
        if isinstance(error, AssertionError):
            raise
        if isinstance(error, RuntimeError) and not str(error).startswith("RESOURCE_EXHAUSTED"):  # as XLA says it
            raise
        print(f"error: out of memory ({(str(error) or type(error).__name__).splitlines()[0]}). {LESS}", file=sys.stderr)
        return 2
    return 0
