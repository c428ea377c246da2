"""First sentence: mistake analysis in which the model learns the verdict's sentence alone."""

import re
from collections.abc import Sequence

from setbacks.methods import example, mixed
from setbacks.methods.mistake_analysis import best
from setbacks.prompts import fill, prompts
from setbacks.recipe import Recipe
from setbacks.records import Analysis, Example


class FirstSentence:
    """Teaches the first sentence of the best analysis of each response."""

    name = "first_sentence"
    uses_mistakes = True
    learns_analyses = True  # its own verdicts are read before and after training
    learning_rate = 2e-4

    def examples(self, recipe: Recipe, analyses: Sequence[Analysis]) -> list[Example]:
        """Return an example for each response that has an analysis, and helpful answers."""
        question = prompts(recipe.language)["unguided"]
        own = []
        for chosen in best(analyses):
            prompt = fill(question, instruction=chosen.instruction, response=chosen.response)
            first = re.split(r"(?<=[.!?])\s", chosen.text)[0]
            own.append(example("analysis", prompt, first, [chosen.id, chosen.response_id]))
        return mixed(recipe, own)
