"""Mistake distillation: the model, given the analysis of its mistake, teaches itself without it.

Our method. The teacher is the untrained model with guidance and the analysis of its own mistake in
the prompt; the student learns the teacher's answer from the instruction alone. So the analysis acts
on p(Y | X) directly, while mistake analysis teaches p(T | Y, X) and relies on guidance to use it.
A teacher with privileged context is the idea of self-distillation fine-tuning (SDFT, arXiv
2601.19897) and of on-policy self-alignment (OPSA, arXiv 2605.15239). This is its offline form: the
teacher writes first, a judge checks its texts for form and harm, and the student learns those that
pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, cast

from pydantic import Field

from setbacks.judges import Item
from setbacks.judges.checks import Checker
from setbacks.messages import Prompt, reworded, transcript
from setbacks.methods import Method, answers, example, mistake_sources, mixed
from setbacks.methods.mistake_analysis import best
from setbacks.prompts import fill
from setbacks.recipe import Recipe, Sampling, Source, Sources, Train
from setbacks.records import Analysis, Completion, Correction, Example, Request, digest
from setbacks.runs.session import Session, planned
from setbacks.text import whole_sentences


class Options(Train):
    """Step 3, fine-tuning on the model's own corrected answers."""

    helpful: Sources = Field(
        [
            Source(source="builtin:helpful", split="train"),
            Source(source="builtin:safe", split="train"),
        ],
        description=str(Train.model_fields["helpful"].description),
    )
    helpful_from: Literal["data", "model"] = Field(
        "model", description=str(Train.model_fields["helpful_from"].description)
    )
    epochs: int = Field(1, ge=1, description=str(Train.model_fields["epochs"].description))
    context: Literal["analysis", "guidance"] = Field(
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


class MistakeDistillation(Method):
    """Supervised fine-tuning on checked answers that the model wrote, given its analysis."""

    name = "mistake_distillation"
    Options = Options
    uses_mistakes = True
    checks_texts = True
    outputs = ("corrections.jsonl",)
    reads = ("words.*.guided", "words.*.correct", "words.*.policy.guided", "policy")

    def prepare(self, run: Session, analyses: Sequence[Analysis]) -> Sequence[Correction]:
        """Have the teacher answer the instruction of every mistake; check the answers."""
        recipe, options = run.recipe, _options(run.recipe)
        engine = run.engine(recipe.model)
        drafts = [draft for one in _subjects(recipe, analyses) for draft in _drafts(recipe, one)]
        checker = Checker(options.judge, run)

        def about_prompt(draft: Draft, answer: str) -> bool:
            words = recipe.words_for(draft.analysis.language)
            return re.search(words["correct"]["about_prompt"], answer) is not None

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
                    outcome="degenerate" if about_prompt(draft, check.answer) else check.outcome,
                    sample=draft.sample,
                    model=engine.name,
                )
                for draft, one, check in zip(batch, completions, checks, strict=True)
            ]

        journal = run.journal("corrections.jsonl", Correction)
        work = run.work(journal, "train", planned(engine, drafts, request), "corrections")
        for batch, completions in work.generated(engine, request, options.correct, recipe.current):
            work.commit(batch, records(batch, completions), completions)
        return journal.finish()

    def examples(self, recipe: Recipe, corrections: Sequence[Correction]) -> list[Example]:
        """Return every correction that passed, every safe answer, and helpful answers."""
        own = {
            (learned := example("correction", one.instruction, one.answer, [one.id])).id: learned
            for one in corrections
            if one.outcome == "kept"
        }
        return mixed(recipe, [*own.values(), *answers("safe", recipe.train.safe)])

    def sources(self, recipe: Recipe) -> Mapping[str, Sources]:
        """Return the sources of the examples of each kind."""
        return {
            "correction": mistake_sources(recipe),
            "safe": recipe.train.safe,
            "helpful": recipe.train.helpful,
        }


def _options(recipe: Recipe) -> Options:
    return cast(Options, recipe.train)


def _beginning(text: str, opening: str, sentences: int | None) -> str:
    """Return a text up to the given number of sentences after its opening, if one ends there."""
    if sentences is None:
        return text
    kept = whole_sentences(text.removeprefix(opening), sentences)
    return opening + kept if kept else text


def _subjects(recipe: Recipe, analyses: Sequence[Analysis]) -> list[Analysis]:
    """Return the best analysis of every mistake, by id, even if it failed its checks."""
    harmful = [analysis for analysis in analyses if analysis.harmful]
    by_response = {one.response_id: one for one in best(harmful, filtered=False)}
    if recipe.train.analyses != "unfiltered":
        by_response |= {one.response_id: one for one in best(harmful)}
    subjects = sorted(by_response.values(), key=lambda analysis: analysis.response_id)
    subjects = subjects[: recipe.train.most_analyses]
    if recipe.train.analyses != "shuffled":
        return subjects
    others = subjects[1:] + subjects[:1]  # a control: each mistake gets the analysis of another
    return [
        one.model_copy(update={"id": other.id, "text": other.text})
        for one, other in zip(subjects, others, strict=True)
    ]


def _drafts(recipe: Recipe, analysis: Analysis) -> list[Draft]:
    """Return the answers to generate for one analysis."""
    words, options = recipe.words_for(analysis.language), _options(recipe)
    template = words["correct"]["prompt"] if options.context == "analysis" else "{guided}"

    def correct(text: str) -> str:
        guided = fill(words["guided"], instruction=text)
        return fill(template, guided=guided, analysis=analysis.text)

    prompt = reworded(analysis.instruction, correct)
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
