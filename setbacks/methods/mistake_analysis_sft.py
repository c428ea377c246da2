"""Mistake analysis and SFT together (arXiv 2310.10477, section 4.1): analyses and safe answers."""

from __future__ import annotations

from collections.abc import Sequence

from setbacks.methods import Method, mixed, safe, share
from setbacks.methods.mistake_analysis import LEARNED, own_analyses
from setbacks.recipe import Recipe
from setbacks.records import Analysis, Example


class MistakeAnalysisSFT(Method):
    """Analyses, safe answers, and the recipe's mix for both."""

    name = "mistake_analysis_sft"
    title = "mistake analysis + SFT"
    uses_mistakes = True
    learns_analyses = True
    reads = LEARNED

    def unused(self, recipe: Recipe) -> Sequence[str]:
        """Return the keys of `train` that change nothing in this method."""
        return ("mix.safe",)

    def examples(self, recipe: Recipe, analyses: Sequence[Analysis]) -> list[Example]:
        """Return every safe answer, the best analyses, and helpful answers."""
        analyzed, refusals, contrast = own_analyses(recipe, analyses)
        own = [*analyzed, *refusals, *safe(recipe, self.name)]
        wanted = recipe.train.mix.contrast * len(analyzed or refusals)
        return [*mixed(recipe, own), *share(contrast, wanted, "contrast")]
