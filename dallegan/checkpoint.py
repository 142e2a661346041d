"""Checkpoints: Orbax writes them whole or not at all; loading falls back to the newest step that can be read."""

import logging
import pathlib
import warnings
from typing import Any

from orbax.checkpoint import v1 as ocp

from dallegan.errors import UserError

for name in ("absl", "orbax"):
    logging.getLogger(name).setLevel(logging.ERROR)


class Checkpoints:
    """The checkpoints of a run, in `WORKDIR/checkpoints`. Only the writer removes what a kill left half written."""

    def __init__(self, workdir: str | pathlib.Path, keep: int, writer: bool = False) -> None:
        policy: Any = ocp.training.preservation_policies.LatestN(keep)
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        self._orbax = ocp.training.Checkpointer(str(self.directory), preservation_policy=policy, cleanup_tmp_directories=writer)
        self._damaged: set[int] = set()

    def steps(self) -> list[int]:
        """Steps that were saved, oldest first."""
        return sorted(c.step for c in self._orbax.checkpoints)

    def save(self, step: int, state: Any) -> None:
        """Writes the state of a step; when this returns it is on disk."""
        if step not in self.steps() or step in self._damaged:
            self._orbax.save_checkpointables(step, {"state": state}, force=True, overwrite=step in self._damaged)
            self._damaged.discard(step)

    def restore(self, abstract: Any) -> Any | None:
        """The newest state that can be read, with the shapes and shardings of `abstract`; None where nothing was saved.

        UserError where checkpoints exist and none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._orbax.load_checkpointables(step, {"state": abstract})["state"]
            except Exception as error:  # Orbax raises KeyError, NoEntryError, ValueError, ... for what is damaged
                self._damaged.add(step)
                warnings.warn(f"checkpoint {step} cannot be read ({type(error).__name__}): trying the one before", stacklevel=2)
        if steps:
            raise UserError(f"none of the checkpoints {steps} in {self.directory} can be read by this model")
        return None

    def close(self) -> None:
        """Releases Orbax's threads."""
        self._orbax.close()
