"""Boards that show the lines of metrics.jsonl: TensorBoard and Weights & Biases."""

import contextlib
import importlib.util
import pathlib
import sys
import uuid
import warnings
from collections.abc import Callable, Mapping
from typing import IO, Any, Protocol

from dallegan.config import Config, flatten
from dallegan.errors import TransientError, UserError
from dallegan.io.files import read_file, write_atomic, writing
from dallegan.run.processes import is_main
from dallegan.run.workdir import WANDB_ID, warn_on_oserror

FLUSH = 2  # seconds after which TensorBoard's file has a line
FINISH = 60  # seconds that Weights & Biases has at the end for what it has not sent yet


class Board(Protocol):
    """Shows the lines of metrics.jsonl. A board that fails ends with a warning, and training goes on."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Shows the numbers of a line, over its `images`."""
        ...

    def close(self) -> None:
        """Ends the board. Called while an exception is handled if the run has failed."""
        ...


def make_boards(workdir: pathlib.Path, config: Config) -> list[Board]:
    """Returns the boards of a run: none unless this is the main process.

    There is TensorBoard if tensorboardX is installed, and Weights & Biases if `config.log.wandb` names a
    project. Raises UserError if Weights & Biases cannot begin.
    """
    boards: list[Board] = []
    if is_main() and config.log.wandb:
        boards.append(WandB(workdir, config))
    if is_main() and importlib.util.find_spec("tensorboardX"):
        boards.append(TensorBoard(workdir / "tensorboard"))
    return boards


class TensorBoard:
    """Writes TensorBoard's event files with tensorboardX's SummaryWriter.

    An error ends the thread with which a SummaryWriter writes, and a run would then wait for that thread for
    ever. So the writer gets a file that raises nothing: a full disk ends the file with a warning, and nothing
    else.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        from tensorboardX import SummaryWriter
        from tensorboardX.record_writer import register_writer_factory

        register_writer_factory("dallegan", _Files())  # opens the paths that begin with "dallegan:"
        self._writer: Any = None
        with warn_on_oserror("tensorboard"):
            self._writer = SummaryWriter(f"dallegan:{folder}", flush_secs=FLUSH)

    def write(self, line: Mapping[str, Any]) -> None:
        """Adds the numbers of a line as scalars."""
        for name, value in line.items():
            if self._writer and isinstance(value, int | float) and name not in ("step", "images"):
                self._writer.add_scalar(name, value, line["images"])

    def close(self) -> None:
        """Ends the file."""
        if self._writer:
            self._writer.close()


class _Files:
    """Opens files for tensorboardX; the interface of its own factories for buckets."""

    def directory_check(self, path: str) -> None:
        pathlib.Path(path.removeprefix("dallegan:")).mkdir(exist_ok=True)

    def open(self, path: str) -> "_ForgivingFile":
        return _ForgivingFile(pathlib.Path(path.removeprefix("dallegan:")))


class _ForgivingFile:
    """A file that ends at its first error, with a warning, and takes what comes after it without a word."""

    def __init__(self, path: pathlib.Path) -> None:
        self._file: IO[bytes] | None = path.open("wb")

    def _do(self, action: Callable[[IO[bytes]], object]) -> None:
        if (file := self._file) is None:
            return
        with warn_on_oserror("tensorboard"):
            try:
                action(file)
            except OSError:
                self._file = None
                with contextlib.suppress(OSError):
                    file.close()
                raise

    def write(self, data: bytes) -> None:
        self._do(lambda file: file.write(data))

    def flush(self) -> None:
        self._do(lambda file: file.flush())

    def close(self) -> None:
        self._do(lambda file: file.close())
        self._file = None


class WandB:
    """Sends the lines to Weights & Biases.

    A run here is one run there, however often it stops and resumes; lines that a kill undid stay there. With
    WANDB_MODE=offline there is one run for each start, and all of them are in one group. Raises UserError if
    it cannot begin. What fails later ends it with a warning.
    """

    def __init__(self, workdir: pathlib.Path, config: Config) -> None:
        project = config.log.wandb
        try:
            import wandb
            from wandb.errors import UsageError
        except ImportError:
            raise UserError(f"--log.wandb {project}: pip install 'dallegan[wandb]'") from None
        with writing(workdir / WANDB_ID):
            if not (workdir / WANDB_ID).exists():
                write_atomic(workdir / WANDB_ID, uuid.uuid4().hex[:8])
            name = read_file(workdir / WANDB_ID, 100).decode("utf-8", "replace")
        # by default, wandb redirects stdout and stderr, and writes into (and ends) a run that is open already
        settings = wandb.Settings(console="off", reinit="create_new", finish_timeout=FINISH)
        known: dict[str, Any] = {"project": project, "name": workdir.name, "group": name, "dir": workdir}
        try:
            if wandb.setup().settings.mode != "offline":  # only the server can resume a run
                known |= {"id": name, "resume": "allow"}
            self._run: Any = wandb.init(**known, config=flatten(config), settings=settings)
            # its own count of lines may not go back, as it does after a kill
            self._run.define_metric("*", step_metric="images")
        except Exception as error:  # of the network, the account, the project's name: wandb raises any type
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            kind = UserError if isinstance(error, UsageError) else TransientError
            hint = "WANDB_MODE=offline keeps all here, for `wandb sync` later"
            raise kind(f"--log.wandb {project}: {reason}. {hint}") from None

    def write(self, line: Mapping[str, Any]) -> None:
        """Sends a line."""
        self._do(lambda run: run.log(dict(line)))

    def close(self) -> None:
        """Waits up to FINISH seconds until all lines are sent."""
        self._do(lambda run: run.finish(exit_code=int(sys.exc_info()[0] is not None)))
        self._run = None

    def _do(self, action: Callable[[Any], object]) -> None:
        try:
            if self._run is not None:
                action(self._run)
        except Exception as error:  # wandb raises any type, for example if its own process has died
            self._run = None
            reason = f"{type(error).__name__}: {error}"
            message = f"Weights & Biases gets no more of this run ({reason}); training goes on"
            warnings.warn(message, stacklevel=3)
