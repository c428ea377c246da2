"""setbacks: align a language model by having it analyze its own mistakes (arXiv 2310.10477).

>>> from setbacks import Recipe, run
>>> report = run(Recipe(), "runs/quickstart")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["InputError", "Recipe", "SetbacksError", "run"]

if TYPE_CHECKING:
    from setbacks.errors import InputError, SetbacksError
    from setbacks.pipeline import run
    from setbacks.recipe import Recipe

_PLACES = {
    "InputError": "setbacks.errors",
    "SetbacksError": "setbacks.errors",
    "Recipe": "setbacks.recipe",
    "run": "setbacks.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `import setbacks` stays instant."""
    if name not in _PLACES:
        raise AttributeError(f"module 'setbacks' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
