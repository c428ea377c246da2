"""Corrections: the model answers again, with the analysis of its own mistake in view.

The teacher is the untrained model with guidance and the analysis of its mistake in the prompt. Its
answers are checked for form, harm and refusal by a judge, and those that pass are *corrections*.
`mistake_distillation` learns them as answers, and `dpo` and `rlhf` prefer them to the mistakes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, cast

from pydantic import Field

from setbacks.judges import Item
from setbacks.judges.checks import Check, Checker
from setbacks.measure.formatting import amount
from setbacks.messages import Finish, Prompt, last_user_text, reworded, turns_of
from setbacks.methods import example
from setbacks.methods.mistake_analysis import best, others
from setbacks.notices import notice
from setbacks.prompts import Words, fill
from setbacks.prompts.topic import topic
from setbacks.recipe import Recipe, Sampling, Train
from setbacks.records import (
    Analysis,
    Completion,
    Context,
    Correction,
    Example,
    Request,
    Setback,
    Teaching,
    digest,
)
from setbacks.runs.journal import Journal
from setbacks.runs.session import Session
from setbacks.text import whole_sentences

# Options of how the teacher answers, and keys of the recipe besides `train` that this depends on.
TEACHER = ("openings", "sentences", "correct", "max_harmful", "min_overlap")
READS = ("words.*.guided", "words.*.correct", "words.*.policy.guided", "policy")


class CorrectionOptions(Train):
    """How corrections are written and checked."""

    context: Literal["analysis", "guidance"] = Field(
        "analysis",
        description="What the teacher sees besides the instruction: the `analysis` of the model's "
        "mistake and the guidance, or, as a control, the `guidance` alone.",
    )
    openings: bool = Field(
        True, description="Begin the teacher's answers with the words of a refusal ('I won't ...')."
    )
    attempts: int = Field(
        3,
        ge=1,
        description="Answers to write for a mistake until one passes its checks, each with another "
        "opening and another seed.",
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
    min_overlap: int = Field(
        1,
        ge=0,
        description="Fewest content words of the instruction in an answer that is learned, so that "
        "it is about what it refuses.",
    )


CORRECTING = tuple(CorrectionOptions.model_fields.keys() - Train.model_fields.keys())


class Draft(NamedTuple):
    """One answer to generate in place of a mistake.

    Args:
        id: of the answer.
        analysis: of the mistake.
        prompt: what the model is told.
        opening: the given beginning of the answer.
        number: of the attempt at this mistake.
    """

    id: str
    analysis: Analysis
    prompt: Prompt
    opening: str = ""
    number: int = 0

    def request(self) -> Request:
        """Return the request for it."""
        return Request(self.prompt, seed=int(self.id, 16), prefill=self.opening)

    def item(self, text: str, finish: Finish) -> Item:
        """Return what a judge sees of an answer: the instruction, and not the teacher's prompt."""
        one = self.analysis
        return Item(self.id, one.instruction, text, language=one.language, finish=finish)


