"""The recipes of a loop's runs, which follow from the recipe of the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from setbacks.recipe import Evaluated, Recipe

_OF_OTHER_COMMANDS = ("compare", "study", "loop", "jobs")


def derived(recipe: Recipe, name: str, **changes: Any) -> Recipe:
    """Return the recipe of one of a loop's runs.

    Args:
        recipe: of the loop.
        name: what the run is, after the name of the loop.
        changes: other values, by key.
    """
    plain = Recipe()
    unused = {key: getattr(plain, key) for key in _OF_OTHER_COMMANDS}
    return recipe.model_copy(update=unused | changes | {"name": f"{recipe.name}: {name}"})


def evaluated(name: str, recipe: Recipe, adapter: Path | None) -> Evaluated:
    """Return an arm of an evaluation: the loop's model with an adapter, or without one."""
    return Evaluated(name=name, model=recipe.model, adapter=adapter and str(adapter))


def changed(section: Any, **values: Any) -> Any:
    """Return a section of a recipe with other values."""
    return section.model_copy(update=values)
