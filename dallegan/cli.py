"""Command lines: presets and flags to a configuration, and errors to one line and an exit code."""

import sys
import warnings
from collections.abc import Callable, Sequence

import tyro

from dallegan.config import Config, load_preset, presets
from dallegan.errors import UserError


def parse_config(args: Sequence[str], prog: str = "train.py") -> Config:
    """`[PRESET] [--FIELD VALUE]...` to a configuration; the preset defaults to quickstart."""
    named = bool(args) and not args[0].startswith("-")
    preset = args[0] if named else "quickstart"
    config = load_preset(preset)
    about = (
        f"Train a text-to-image GAN: {prog} [PRESET] [--FIELD VALUE]...\n\nPresets: {', '.join(presets())} (default: quickstart). Every flag below shows the "
        f"value of {preset}. The same command again goes on where the run stopped."
    )
    return tyro.cli(Config, default=config, args=list(args[named:]), prog=f"{prog} {preset}", description=about)


def run(main: Callable[[], None]) -> int:
    """Runs a command; exit code 2 and one line on stderr for bad input, 130 for a second Ctrl-C. Warnings are a line each."""
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    return 0
