"""Helpful data alone: the control that shows what the mix does by itself."""

from __future__ import annotations

from collections.abc import Sequence

from setbacks.errors import InputError
from setbacks.methods import USE_OF_MISTAKES, Method, helpful_answers
from setbacks.recipe import Recipe
from setbacks.records import Analysis, Example


class Helpful(Method):
    """Only helpful answers: ordinary instruction tuning."""

    name = "helpful"

    def unused(self, recipe: Recipe) -> Sequence[str]:
        """Return the keys of `train` that change nothing in this method."""
        return ("safe", "mix.helpful", *USE_OF_MISTAKES)

    def examples(self, recipe: Recipe, analyses: Sequence[Analysis]) -> list[Example]:
        """Return every helpful answer."""
        answers = helpful_answers(recipe)
        if not answers and recipe.train.helpful_from == "data":
            raise InputError("train.method helpful needs answers: name data in train.helpful")
        return answers