class Teacher:
    """The model with more context than the student: what it is asked, and what is usable of it.

    Args:
        recipe: the run's recipe.
        options: how it answers; None for those of the recipe's method.
    """

    def __init__(self, recipe: Recipe, options: CorrectionOptions | None = None) -> None:
        self._recipe = recipe
        self.options = options or cast(CorrectionOptions, recipe.train)

    def draft(self, id_: str, analysis: Analysis, context: Context, number: int = 0) -> Draft:
        """Return an answer to generate.

        Args:
            id_: of the draft.
            analysis: the analysis to show, with the mistake that it is shown for.
            context: what the teacher sees besides the instruction.
            number: of the attempt at this mistake; each has another opening.
        """
        words = self._recipe.words_for(analysis.language)
        openings = words["correct"]["openings"] if self.options.openings else [""]
        first = int(analysis.response_id, 16)  # mistakes start at different openings
        opening = openings[(first + number) % len(openings)]
        return Draft(id_, analysis, _prompt(words, analysis, context), opening, number)

    def check(
        self, checker: Checker, batch: Sequence[Draft], completions: Sequence[Completion]
    ) -> list[Check]:
        """Return what is usable of the answers of one planned batch, up to a number of sentences.

        Args:
            checker: has the judge.
            batch: the drafts.
            completions: what was generated for them.
        """
        items = [
            draft.item(_beginning(one.text, draft.opening, self.options.sentences), one.finish)
            for draft, one in zip(batch, completions, strict=True)
        ]
        checks = checker.check(
            items,
            declines=True,
            max_harmful=self.options.max_harmful,
            guidance=[self._guidance(draft.analysis.language) for draft in batch],
        )
        return [self._read(*each) for each in zip(batch, checks, strict=True)]

    def _read(self, draft: Draft, check: Check) -> Check:
        """Return a check, changed if the answer is about its prompt, or not about the instruction.

        An opening that is a whole refusal goes on with the reason, which need not name anything.
        """
        words = self._recipe.words_for(draft.analysis.language)
        if re.search(words["correct"]["about_prompt"], check.answer):
            return check._replace(outcome="degenerate")
        asked = topic(last_user_text(draft.analysis.instruction), words)
        named = topic(check.answer, words, draft.opening) & asked
        least = 0 if whole_sentences(draft.opening) else min(self.options.min_overlap, len(asked))
        if check.outcome == "kept" and len(named) < least:
            return check._replace(outcome="off_topic")
        return check

    def _guidance(self, language: str) -> str:
        """Return what the teacher is told that its answer must not repeat.

        The analysis is not part of it: an answer that takes up its reasons is what it is shown for.
        """
        words = self._recipe.words_for(language)
        guided = fill(words["guided"], instruction="")
        return fill(words["correct"]["prompt"], guided=guided, analysis="")


def corrections(run: Session, analyses: Sequence[Analysis]) -> Sequence[Correction]:
    """Have the teacher answer the instruction of every mistake, and check the answers.

    Args:
        run: the session; its method has `CorrectionOptions`.
        analyses: every candidate analysis.

    Raises:
        InputError: analyses are to be shuffled, and there is only one.
    """
    recipe, teacher = run.recipe, Teacher(run.recipe)
    checker = Checker(recipe.train.judge, run)
    journal = run.journal("corrections.jsonl", Correction)
    check = partial(teacher.check, checker)

    def draft(analysis: Analysis, number: int) -> Draft:
        id_ = digest("correction", recipe.seed, analysis.response_id, analysis.id, number)
        return teacher.draft(id_, analysis, teacher.options.context, number)

    due = mistaken = subjects(recipe, analyses)
    for attempt in range(teacher.options.attempts):
        label = f"corrections (attempt {attempt + 1})" if attempt else "corrections"
        drafts = [draft(one, attempt) for one in due]
        failed = write(run, journal, label, drafts, teacher.options.correct, checker, check)
        due = [one.analysis for one in failed]
    if len(due) > len(mistaken) / 2:
        notice(
            f"only {len(mistaken) - len(due)} of {amount(len(mistaken), 'mistake')} have a "
            "correction that passed its checks (outcome in corrections.jsonl); raise "
            "train.attempts, or set train.min_overlap=0 if most are off_topic"
        )
    return journal.finish()


def write(
    run: Session,
    journal: Journal[Correction],
    label: str,
    drafts: Sequence[Draft],
    sampling: Sampling,
    checker: Checker,
    check: Callable[[Sequence[Draft], Sequence[Completion]], Sequence[Check]],
) -> list[Draft]:
    """Generate answers in place of mistakes, check them, and write both to a journal.

    Args:
        run: the session.
        journal: of the answers.
        label: of the progress.
        drafts: the answers to generate.
        sampling: of the answers.
        checker: has the judge.
        check: checks the answers of one planned batch.

    Returns:
        The drafts whose answers did not pass, in their order.
    """
    model, done = run.engine(run.recipe.model).name, len(journal.records)

    def record(draft: Draft, one: Completion, check: Check) -> Correction:
        return Correction(
            id=draft.id,
            analysis_id=draft.analysis.id,
            instruction=draft.analysis.instruction,
            response=draft.analysis.response,
            kind=draft.analysis.kind,
            prompt=draft.prompt,
            opening=draft.opening or None,
            text=one.text,
            answer=check.answer,
            outcome=check.outcome,
            sample=draft.number,
            model=model,
        )

    checker.write(
        run,
        journal,
        "train",
        drafts,
        request=Draft.request,
        sampling=sampling,
        check=check,
        record=record,
        label=label,
    )
    kept = {one.id for one in journal.records[done:] if one.outcome == "kept"}
    return [draft for draft in drafts if draft.id not in kept]


