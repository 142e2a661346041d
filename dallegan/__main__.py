"""The program `dallegan COMMAND ...`; `python -m dallegan COMMAND ...` is the same."""

import contextlib
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from dallegan import __version__
from dallegan.errors import UserError
from dallegan.run.machine import restart_with_huge_pages

COMMANDS = {
    "train": "train a preset, or resume it",
    "sample": "generate images of captions with a trained model",
    "evaluate": "measure a model",
    "prepare": "turn any source of captioned images into shards that training reads fast",
    "hub": "download a model, or upload one to the Hugging Face Hub",
    "export": "write a model as one file that needs JAX alone",
    "demo": "generate images on a page in the browser",
    "report": "write an HTML page about one run, or about several",
}
HELP = "usage: dallegan COMMAND ...\n\n" + "".join(f"  {name:10}{text}\n" for name, text in COMMANDS.items())
HELP += "\n`dallegan COMMAND --help` lists the flags of a command."


def dispatch(argv: Sequence[str]) -> None:
    """Runs the command that the first argument names. Raises UserError if there is no such command."""
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "--version"):
        print(__version__ if name == "--version" else HELP)
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"no command {name!r}{meant} Commands: {', '.join(COMMANDS)}")
    command = importlib.import_module(f"dallegan.commands.{name}")  # only what it needs is imported
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command.main(argv[1:])


def main(argv: Sequence[str]) -> int:
    """Runs a command line inside this process and returns its exit code."""
    from dallegan.io.cli import run  # imports JAX, while `start` minds Ctrl-C

    return run(lambda: dispatch(argv))


def _quit(*_: object) -> None:
    """Ends the program on Ctrl-C while modules are imported, from whose middle an exception may not come."""
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(130)


def start(*command: str) -> int:
    """Runs `command` and the arguments of this process, and returns the exit code; for entry points."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a stream that a shell has closed; its number would become that of a file
    os.close(descriptor)
    argv = [*command, *sys.argv[1:]]
    if argv[:1] in (["train"], ["evaluate"]) and "--help" not in argv:
        restart_with_huge_pages()
    return main(argv)


if __name__ == "__main__":
    sys.exit(start())
