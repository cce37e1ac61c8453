"""MLP-Mixer in JAX and Flax: pre-train, transfer, time and understand it.

    model = mixer.load("runs/pets")
    logits = model.logits(model.read(["cat.jpg"]))

docs/python.md has the rest. Importing this package imports nothing else; JAX comes with the first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixer.api import Model, create, load

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "create", "load"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'mixer' has no attribute {name!r}")
    from mixer import api

    return getattr(api, name)
