"""Preference pairs for DPO and RLHF: a chosen answer and a rejected one.

They come from a preference data set, or pair each safe answer with the mistake for the same
instruction. The helpful mix becomes pairs, too: an answer is preferred to a refusal, so that
refusing everything does not pay. The refusal of a safe request is rejected in favor of the answer
in its data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

from pydantic import Field

from setbacks.data.sources import load_having
from setbacks.errors import InputError
from setbacks.methods import (
    Method,
    example,
    helpful_answers,
    mistake_sources,
    mistakes,
    refused,
    safe,
    share,
)
from setbacks.recipe import Recipe, Sources, Train
from setbacks.records import Analysis, Example, same_prompt


class PreferenceOptions(Train):
    """Options of methods that learn from preference pairs."""

    pairs: Sources = Field(
        [],
        description="Preference pairs: data sets with `text`, the chosen `answer` and the rejected "
        "`response`; [] pairs each safe answer with an induced mistake.",
    )


class PreferenceMethod(Method):
    """Learns to prefer safe answers to mistakes, and helpful answers to refusals."""

    Options: ClassVar[type[PreferenceOptions]] = PreferenceOptions
    uses_mistakes = True
    one_process = True

    def examples(self, recipe: Recipe, analyses: Sequence[Analysis]) -> list[Example]:
        """Return the preference pairs."""
        return pairs(recipe, analyses, self.name)

    def sources(self, recipe: Recipe) -> Mapping[str, Sources]:
        """Return the sources of the examples of each kind."""
        refusals = recipe.train.safe
        return {
            "pair": _options(recipe).pairs or [*refusals, *mistake_sources(recipe)],
            "refusal_pair": recipe.induce.refusals,
            "helpful_pair": [*recipe.train.helpful, *refusals],
        }


def pairs(recipe: Recipe, analyses: Sequence[Analysis], method: str) -> list[Example]:
    """Return the preference pairs of a recipe, the helpful mix included.

    Args:
        recipe: names the data of the pairs, or the safe answers.
        analyses: analyses of the mistakes to reject, if no data is named.
        method: name of the method, for error messages.

    Raises:
        InputError: a pair lacks an answer or has two equal ones, or there are no safe answers.
    """
    refusals = safe(recipe, method)
    if _options(recipe).pairs:
        own = _given(recipe)
    else:
        by_instruction = mistakes(analyses)
        own = [
            _pair("pair", answer, rejected.response, [*answer.parents, rejected.response_id])
            for answer in refusals
            if (rejected := by_instruction.get(same_prompt(answer.instruction)))
            and rejected.response.strip() != answer.completion.strip()
        ]
    own += [
        example(
            "refusal_pair",
            row.text,
            row.answer or "",
            [row.id, refusal.response_id],
            rejected=refusal.response,
        )
        for row, refusal in refused(recipe, analyses, len(own))
    ]
    mix = [
        _pair("helpful_pair", answer, refusal.completion, [*answer.parents, *refusal.parents])
        for index, answer in enumerate(
            share(helpful_answers(recipe), recipe.train.mix.helpful * len(own))
        )
        for refusal in [refusals[index % len(refusals)]]
    ]
    return [*own, *mix]


def _options(recipe: Recipe) -> PreferenceOptions:
    return cast(PreferenceOptions, recipe.train)


def _pair(kind: str, chosen: Example, rejected: str, parents: list[str]) -> Example:
    return example(kind, chosen.instruction, chosen.completion, parents, rejected=rejected)


def _given(recipe: Recipe) -> list[Example]:
    pairs = []
    for source in _options(recipe).pairs:
        for row in load_having(source, "a preference pair", "answer", "response"):
            assert row.answer is not None and row.response is not None
            if row.answer.strip() == row.response.strip():
                raise InputError(
                    f"{row.source}: the chosen and the rejected answer to "
                    f'"{row.text[:60]}" are the same; leave such pairs out'
                )
            pairs.append(example("pair", row.text, row.answer, [row.id], rejected=row.response))
    return pairs
