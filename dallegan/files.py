"""Files that appear whole or not at all."""

import contextlib
import pathlib
from collections.abc import Iterator

from dallegan.errors import UserError


def write_whole(path: str | pathlib.Path, data: bytes | str) -> None:
    """Writes a file by way of a temporary one beside it: a kill leaves the old file or the new one, never half."""
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "backslashreplace"))
    partial.replace(path)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Makes the folder of a file that is written inside; UserError where either fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
