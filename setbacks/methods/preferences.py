"""Preference pairs for DPO and RLHF: a chosen answer and a rejected one.

They come from a preference data set, or pair each safe answer with the mistake for the same
instruction, or the model's own correction of a mistake with that mistake: then both sides are its
own words. The helpful mix becomes pairs, too: an answer is preferred to a refusal, so that refusing
everything does not pay. The refusal of a safe request is rejected in favor of the answer in its
data, or of the model's own answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

from pydantic import Field

from setbacks.data.source import show
from setbacks.data.sources import load_having
from setbacks.errors import InputError
from setbacks.messages import transcript
from setbacks.methods import (
    CHOICE_OF_ANALYSES,
    LEARNING_OF_ANALYSES,
    Method,
    example,
    helpful_share,
    mistake_sources,
    mistakes,
    refusal_sources,
    refused,
    safe,
    share_of_refusals,
)
from setbacks.methods.corrections import CORRECTING, CorrectionOptions, corrections, learned
from setbacks.methods.refused_requests import answers_to_refused
from setbacks.recipe import Recipe, Sources
from setbacks.records import Analysis, Correction, Example, same_prompt
from setbacks.runs.session import Session


class PreferenceOptions(CorrectionOptions):
    """Options of methods that learn from preference pairs."""

    pairs: Sources = Field(
        [],
        description="Preference pairs: data sets with `text`, the chosen `answer` and the rejected "
        "`response`; [] pairs each safe answer with an induced mistake.",
    )
    pairs_from: Literal["data", "corrections"] = Field(
        "data",
        description="Source of the pairs: `data` (`pairs`, or safe answers and mistakes) or the "
        "model's own `corrections`, each preferred to its mistake.",
    )


class PreferenceMethod(Method):
    """Learns to prefer safe answers to mistakes, and helpful answers to refusals."""

    Options: ClassVar[type[PreferenceOptions]] = PreferenceOptions
    uses_mistakes = True
    one_process = True

    def unused(self, recipe: Recipe) -> Sequence[str]:
        """Return the keys of `train` that change nothing in this method."""
        corrected = ("safe",) if self.has_teacher(recipe) else (*CHOICE_OF_ANALYSES, *CORRECTING)
        return (*corrected, *LEARNING_OF_ANALYSES)

    def has_teacher(self, recipe: Recipe) -> bool:
        """Return whether the pairs come from corrections."""
        return _options(recipe).pairs_from == "corrections"

    def prepare(
        self, run: Session, analyses: Sequence[Analysis]
    ) -> Sequence[Analysis] | Sequence[Correction]:
        """Have the model correct its mistakes, if the pairs come from corrections.

        Raises:
            InputError: no correction passed its checks.
        """
        if not self.has_teacher(run.recipe):
            return analyses
        written = [*corrections(run, analyses), *answers_to_refused(run, analyses)]
        if not any(one.outcome == "kept" for one in written):
            raise InputError(
                f"{run.path}: none of {len(written)} corrections passed the checks (see "
                "corrections.jsonl), so there are no pairs; raise train.attempts, or set "
                "train.pairs_from=data"
            )
        return written

    def examples(self, recipe: Recipe, material: Sequence[Any]) -> list[Example]:
        """Return the preference pairs."""
        if self.has_teacher(recipe):
            return own_pairs(recipe, material)
        return pairs(recipe, material, self.name)

    def sources(self, recipe: Recipe) -> Mapping[str, Sources]:
        """Return the sources of the examples of each kind."""
        if self.has_teacher(recipe):
            mistaken = mistake_sources(recipe)
            return {
                "pair": mistaken,
                "refusal_pair": refusal_sources(recipe),
                "helpful_pair": [*recipe.train.helpful, *mistaken],
            }
        refusals = recipe.train.safe
        return {
            "pair": _options(recipe).pairs or [*refusals, *mistake_sources(recipe)],
            "refusal_pair": recipe.induce.refusals,
            "helpful_pair": [*recipe.train.helpful, *refusals],
        }


def own_pairs(recipe: Recipe, corrections: Sequence[Correction]) -> list[Example]:
    """Return pairs whose sides the model wrote, the helpful mix included.

    Args:
        recipe: names the helpful data.
        corrections: all of them; each that passed its checks is preferred to its mistake, and a
            helpful answer is preferred to it as a refusal.

    Raises:
        InputError: `train.pairs` names other pairs.
    """
    if _options(recipe).pairs:
        raise InputError(
            "train.pairs names data, but train.pairs_from is corrections; remove one of them"
        )
    own = learned("pair", corrections, pairs=True)
    answered = learned("refusal_pair", corrections, "refusal", pairs=True)
    put_right = share_of_refusals(recipe, answered, len(own))
    return [*own, *put_right, *_helpful(recipe, len(own), own)]


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
    put_right = [
        example(
            "refusal_pair",
            row.text,
            row.answer or "",
            [row.id, refusal.response_id],
            rejected=refusal.response,
        )
        for row, refusal in refused(recipe, analyses, len(own))
    ]
    return [*own, *put_right, *_helpful(recipe, len(own), refusals)]


def _helpful(recipe: Recipe, number: int, refusals: Sequence[Example]) -> list[Example]:
    """Return helpful answers in proportion to a number of pairs, each preferred to a refusal."""
    return [
        _pair("helpful_pair", answer, refusal.completion, [*answer.parents, *refusal.parents])
        for index, answer in enumerate(helpful_share(recipe, number))
        for refusal in [refusals[index % len(refusals)]]
    ]


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
                    f"{show(transcript(row.text))} are the same; leave such pairs out"
                )
            pairs.append(example("pair", row.text, row.answer, [row.id], rejected=row.response))
    return pairs
