"""Weights in safetensors files, in bfloat16: nothing in them can be executed."""

import pathlib
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

FORMAT = 1  # of the file: raised when older versions could not read it


def write_weights(file: pathlib.Path, params: Any) -> None:
    """Writes a tree of arrays, rounded to bfloat16."""
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    write_atomic(file, safetensors.flax.save({name: x.astype(jnp.bfloat16) for name, x in flat.items()}, {"dallegan": str(FORMAT)}))


def read_weights(file: pathlib.Path, expected: Any = None) -> Any:
    """The tree in float32. UserError where the file is missing, damaged, of a newer version, or of other names, shapes and types than the tree
    `expected`, which is seen from its header, before anything else is read. Without it, whatever tree is there."""
    try:
        with safetensors.safe_open(file, "numpy") as header:
            version = (header.metadata() or {}).get("dallegan", "1")
            if version != str(FORMAT):
                raise UserError(f"{file}: of format {version[:20]!r}, which this dallegan does not read; a newer one may: pip install -U dallegan")
            found = {name: (view.get_shape(), view.get_dtype()) for name in header.keys() for view in [header.get_slice(name)]}  # noqa: SIM118
        if expected is not None:
            check_names(file, found, flax.traverse_util.flatten_dict(expected, sep="/"))
        arrays = safetensors.numpy.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file}: the weights cannot be read: {error}") from None
    # numpy's conversion: JAX would compile one for each shape, which took longer than all else that loading does
    return jax.device_put(flax.traverse_util.unflatten_dict({name: x.astype(np.float32) for name, x in arrays.items()}, sep="/"))


def check_names(file: pathlib.Path, found: dict[str, Any], flat: dict[str, Any]) -> None:
    """UserError where the tensors in a file, {name: (shape, type)}, are not those that are expected."""
    wrong = [f"{name} is missing" for name in flat if name not in found] + [f"{name} is not part of it" for name in found if name not in flat]
    for name, (shape, kind) in found.items():
        if name in flat and tuple(shape) != flat[name].shape:
            wrong.append(f"{name} is {list(shape)}, not {list(flat[name].shape)}")
        elif kind not in ("BF16", "F16", "F32"):
            wrong.append(f"{name} is of type {kind}")
    if wrong:
        raise UserError(f"{file}: the weights of another network: {wrong[0][:200]}{f', and {len(wrong) - 1} more' if wrong[1:] else ''}")
