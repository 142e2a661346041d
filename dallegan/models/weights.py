"""Weights in safetensors files, in bfloat16: nothing in them can be executed."""

import pathlib
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import safetensors
import safetensors.flax

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
        arrays = safetensors.flax.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{file}: the weights cannot be read: {error}") from None
    if {name: x.shape for name, x in arrays.items()} != {name: x.shape for name, x in flat.items()}:
        raise UserError(f"{file}: the weights of another network")
    return flax.traverse_util.unflatten_dict({name: x.astype(jnp.float32) for name, x in arrays.items()}, sep="/")
