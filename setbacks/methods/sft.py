"""Supervised fine-tuning on safe answers: the plainest baseline (arXiv 2310.10477, section 4.1).

It knows no mistakes. To teach it the answers to safe requests that others refuse, name their data
in `train.helpful`.
"""

from __future__ import annotations

from collections.abc import Sequence

from setbacks.methods import USE_OF_MISTAKES, Method, mixed, safe
from setbacks.recipe import Recipe
from setbacks.records import Analysis, Example


class SFT(Method):
    """Safe answers to red-team instructions, mixed with helpful data, without mistakes."""

    name = "sft"
    title = "SFT"

    def unused(self, recipe: Recipe) -> Sequence[str]:
        """Return the keys of `train` that change nothing in this method."""
        return USE_OF_MISTAKES

    def examples(self, recipe: Recipe, analyses: Sequence[Analysis]) -> list[Example]:
        """Return every safe answer, and helpful ones in the recipe's proportion."""
        return mixed(recipe, safe(recipe, self.name))
