"""dallegan, the open JAX text-to-image GAN.

`load` returns a trained model, and `model.sample` draws captions. Everything below is pure functions.
"""

from dallegan.errors import UserError
from dallegan.sampling import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "UserError", "load"]
