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
from dallegan.files import write_whole


def write_weights(file: pathlib.Path, params: Any) -> None:
    """Writes a tree of arrays, rounded to bfloat16."""
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    write_whole(file, safetensors.flax.save({name: x.astype(jnp.bfloat16) for name, x in flat.items()}))


def read_weights(file: pathlib.Path, expected: Any) -> Any:
    """The tree in float32. UserError where the file is missing, damaged or of other names and shapes than the tree `expected`."""
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(expected, sep="/")
    try:
        arrays = safetensors.numpy.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file}: the weights cannot be read: {error}") from None
    if {name: x.shape for name, x in arrays.items()} != {name: x.shape for name, x in flat.items()}:
        raise UserError(f"{file}: the weights of another network")
    # numpy's conversion: JAX would compile one for each shape, which took longer than all else that loading does
    return jax.device_put(flax.traverse_util.unflatten_dict({name: x.astype(np.float32) for name, x in arrays.items()}, sep="/"))
