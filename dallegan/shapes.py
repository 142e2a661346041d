"""Shapes and dtypes of the arrays that public functions take and return, in jaxtyping's notation.

The annotations cost nothing unless jaxtyping's import hook is installed, as tests/conftest.py does. With the
hook every call is checked, and a letter stands for the same number throughout one call:

    B images or captions, K other captions, T tokens, N M rows, H W h w heights and widths, C channels,
    D features of a sentence, F features of an image, Z dimensions of the noise.
"""

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

Given = jax.Array | np.ndarray  # the arrays that functions accept

Tokens = Int[Given, "B T"]
Noise = Float[Given, "B Z"]
Images = Float[Given, "B H W 3"]  # in [-1, 1]
Images8 = UInt8[np.ndarray, "B H W 3"]  # as files and screens have them
Layouts = Float[Given, "B 8 8 3"]
Scores = Float[Given, " B"]
Features = Float[jax.Array, "N D"]
OtherFeatures = Float[jax.Array, "M D"]
Scalar = Float[jax.Array, ""]

__all__ = [
    "Bool",
    "Features",
    "Float",
    "Given",
    "Images",
    "Images8",
    "Int",
    "Layouts",
    "Noise",
    "OtherFeatures",
    "Scalar",
    "Scores",
    "Tokens",
    "UInt8",
]
