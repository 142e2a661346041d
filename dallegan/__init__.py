"""dallegan, the open JAX text-to-image GAN.

`load` returns a trained model, and `model.sample` draws captions. Everything below is pure functions.
"""

from typing import TYPE_CHECKING, Any

from dallegan.errors import UserError

if TYPE_CHECKING:
    from dallegan.sampling import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "UserError", "load"]


def __getattr__(name: str) -> Any:
    """Imports `Model` or `load` when it is asked for, since JAX takes seconds to import."""
    if name in __all__:
        from dallegan import sampling

        return getattr(sampling, name)
    raise AttributeError(f"module 'dallegan' has no attribute {name!r}")
