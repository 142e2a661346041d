"""Weights in safetensors files, in bfloat16. Nothing in such a file can be executed."""

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.flax
import safetensors.numpy

from dallegan.errors import UserError
from dallegan.io.files import write_atomic

FORMAT = 1  # version of the file; it grows if older versions of dallegan cannot read the new files


def write_weights(file: pathlib.Path, params: Any) -> None:
    """Writes a tree of arrays, rounded to bfloat16. Raises OSError."""
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    rounded = {name: x.astype(jnp.bfloat16) for name, x in flat.items()}
    write_atomic(file, safetensors.flax.save(rounded, {"dallegan": str(FORMAT)}))


def read_weights(file: pathlib.Path, expected: Any = None) -> Any:
    """Returns the tree of arrays of a file, in float32.

    Args:
        file: what `write_weights` wrote.
        expected: a tree of arrays or shapes. The names, shapes and dtypes of the file's header must match it;
            they are checked before any array is read. None accepts any tree.

    Raises:
        UserError: if the file is missing, damaged, written by a newer version, or does not match `expected`.
    """
    try:
        with safetensors.safe_open(file, "numpy") as header:
            version = (header.metadata() or {}).get("dallegan", "1")
            if version != str(FORMAT):
                raise UserError(
                    f"{file}: of format {version[:20]!r}, which this dallegan does not read; a newer "
                    "one may: pip install -U dallegan"
                )
            slices = {name: header.get_slice(name) for name in header.keys()}  # noqa: SIM118  # not a dict
            found = {name: (tuple(x.get_shape()), x.get_dtype()) for name, x in slices.items()}
        if expected is not None:
            check_tensors(file, found, flax.traverse_util.flatten_dict(expected, sep="/"))
        arrays = safetensors.numpy.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file}: the weights cannot be read: {error}") from None
    # converted by numpy: JAX would compile a program for each shape, which takes longer than everything else
    # here
    wide = {name: x.astype(np.float32) for name, x in arrays.items()}
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
        raise UserError(f"{file}: the weights of another network: {faults[0][:200]}{more}")
