"""Answers to refused safe requests, by the model itself.

The refusal was the mistake, so what is learned is an answer. Without guidance, the model mostly
answers by itself. Only where that answer fails its checks, the model answers again with its refusal
and the analysis of it in view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from setbacks.judges.checks import Check, Checker
from setbacks.messages import Prompt
from setbacks.methods.corrections import CorrectionOptions, Draft, subjects, write
from setbacks.prompts import fill
from setbacks.recipe import Recipe
from setbacks.records import Analysis, Completion, Correction, digest
from setbacks.runs.session import Session

READS = ("words.*.revise_refusal",)


def answers_to_refused(run: Session, analyses: Sequence[Analysis]) -> Sequence[Correction]:
    """Have the model answer every refused request, and check the answers.

    Args:
        run: the session; its method has `CorrectionOptions`.
        analyses: every candidate analysis.

    Raises:
        InputError: analyses are to be shuffled, and there is only one of a refusal.
    """
    recipe, options = run.recipe, cast(CorrectionOptions, run.recipe.train)
    refusals = subjects(recipe, analyses, "refusal")
    if not refusals:
        return []
    journal, checker = run.journal("answered.jsonl", Correction), Checker(recipe.train.judge, run)

    def check(batch: Sequence[Draft], completions: Sequence[Completion]) -> list[Check]:
        items = [
            draft.item(one.text, one.finish) for draft, one in zip(batch, completions, strict=True)
        ]
        # An answer must not repeat the refusal or its analysis, which the bare request is without.
        guidance = [
            _revision(recipe, draft.analysis, "") if draft.number else "" for draft in batch
        ]
        return checker.check(items, guidance=guidance)

    def answer(drafts: Sequence[Draft]) -> list[Draft]:
        sampling = recipe.train.helpful_sampling
        return write(run, journal, "refused requests", drafts, sampling, checker, check)

    failed = answer([_plain(recipe, one) for one in refusals])
    if options.context == "analysis":
        answer([_with_analysis(recipe, one.analysis) for one in failed])
    return journal.finish()


def _plain(recipe: Recipe, analysis: Analysis) -> Draft:
    """Return the answer to generate from the request alone."""
    id_ = digest("answered", recipe.seed, analysis.response_id)
    return Draft(id_, analysis, analysis.instruction)


def _with_analysis(recipe: Recipe, analysis: Analysis) -> Draft:
    """Return the answer to generate with the refusal and the analysis in view."""
    id_ = digest("answered", recipe.seed, analysis.response_id, analysis.id)
    return Draft(id_, analysis, _revision(recipe, analysis, analysis.instruction), number=1)


def _revision(recipe: Recipe, analysis: Analysis, instruction: Prompt) -> str:
    """Return a request with its refusal and the analysis of that."""
    return fill(
        recipe.words_for(analysis.language)["revise_refusal"],
        instruction=instruction,
        response=analysis.response,
        critique=analysis.text,
    )
