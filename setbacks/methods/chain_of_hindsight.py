"""Chain of Hindsight (arXiv 2302.02676): good and bad answers, with prompts that name which.

The prompt of a safe answer has the guidance of step 4, the prompt of a mistake its opposite. So the
guided arm asks for what training called good, which is how the method is meant to be used. For a
refused safe request, the good answer is the one in its data, and the bad one is the refusal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from setbacks.methods import (
    CHOICE_OF_ANALYSES,
    LEARNING_OF_ANALYSES,
    Method,
    example,
    mistake_sources,
    mistakes,
    mixed,
    refused,
    safely_answered,
    share,
)
from setbacks.prompts import ask
from setbacks.recipe import Recipe, Sources
from setbacks.records import Analysis, Example, same_prompt


class ChainOfHindsight(Method):
    """Safe answers and mistakes to the same instructions, under different prompts."""

    name = "chain_of_hindsight"
    uses_mistakes = True
    reads = (
        "words.*.guided",
        "words.*.hindsight",
        "words.*.hindsight_refusal",
        "words.*.policy.guided",
        "policy",
    )

    def unused(self, recipe: Recipe) -> Sequence[str]:
        """Return the keys of `train` that change nothing in this method."""
        return (*CHOICE_OF_ANALYSES, *LEARNING_OF_ANALYSES)

    def examples(self, recipe: Recipe, analyses: Sequence[Analysis]) -> list[Example]:
        """Return every safe answer, at most as many mistakes, and helpful answers."""
        good, bad = [], []
        by_instruction = mistakes(analyses)
        for row in safely_answered(recipe, self.name):
            words = recipe.words_for(row.language)
            prompt = ask(words["guided"], row.text)
            good.append(example("hindsight_good", prompt, row.answer or "", [row.id]))
            if mistake := by_instruction.get(same_prompt(row.text)):
                prompt = ask(words["hindsight"], row.text)
                parents = [mistake.response_id]
                bad.append(example("hindsight_bad", prompt, mistake.response, parents))
        own = [*good, *share(bad, len(good))]
        for row, refusal in refused(recipe, analyses, len(bad)):
            words = recipe.words_for(row.language)
            for kind, key, answer, parent in (
                ("hindsight_good", "guided", row.answer or "", row.id),
                ("hindsight_bad", "hindsight_refusal", refusal.response, refusal.response_id),
            ):
                own.append(example(kind, ask(words[key], row.text), answer, [parent]))
        return mixed(recipe, own)

    def sources(self, recipe: Recipe) -> Mapping[str, Sources]:
        """Return the sources of the examples of each kind."""
        return {
            "hindsight_good": [*recipe.train.safe, *recipe.induce.refusals],
            "hindsight_bad": [*mistake_sources(recipe), *recipe.induce.refusals],
            "helpful": recipe.train.helpful,
        }
