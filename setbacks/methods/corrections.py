"""Corrections: the model answers again, with the analysis of its own mistake in view.

The teacher is the untrained model with guidance and the analysis of its mistake in the prompt. Its
answers are checked for form, harm and refusal by a judge, and those that pass are *corrections*.
`mistake_distillation` learns them as answers, and `dpo` and `rlhf` prefer them to the mistakes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

from pydantic import Field

from setbacks.judges import Item
from setbacks.judges.checks import Checker
from setbacks.messages import Prompt, reworded, transcript
from setbacks.methods.mistake_analysis import best
from setbacks.prompts import Words, fill
from setbacks.recipe import Recipe, Sampling, Train
from setbacks.records import Analysis, Completion, Correction, Request, digest
from setbacks.runs.session import Session, planned
from setbacks.text import whole_sentences

JOURNAL = "corrections.jsonl"
# Keys of the recipe besides `train` that corrections depend on.
READS = ("words.*.guided", "words.*.correct", "words.*.policy.guided", "policy")

Context = Literal["analysis", "guidance"]


class CorrectionOptions(Train):
    """How corrections are written and checked."""

    context: Context = Field(
        "analysis",
        description="What the teacher sees besides the instruction: the `analysis` of the model's "
        "mistake and the guidance, or, as a control, the `guidance` alone.",
    )
    openings: bool = Field(
        True, description="Begin the teacher's answers with the words of a refusal ('I won't ...')."
    )
    samples: int = Field(
        1, ge=1, description="Answers per mistake, each with another opening and another seed."
    )
    sentences: int | None = Field(
        1,
        ge=1,
        description="Whole sentences of an answer to learn, the one that the opening begins first; "
        "null: all.",
    )
    correct: Sampling = Field(
        Sampling(max_new_tokens=40), description="How the teacher's answers are sampled."
    )
    max_harmful: float = Field(
        0.3, ge=0, le=1, description="Highest probability of harm of an answer that is learned."
    )


class Draft(NamedTuple):
    """One answer to generate by the teacher."""

    id: str
    analysis: Analysis
    prompt: Prompt
    opening: str
    sample: int


def corrections(run: Session, analyses: Sequence[Analysis]) -> Sequence[Correction]:
    """Have the teacher answer the instruction of every mistake, and check the answers.

    Args:
        run: the session; its method has `CorrectionOptions`.
        analyses: every candidate analysis.
    """
    recipe, options = run.recipe, _options(run.recipe)
    engine = run.engine(recipe.model)
    drafts = [draft for one in subjects(recipe, analyses) for draft in _drafts(recipe, one)]
    checker = Checker(options.judge, run)

    def request(draft: Draft) -> Request:
        return Request(draft.prompt, seed=int(draft.id, 16), prefill=draft.opening)

    def records(batch: Sequence[Draft], completions: Sequence[Completion]) -> list[Correction]:
        items = [
            Item(
                draft.id,
                draft.analysis.instruction,
                _beginning(one.text, draft.opening, options.sentences),
                language=draft.analysis.language,
                finish=one.finish,
            )
            for draft, one in zip(batch, completions, strict=True)
        ]
        checks = checker.check(
            items,
            declines=True,
            max_harmful=options.max_harmful,
            guidance=[transcript(draft.prompt) for draft in batch],
        )
        return [
            Correction(
                id=draft.id,
                analysis_id=draft.analysis.id,
                instruction=draft.analysis.instruction,
                response=draft.analysis.response,
                text=one.text,
                answer=check.answer,
                outcome="degenerate"
                if about_prompt(recipe.words_for(draft.analysis.language), check.answer)
                else check.outcome,
                sample=draft.sample,
                model=engine.name,
            )
            for draft, one, check in zip(batch, completions, checks, strict=True)
        ]

    journal = run.journal(JOURNAL, Correction)
    work = run.work(journal, "train", planned(engine, drafts, request), "corrections")
    for batch, completions in work.generated(engine, request, options.correct):
        work.commit(batch, records(batch, completions), completions)
    return journal.finish()


def subjects(recipe: Recipe, analyses: Sequence[Analysis]) -> list[Analysis]:
    """Return the analysis that the teacher sees of every mistake, by the mistake's id.

    It is the best one that passed its checks, or else the best one.
    """
    harmful = [analysis for analysis in analyses if analysis.harmful]
    by_response = {one.response_id: one for one in best(harmful, filtered=False)}
    if recipe.train.analyses != "unfiltered":
        by_response |= {one.response_id: one for one in best(harmful)}
    chosen = sorted(by_response.values(), key=lambda analysis: analysis.response_id)
    chosen = chosen[: recipe.train.most_analyses]
    return shuffled(chosen) if recipe.train.analyses == "shuffled" else chosen


def shuffled(analyses: Sequence[Analysis]) -> list[Analysis]:
    """Give each mistake the analysis of another one, as a control."""
    others = [*analyses[1:], *analyses[:1]]
    return [
        one.model_copy(update={"id": other.id, "text": other.text})
        for one, other in zip(analyses, others, strict=True)
    ]


def teacher_prompt(words: Words, analysis: Analysis, context: Context) -> Prompt:
    """Return the instruction of a mistake with the teacher's context around it.

    Args:
        words: of the instruction's language.
        analysis: of the mistake.
        context: what the teacher sees.
    """
    template = words["correct"]["prompt"] if context == "analysis" else "{guided}"

    def correct(text: str) -> str:
        guided = fill(words["guided"], instruction=text)
        return fill(template, guided=guided, analysis=analysis.text)

    return reworded(analysis.instruction, correct)


def about_prompt(words: Words, answer: str) -> bool:
    """Return whether an answer is about the teacher's prompt and not the instruction."""
    return re.search(words["correct"]["about_prompt"], answer) is not None


def _options(recipe: Recipe) -> CorrectionOptions:
    return cast(CorrectionOptions, recipe.train)


def _beginning(text: str, opening: str, sentences: int | None) -> str:
    """Return a text up to the given number of sentences after its opening, if one ends there."""
    if sentences is None:
        return text
    kept = whole_sentences(text.removeprefix(opening), sentences)
    return opening + kept if kept else text


def _drafts(recipe: Recipe, analysis: Analysis) -> list[Draft]:
    """Return the answers to generate for one analysis."""
    words, options = recipe.words_for(analysis.language), _options(recipe)
    prompt = teacher_prompt(words, analysis, options.context)
    first = int(analysis.response_id, 16)  # mistakes start at different openings
    openings = words["correct"]["openings"] if options.openings else [""]
    return [
        Draft(
            digest("correction", recipe.seed, analysis.response_id, analysis.id, number),
            analysis,
            prompt,
            openings[(first + number) % len(openings)],
            number,
        )
        for number in range(options.samples)
    ]
