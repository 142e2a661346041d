"""Shapes and dtypes of the public functions' arrays, in jaxtyping's notation.

They cost nothing unless jaxtyping's import hook is installed, as the tests do (`tests/conftest.py`): then each call is checked, and a letter means the
same number throughout one call. B pictures or captions, K other captions, T tokens, D a sentence vector's numbers, F a picture's, Z the noise's,
H W h w heights and widths, C channels, N M rows.
"""

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

Given = jax.Array | np.ndarray  # what functions take

Tokens = Int[Given, "B T"]
Noise = Float[Given, "B Z"]
Images = Float[Given, "B H W 3"]  # in [-1, 1]
FeatureMap = Float[Given, "B h w C"]
Scores = Float[Given, " B"]
Features = Float[jax.Array, "N D"]
OtherFeatures = Float[jax.Array, "M D"]
Layouts = Float[Given, "B 8 8 3"]
Pictures = UInt8[np.ndarray, "B H W 3"]
Scalar = Float[jax.Array, ""]

__all__ = [
    "Bool",
    "FeatureMap",
    "Features",
    "Float",
    "Given",
    "Images",
    "Int",
    "Layouts",
    "Noise",
    "OtherFeatures",
    "Pictures",
    "Scalar",
    "Scores",
    "Tokens",
    "UInt8",
]
