"""Files that appear whole or not at all."""

import pathlib


def write_whole(path: str | pathlib.Path, data: bytes | str) -> None:
    """Writes a file by way of a temporary one beside it: a kill leaves the old file or the new one, never half."""
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "backslashreplace"))
    partial.replace(path)
