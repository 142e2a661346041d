"""Weights in safetensors files, in bfloat16. Nothing in such a file can be executed."""

import errno
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from dallegan.errors import UserError, line_of
from dallegan.io.files import digest, open_regular, write_atomic
from dallegan.io.text import shown

MAX_HEADER = 2**24  # bytes of the names and shapes
FORMAT = 1  # version of the file; it grows if older versions of dallegan cannot read the new files


def write_weights(file: pathlib.Path, params: Any) -> None:
    """Writes a tree of arrays, rounded to bfloat16, with a digest of them. Raises OSError."""
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    rounded = {name: np.asarray(x.astype(jnp.bfloat16)) for name, x in flat.items()}
    # one entry, since safetensors writes several in any order
    write_atomic(file, safetensors.numpy.save(rounded, {"dallegan": f"{FORMAT} {_digest(rounded)}"}))


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    return digest(part for name in sorted(arrays) for part in (name, arrays[name].tobytes()))


def read_weights(file: pathlib.Path, expected: Any = None, least: int = 0) -> Any:
    """Returns the tree of arrays of a file, in float32.

    Args:
        file: what `write_weights` wrote.
        expected: a tree of arrays or shapes, or a function that returns one. The names, shapes and dtypes of
            the file's header must match it; they are checked before any array is read. None accepts any tree.
        least: number of tensors that the file must have; it is checked before `expected` is called.

    Raises:
        UserError: if the file is missing, damaged, written by a newer version, holds numbers that are not
            finite or none but zeros, or does not match `expected`.
    """
    try:
        with open_regular(file) as stream:  # safetensors would wait for a pipe
            if int.from_bytes(stream.read(8), "little") > MAX_HEADER:
                raise OSError(errno.EFBIG, "the header is too large")
        with safetensors.safe_open(file, "numpy") as header:
            version, _, written = (header.metadata() or {}).get("dallegan", "1").partition(" ")
            slices = {name: header.get_slice(name) for name in header.keys()}  # noqa: SIM118  # not a dict
            found = {name: (tuple(x.get_shape()), x.get_dtype()) for name, x in slices.items()}
        if version != str(FORMAT):
            raise UserError(
                f"{file}: of format {version[:20]!r}, which this dallegan does not read; a newer "
                "one may: pip install -U dallegan"
            )
        if len(found) < least:
            why = f"{len(found)} tensors; the layers in config.json have {least} or more"
            raise UserError(f"{file}: the weights of another network: {why}")
        if expected is not None:
            tree = expected() if callable(expected) else expected
            check_tensors(file, found, flax.traverse_util.flatten_dict(tree, sep="/"))
        arrays = safetensors.numpy.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file}: the weights cannot be read: {line_of(error)}") from None
    # converted by numpy: JAX would compile a program for each shape, which takes longer than everything else
    # here
    wide = {name: x.astype(np.float32) for name, x in arrays.items()}
    bad = [f"{shown(name, 200)} is not finite" for name, x in wide.items() if not np.isfinite(x).all()]
    bad += ["all are 0"] * (not any(x.any() for x in wide.values()))
    if written and written != _digest(arrays):  # older files have none
        bad += ["their digest is another"]
    if bad:
        raise UserError(f"{file}: the weights are damaged, copy the file again: {bad[0]}")
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
