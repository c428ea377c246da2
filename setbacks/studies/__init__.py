"""Studies: one question of the paper each, one file each.

A study is a module with a class `Options` (what `study` of a recipe may hold) and a function
`study`; the entry point group ``setbacks.studies`` finds it by name, in this package or in another.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from setbacks.errors import InputError
from setbacks.page import Findings, write
from setbacks.plugins import plugin
from setbacks.recipe import Recipe
from setbacks.variants import prepare_folder

Show = Callable[[str, int, int], None]


class Study(Protocol):
    """A module that carries out one study."""

    Options: type[BaseModel]

    def study(self, recipe: Recipe, options: BaseModel, folder: Path, show: Show | None) -> Findings:
        """Do what is missing in the folder, and say what was found.

        Args:
            recipe: what the runs are told.
            options: the recipe's `study`, checked.
            folder: where all is kept; `setbacks.variants.each` makes runs in it.
            show: told of progress: what, done, total.
        """
        ...


def carry_out(name: str, recipe: Recipe, folder: Path, show: Show | None = None) -> Path:
    """Carry out the study `name`, or go on where it stopped; return its page.

    Raises:
        InputError: there is no such study; the recipe, its data or the folder is at fault, or
            there are too few records.
        SetbacksError: something failed on the way; what was done is kept.
    """
    made: Study = plugin("studies", name)
    options = recipe.options(made.Options, f"study {name}")
    prepare_folder(folder, recipe)
    return write(folder, made.study(recipe, options, folder, show))


def at_least(number: int, needed: int, what: str) -> None:
    """Refuse a study on too few records.

    Raises:
        InputError: there are fewer than are needed.
    """
    if number < needed:
        raise InputError(f"{number} {what}: this study needs at least {needed}; add some")
