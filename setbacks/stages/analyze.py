"""Step 2, guided analysis (arXiv 2310.10477, section 3.2).

The analyst, by default the model itself, is given the verdict that a response is harmful, and
explains why. Of several candidates, the best one that passes the quality checks is kept. Contrast
analyses do the same for benign responses ("harmless, because ..."), so that the verdict cannot be
memorized. Ours: the analysis of a refused safe request says why it was wrong to refuse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from setbacks.data.languages import language_of
from setbacks.data.sources import load_having, notice_left_out
from setbacks.errors import InputError
from setbacks.messages import Prompt, texts_of
from setbacks.methods import open_method
from setbacks.models.fingerprint import weights_of
from setbacks.prompts import Words, fill
from setbacks.prompts.policy import named
from setbacks.prompts.topic import topic
from setbacks.recipe import Analyze, Recipe
from setbacks.records import (
    Analysis,
    Completion,
    Label,
    Mistake,
    Request,
    Setback,
    digest,
    label_of,
)
from setbacks.runs.decontamination import leave_out_others
from setbacks.runs.redo import Stage
from setbacks.runs.session import Session, planned
from setbacks.runs.weights import check_weights
from setbacks.stages.checks import check_chat_of, induces
from setbacks.text import distinct, whole_sentences, words_of


@dataclass(frozen=True)
class Subject:
    """One candidate analysis to generate: of a mistake, or of a benign response."""

    id: str
    response_id: str
    instruction: Prompt
    response: str
    harmful: bool
    candidate: int
    category: str | None
    language: str
    kind: Setback = "harmful"

    @property
    def label(self) -> Label:
        """As `Analysis.label`."""
        return label_of(self.harmful, self.kind)


def analyze(run: Session, mistakes: Sequence[Mistake]) -> Sequence[Analysis]:
    """Return every candidate analysis, with its checks; the method picks among them.

    Args:
        run: the session.
        mistakes: every attempt of induction; only those that gave a mistake are analyzed.

    Raises:
        InputError: a contrast source is missing or broken, or no analysis passed its checks, or the
            analyst has changed.
    """
    if not open_method(run.recipe).uses_mistakes:
        return []
    recipe = run.recipe.analyze
    analyst = recipe.analyst or run.recipe.model
    adapter = None if recipe.analyst else run.recipe.current
    journal = run.journal("analyses.jsonl", Analysis)
    check_weights(run, "analyze", [journal.path], weights_of(analyst, adapter))
    engine = run.engine(analyst)
    subjects = [
        subject
        for response in [*_mistaken(mistakes), *benign(run.recipe)]
        for subject in _candidates(response, run.recipe.seed, recipe.candidates)
    ]

    def request(subject: Subject) -> Request:
        words = run.recipe.words_for(subject.language, broken=_broken(subject))["analyze"]
        label = subject.label
        return Request(
            prompt=fill(words[label], instruction=subject.instruction, response=subject.response),
            prefill=words[f"prefill_{label}"] if recipe.prefill else "",
            seed=int(subject.id, 16),
        )

    def records(batch: Sequence[Subject], completions: Sequence[Completion]) -> list[Analysis]:
        analyses = []
        for subject, completion in zip(batch, completions, strict=True):
            text = whole_sentences(completion.text) or completion.text
            checks, score = examine(text, subject, recipe, run.recipe.words_for(subject.language))
            analyses.append(
                Analysis(
                    id=subject.id,
                    response_id=subject.response_id,
                    instruction=subject.instruction,
                    response=subject.response,
                    harmful=subject.harmful,
                    kind=subject.kind,
                    text=text,
                    candidate=subject.candidate,
                    checks=checks,
                    score=round(score, 6),
                    category=subject.category or _clause(run.recipe, subject, text),
                    language=subject.language,
                    analyst=engine.name,
                )
            )
        return analyses

    work = run.work(journal, "analyze", planned(engine, subjects, request))
    for batch, completions in work.generated(engine, request, recipe.sampling, adapter):
        work.commit(batch, records(batch, completions), completions)
    analyses = journal.finish()
    filtered = run.recipe.train.analyses != "unfiltered"
    if not any(a.label != "harmless" and (a.passed or not filtered) for a in analyses):
        raise InputError(
            f"{run.path}: none of {len(analyses)} analyses passed its checks (see checks in "
            "analyses.jsonl); loosen analyze.min_words, min_overlap or min_distinct, raise "
            "analyze.candidates, or name a stronger analyze.analyst"
        )
    return analyses


def _broken(subject: Subject) -> str | None:
    """Return the clause that a response is known to break; one that is harmless breaks none."""
    return subject.category if subject.harmful else None


def _clause(recipe: Recipe, subject: Subject, text: str) -> str | None:
    """Return the clause of the policy that the analysis of a harmful response names, if any."""
    return named(text, [clause.id for clause in recipe.policy]) if subject.harmful else None


def examine(
    text: str, subject: Subject, recipe: Analyze, words: Words
) -> tuple[dict[str, bool], float]:
    """Check the quality of an analysis.

    Args:
        text: the analysis.
        subject: the analyzed response, and its label.
        recipe: the thresholds.
        words: with the patterns that reveal a contradiction, and the stop words.

    Returns:
        Each check by name, True where it passed, and a score by which candidates are ranked: the
        content words taken up from instruction and response (up to 10), and the distinct 3-grams.
    """
    contrary = words["analyze"][f"contradicts_{subject.label}"]
    given = words["analyze"][f"prefill_{subject.label}"]
    stated, response = "", subject.response
    if subject.kind == "refusal":
        stated = words["analyze"]["states_refusal"]
        response = ""  # refusals are alike: an analysis that takes up their words fits all of them
    said = words_of(text)
    source = f"{texts_of(subject.instruction)} {response}"
    taken_up = topic(text, words, given) & topic(source, words)
    varied = distinct(said)
    checks = {
        "agrees": re.search(contrary, text, re.IGNORECASE) is None
        and re.search(stated, text, re.IGNORECASE) is not None,
        "on_topic": len(taken_up) >= recipe.min_overlap,
        "length": recipe.min_words <= len(said) <= recipe.max_words,
        "no_repetition": varied >= recipe.min_distinct,
    }
    return checks, min(len(taken_up), 10) / 10 + varied


def _candidates(subject: Subject, seed: int, number: int) -> Iterable[Subject]:
    for candidate in range(number):
        yield Subject(
            **{
                **vars(subject),
                "id": digest("analysis", seed, subject.response_id, candidate),
                "candidate": candidate,
            }
        )


def _mistaken(mistakes: Iterable[Mistake]) -> Iterable[Subject]:
    for m in mistakes:
        if m.outcome == "mistake":
            harmful = m.kind == "harmful"
            yield Subject(
                "", m.id, m.instruction, m.response, harmful, 0, m.category, m.language, m.kind
            )


def benign(recipe: Recipe) -> Iterable[Subject]:
    """Return the benign responses for contrast analyses, each once.

    Raises:
        InputError: a source is missing or broken, or has no answers.
    """
    subjects: dict[str, Subject] = {}
    for source in recipe.analyze.contrast:
        rows = load_having(source, "a contrast analysis", ("answer", "response"))
        fit = [row for row in rows if row.answer is not None or not row.harmful]
        notice_left_out(source.source, rows, fit, "labeled harmful")
        before = len(subjects)
        for row in fit:
            answer = row.answer or row.response or ""
            id_ = digest("benign", row.text, answer)
            language = language_of(row.language, row.text, recipe.language)
            subject = Subject("", id_, row.text, answer, False, 0, row.category, language)
            subjects.setdefault(id_, subject)
        repeats = len(fit) - (len(subjects) - before)
        notice_left_out(source.source, fit, fit[repeats:], "they repeat an earlier response")
    return subjects.values()


def check(recipe: Recipe) -> None:
    """Look up the benign responses, and the analyst's chat template.

    Raises:
        InputError: a source is missing, broken or has no answers, or the analyst cannot be used.
    """
    if open_method(recipe).uses_mistakes:
        list(benign(recipe))
    check_chat_of(recipe.analyze.analyst)


STAGE = Stage(
    "analyze",
    outputs=("analyses.jsonl",),
    keys=("analyze", "words.*.begin_with"),
    check=check,
    other_data=lambda old, new: leave_out_others(old, new, "analyze"),
    more_keys=lambda recipe: (
        (
            "words.*.analyze",
            "words.*.stop_words",
            *(f"words.*.policy.{part}" for part in ("analyze", "good", "bad")),
            "policy",
        )
        if induces(recipe)
        else ()
    ),
)
