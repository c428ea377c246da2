"""Answers to refused safe requests, by the model itself.

The refusal was the mistake, so what is learned is an answer. Without guidance, the model mostly
answers by itself. Only where that answer fails its checks, the model answers again with its refusal
and the analysis of it in view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from setbacks.judges import Item
from setbacks.judges.checks import Checker
from setbacks.messages import Prompt, transcript
from setbacks.methods.corrections import CorrectionOptions, best_of_each
from setbacks.prompts import fill
from setbacks.recipe import Recipe
from setbacks.records import Analysis, Completion, Correction, Request, digest
from setbacks.runs.journal import Journal
from setbacks.runs.session import Session, planned

READS = ("words.*.revise_refusal",)


class Draft(NamedTuple):
    """One answer to generate.

    Args:
        id: of the answer.
        analysis: of the refusal.
        prompt: what the model is told.
        context: the part of the prompt that an answer must not repeat.
        sample: 0 for the request alone, 1 with the refusal and the analysis.
    """

    id: str
    analysis: Analysis
    prompt: Prompt
    context: str
    sample: int

    def request(self) -> Request:
        """Return the request for it."""
        return Request(self.prompt, seed=int(self.id, 16))


def answers_to_refused(run: Session, analyses: Sequence[Analysis]) -> Sequence[Correction]:
    """Have the model answer every refused request, and check the answers.

    Args:
        run: the session; its method has `CorrectionOptions`.
        analyses: every candidate analysis.
    """
    recipe, options = run.recipe, cast(CorrectionOptions, run.recipe.train)
    filtered = options.analyses != "unfiltered"
    refusals = best_of_each(analyses, filtered=filtered, kind="refusal")
    if not refusals:
        return []
    journal = run.journal("answered.jsonl", Correction)
    fit = _write(run, journal, [_plain(recipe, one) for one in refusals])
    if options.context == "analysis":
        _write(run, journal, [_told(recipe, one) for one in refusals if one.id not in fit])
    return journal.finish()


def _write(run: Session, journal: Journal[Correction], drafts: Sequence[Draft]) -> set[str]:
    """Generate answers and check them; return the ids of the analyses with one that passed."""
    recipe = run.recipe
    engine, checker = run.engine(recipe.model), Checker(recipe.train.judge, run)

    def records(batch: Sequence[Draft], completions: Sequence[Completion]) -> list[Correction]:
        items = [
            Item(
                draft.id,
                draft.analysis.instruction,
                one.text,
                language=draft.analysis.language,
                finish=one.finish,
            )
            for draft, one in zip(batch, completions, strict=True)
        ]
        checks = checker.check(items, guidance=[draft.context for draft in batch])
        return [
            Correction(
                id=draft.id,
                analysis_id=draft.analysis.id,
                instruction=draft.analysis.instruction,
                response=draft.analysis.response,
                kind="refusal",
                text=one.text,
                answer=check.answer,
                outcome=check.outcome,
                sample=draft.sample,
                model=engine.name,
            )
            for draft, one, check in zip(batch, completions, checks, strict=True)
        ]

    start = len(journal)
    checker.check_version(run, journal, len(drafts), "train")
    work = run.work(journal, "train", planned(engine, drafts, Draft.request), "refused requests")
    sampling = recipe.train.helpful_sampling
    for batch, completions in work.generated(engine, Draft.request, sampling, recipe.current):
        work.commit(batch, records(batch, completions), completions)
    written = journal.records[start : start + len(drafts)]
    return {one.analysis_id for one in written if one.outcome == "kept"}


def _plain(recipe: Recipe, analysis: Analysis) -> Draft:
    """Return the answer to generate from the request alone."""
    id_ = digest("answered", recipe.seed, analysis.response_id)
    return Draft(id_, analysis, analysis.instruction, "", 0)


def _told(recipe: Recipe, analysis: Analysis) -> Draft:
    """Return the answer to generate with the refusal and the analysis in view."""
    prompt = fill(
        recipe.words_for(analysis.language)["revise_refusal"],
        instruction=analysis.instruction,
        response=analysis.response,
        critique=analysis.text,
    )
    id_ = digest("answered", recipe.seed, analysis.response_id, analysis.id)
    return Draft(id_, analysis, prompt, transcript(prompt), 1)
