"""Weights in safetensors files, in bfloat16. Nothing in such a file can be executed."""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from dallegan.errors import UserError
from dallegan.io.files import digest, open_regular, write_atomic
from dallegan.io.text import shown

MAX_HEADER = 2**24  # bytes of the names and shapes
FORMAT = 1  # version of the file; it grows if older versions of dallegan cannot read the new files


def write_weights(file: pathlib.Path, params: Any) -> None:
    """Writes a tree of arrays, rounded to bfloat16, with a digest of them. Raises OSError."""
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    rounded = {name: np.asarray(x.astype(jnp.bfloat16)) for name, x in flat.items()}
    metadata = {"dallegan": str(FORMAT), "digest": _digest(rounded)}
    write_atomic(file, safetensors.numpy.save(rounded, metadata))


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    return digest(part for name in sorted(arrays) for part in (name, arrays[name].tobytes()))


def read_header(file: pathlib.Path) -> tuple[dict[str, str], dict[str, tuple[tuple[int, ...], str]]]:
    """Returns the metadata of a safetensors file, and shape and dtype of each tensor by its name.

    Raises UserError if the file is missing, damaged or written by a newer version.
    """
    try:
        with open_regular(file) as stream:  # safetensors would wait for a pipe
            if int.from_bytes(stream.read(8), "little") > MAX_HEADER:
                raise UserError(f"{file}: the weights cannot be read: the header is too large")
        with safetensors.safe_open(file, "numpy") as header:
            metadata = header.metadata() or {}
            slices = {name: header.get_slice(name) for name in header.keys()}  # noqa: SIM118  # not a dict
            found = {name: (tuple(x.get_shape()), x.get_dtype()) for name, x in slices.items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(file, error) from None
    if (version := metadata.get("dallegan", "1")) != str(FORMAT):
        raise UserError(
            f"{file}: of format {version[:20]!r}, which this dallegan does not read; a newer "
            "one may: pip install -U dallegan"
        )
    return metadata, found


def _unreadable(file: pathlib.Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(f"{file}: the weights cannot be read: {reason}")


def read_weights(file: pathlib.Path, expected: Any = None) -> Any:
    """Returns the tree of arrays of a file, in float32.

    Args:
        file: what `write_weights` wrote.
        expected: a tree of arrays or shapes. The names, shapes and dtypes of the file's header must match it;
            they are checked before any array is read. None accepts any tree.

    Raises:
        UserError: if the file is missing, damaged, written by a newer version, holds numbers that are not
            finite or none but zeros, or does not match `expected`.
    """
    metadata, found = read_header(file)
    if expected is not None:
        check_tensors(file, found, flax.traverse_util.flatten_dict(expected, sep="/"))
    try:
        arrays = safetensors.numpy.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(file, error) from None
    if "digest" in metadata and metadata["digest"] != _digest(arrays):  # files of 2026 have none
        raise UserError(f"{file}: the weights are damaged: their digest is another; copy the file again")
    # converted by numpy: JAX would compile a program for each shape, which takes longer than everything else
    # here
    wide = {name: x.astype(np.float32) for name, x in arrays.items()}
    if bad := next((name for name, x in wide.items() if not np.isfinite(x).all()), None):
        raise UserError(f"{file}: the weights are damaged: {shown(bad, 200)} is not finite")
    if not any(x.any() for x in wide.values()):
        raise UserError(f"{file}: the weights are damaged: all are 0")
    return jax.device_put(flax.traverse_util.unflatten_dict(wide, sep="/"))


def check_tensors(
    file: pathlib.Path, found: Mapping[str, tuple[tuple[int, ...], str]], expected: Mapping[str, Any]
) -> None:
    """Raises UserError if the tensors of a file, {name: (shape, dtype)}, are not the expected ones."""
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is not part of it" for name in found if name not in expected]
    for name, (shape, dtype) in found.items():
        if name in expected and shape != expected[name].shape:
            faults.append(f"{name} is {list(shape)}, not {list(expected[name].shape)}")
        elif dtype not in ("BF16", "F16", "F32"):
            faults.append(f"{name} is of type {dtype}")
    if faults:
        more = f", and {len(faults) - 1} more" if faults[1:] else ""
        raise UserError(f"{file}: the weights of another network: {shown(faults[0], 200)}{more}")