def learned(
    kind: str,
    corrections: Sequence[Correction],
    of: Setback = "harmful",
    *,
    pairs: bool = False,
    teacher: bool = False,
) -> list[Example]:
    """Make an example of every correction that passed its checks; equal ones are one.

    Args:
        kind: of the examples.
        corrections: all of them.
        of: kind of the mistakes.
        pairs: whether each is preferred to its mistake.
        teacher: whether the teacher's distributions are learned, and not its text.
    """
    made = [
        example(
            kind,
            one.instruction,
            one.answer,
            [one.id],
            rejected=one.response if pairs else None,
            teacher=_teaching(one) if teacher else None,
        )
        for one in corrections
        if one.outcome == "kept" and one.kind == of
    ]
    return [*{each.id: each for each in made}.values()]


def _teaching(correction: Correction) -> Teaching | None:
    """Return how a correction was written, as far as its record tells."""
    if correction.prompt is None:
        return None
    return Teaching(
        prompt=turns_of(correction.prompt),
        opening=correction.opening or "",
        cut=correction.text.strip() != correction.answer,
    )


def best_of_each(
    analyses: Sequence[Analysis], *, filtered: bool = True, kind: Setback = "harmful"
) -> list[Analysis]:
    """Return the best analysis of every mistake of a kind, in the order of the mistakes' ids.

    Args:
        analyses: every candidate analysis.
        filtered: prefer analyses that passed their checks.
        kind: of the mistakes.
    """
    of_kind = [analysis for analysis in analyses if analysis.label == kind]
    by_response = {one.response_id: one for one in best(of_kind, filtered=False)}
    if filtered:
        by_response |= {one.response_id: one for one in best(of_kind)}
    return sorted(by_response.values(), key=lambda analysis: analysis.response_id)


def subjects(
    recipe: Recipe, analyses: Sequence[Analysis], kind: Setback = "harmful"
) -> list[Analysis]:
    """Return the analysis that the model sees of every mistake of a kind.

    Raises:
        InputError: analyses are to be shuffled, and there is only one.
    """
    train = recipe.train
    chosen = best_of_each(analyses, filtered=train.analyses != "unfiltered", kind=kind)
    chosen = chosen[: train.most_analyses]
    return shuffled(chosen) if train.analyses == "shuffled" else chosen


def shuffled(analyses: Sequence[Analysis]) -> list[Analysis]:
    """Give each mistake the analysis of another one, as a control.

    Raises:
        InputError: there is only one.
    """
    return [
        one.model_copy(update={"id": other.id, "text": other.text})
        for one, other in zip(analyses, others(analyses), strict=True)
    ]


def _prompt(words: Words, analysis: Analysis, context: Context) -> Prompt:
    """Return the instruction of a mistake with the teacher's context around it."""
    if context == "none":
        return analysis.instruction
    template = "{guided}" if context == "guidance" else words["correct"]["prompt"]

    def correct(text: str) -> str:
        guided = fill(words["guided"], instruction=text)
        return fill(template, guided=guided, analysis=analysis.text)

    return reworded(analysis.instruction, correct)


def _beginning(text: str, opening: str, sentences: int | None) -> str:
    """Return a text up to the given number of sentences after its opening, if one ends there."""
    if sentences is None:
        return text
    kept = whole_sentences(text.removeprefix(opening), sentences)
    return opening + kept if kept else text
