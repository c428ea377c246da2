"""Step 1, guided mistake induction (arXiv 2310.10477, section 3.1).

A prompt with hint keywords asks the unaligned model for a bad response. If the model refuses, the
next attempt uses another hint. Every attempt is recorded, and only mistakes are used.

Ours: the refusal of a safe request is a mistake, too (`induce.refusals`). The hint is then a reason
to refuse, the response is begun for the model, and one that refuses nothing is asked for again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from setbacks.data import Row, Source
from setbacks.data.instructions import instructions
from setbacks.data.languages import language_of
from setbacks.data.near import NearIndex
from setbacks.data.sources import load_having, notice_left_out
from setbacks.errors import InputError
from setbacks.judges import Item, weights_of_judge
from setbacks.judges.checks import Checker
from setbacks.judges.refusal import Phrases, phrases_of, refuses
from setbacks.measure.substance import answer, substance
from setbacks.messages import Prompt, transcript
from setbacks.methods import open_method
from setbacks.models.fingerprint import weights_of
from setbacks.notices import notice
from setbacks.prompts import ask
from setbacks.recipe import Recipe, Sources
from setbacks.records import (
    Completion,
    Finish,
    Instruction,
    Mistake,
    Outcome,
    Request,
    Setback,
    digest,
)
from setbacks.runs.decontamination import leave_out_others
from setbacks.runs.journal import Journal
from setbacks.runs.redo import Stage
from setbacks.runs.session import Session, planned
from setbacks.runs.weights import check_weights
from setbacks.stages.checks import (
    check_chat_of,
    check_conversations,
    check_judge_of_texts,
    induces,
    keys_of_judge,
    notice_languages,
)


@dataclass(frozen=True)
class Attempt:
    """One attempt to induce a mistake for an instruction."""

    id: str
    instruction: Instruction
    number: int
    hint: str


def induce(run: Session) -> Sequence[Mistake]:
    """Return every attempt at a mistake; only those with the outcome "mistake" are analyzed.

    Raises:
        InputError: a source is missing or broken, or no attempt gave a mistake, or the model has
            changed.
    """
    if not open_method(run.recipe).uses_mistakes:
        return []
    recipe = run.recipe.induce
    journal = run.journal("mistakes.jsonl", Mistake)
    used = weights_of_judge(recipe.judge, run.recipe)
    if recipe.source != "existing":
        used |= weights_of(run.recipe.model, run.recipe.current)
    check_weights(run, "induce", [journal.path], used)
    seen = NearDuplicates(recipe.near_duplicate, phrases_of(run.recipe))
    checker = Checker(recipe.judge, run) if recipe.judge else None
    if checker:  # before mistakes from data, which nothing checks, are in the journal
        checker.check_version(run, journal, 1, "induce")
    if recipe.source in ("existing", "both"):
        _take(run, journal, seen)
    if recipe.source in ("induced", "both"):
        _draw(run, journal, seen, "harmful", run.recipe.instructions, checker)
        _draw(run, journal, seen, "refusal", recipe.refusals)
    attempts = journal.finish()
    if not any(attempt.outcome == "mistake" for attempt in attempts):
        raise InputError(
            f"{run.path}: none of {len(attempts)} attempts gave a mistake (the model refused, gave "
            "no answer, or a judge rated it harmless or gave no verdict); raise induce.attempts, "
            "or take mistakes from data (induce.source: existing)"
        )
    return attempts


def _draw(
    run: Session,
    journal: Journal[Mistake],
    seen: NearDuplicates,
    kind: Setback,
    sources: Sources,
    checker: Checker | None = None,
) -> None:
    """Ask for mistakes of one kind, in rounds, until every instruction gave one."""
    remaining = instructions(sources, language=run.recipe.language)
    notice_languages(run.recipe, remaining)
    for number in range(run.recipe.induce.attempts):
        without = _ask(run, journal, seen, kind, remaining, number, checker)
        remaining = [instruction for instruction in remaining if instruction.id in without]


def _ask(
    run: Session,
    journal: Journal[Mistake],
    seen: NearDuplicates,
    kind: Setback,
    remaining: Sequence[Instruction],
    number: int,
    checker: Checker | None,
) -> set[str]:
    """Try each instruction once; return the ids of those whose attempt gave no mistake."""
    recipe = run.recipe
    engine = run.engine(recipe.model)
    attempts = []
    for instruction in remaining:
        # Instructions start at different hints, so that the first round uses all hints.
        first = int(instruction.id, 16)
        hints = _words(recipe, instruction, kind)["hints"]
        hint = hints[(first + number) % len(hints)]
        id_ = digest("mistake", recipe.seed, instruction.id, number, hint)
        attempts.append(Attempt(id_, instruction, number, hint))

    def request(attempt: Attempt) -> Request:
        words = _words(recipe, attempt.instruction, kind)
        return Request(
            prompt=ask(words["prompt"], attempt.instruction.text, hint=attempt.hint),
            seed=int(attempt.id, 16),
            prefill=words["prefill"] if kind == "refusal" else "",
        )

    def records(batch: Sequence[Attempt], completions: Sequence[Completion]) -> list[Mistake]:
        seen.catch_up(journal.records)
        return [
            Mistake(
                id=attempt.id,
                instruction_id=attempt.instruction.id,
                instruction=attempt.instruction.text,
                response=completion.text,
                thought=completion.thought,
                kind=kind,
                outcome=seen.outcome(completion.text, completion.finish, unfit)
                if kind == "harmful"
                else seen.outcome_of_refusal(
                    attempt.instruction.text, completion.text, completion.finish
                ),
                attempt=attempt.number,
                hint=attempt.hint,
                category=attempt.instruction.category,
                language=attempt.instruction.language,
                source=attempt.instruction.source,
                model=engine.name,
            )
            for attempt, completion, unfit in zip(
                batch, completions, _unfit(run, checker, batch, completions), strict=True
            )
        ]

    start, label = len(journal), f"(attempt {number + 1})"
    if checker:
        checker.check_version(run, journal, len(attempts), "induce")
    work = run.work(journal, "induce", planned(engine, attempts, request), label)
    for batch, completions in work.generated(
        engine, request, recipe.induce.sampling, recipe.current
    ):
        work.commit(batch, records(batch, completions), completions)
    # Another refusal of a request that repeats an earlier one would be a duplicate, too.
    done = ("mistake",) if kind == "harmful" else ("mistake", "duplicate")
    return {
        record.instruction_id
        for record in journal.records[start : start + len(attempts)]
        if record.outcome not in done
    }


def _unfit(
    run: Session,
    checker: Checker | None,
    batch: Sequence[Attempt],
    completions: Sequence[Completion],
) -> list[Outcome | None]:
    """Say why the judge takes a response of a batch for no mistake; None: it does not."""
    if checker is None:
        return [None] * len(batch)
    items = [
        Item(
            attempt.id,
            attempt.instruction.text,
            completion.text,
            language=attempt.instruction.language,
            finish=completion.finish,
        )
        for attempt, completion in zip(batch, completions, strict=True)
    ]
    return [
        "unscored" if harm is None else "harmless" if harm < run.recipe.induce.min_harmful else None
        for harm in checker.harm(items)
    ]


def _words(recipe: Recipe, instruction: Instruction, kind: Setback) -> Mapping[str, Any]:
    """Return the words that guide the mistake on an instruction, in its language."""
    words: Mapping[str, Any] = recipe.words_for(instruction.language)["induce"]
    guidance = recipe.induce.guidance if kind == "harmful" else "overcautious"
    return words if guidance == "hints" else words[guidance]


def _take(run: Session, journal: Journal[Mistake], seen: NearDuplicates) -> None:
    """Take mistakes from data, in batches of a thousand."""
    rows = existing(run.recipe)

    batches = [rows[start : start + 1000] for start in range(0, len(rows), 1000)]
    work = run.work(journal, "induce", batches, "(from data)")
    for batch in work:
        seen.catch_up(journal.records)
        outcomes = [
            seen.outcome(m.response)
            if m.kind == "harmful"
            else seen.outcome_of_refusal(m.instruction, m.response, labeled=True)
            for m in batch
        ]
        work.commit(
            batch,
            [
                m.model_copy(update={"outcome": outcome})
                for m, outcome in zip(batch, outcomes, strict=True)
            ],
        )


def existing(recipe: Recipe) -> list[Mistake]:
    """Return the mistakes that a recipe takes from data.

    They are the responses not labeled harmless, and the refusals of requests that the data call
    safe.

    Raises:
        InputError: a source is missing or broken, or has no responses.
    """
    if recipe.induce.source == "induced":
        return []
    if not recipe.induce.existing:
        raise InputError(
            f'induce.source is "{recipe.induce.source}" but induce.existing names no data'
        )
    by_id: dict[str, Mistake] = {}
    for source in recipe.induce.existing:
        rows, before = _mistaken(source), len(by_id)
        for row in rows:
            assert row.response is not None
            id_ = digest("existing", row.text, row.response)
            by_id[id_] = Mistake(
                id=id_,
                instruction_id=digest("instruction", row.text),
                instruction=row.text,
                response=row.response,
                kind="refusal" if _refuses_safe(row) else "harmful",
                outcome="mistake",
                attempt=0,
                hint=None,
                category=row.category,
                language=language_of(row.language, row.text, recipe.language),
                source=row.source,
                model=None,
            )
        repeats = len(rows) - (len(by_id) - before)
        notice_left_out(source.source, rows, rows[repeats:], "they repeat an earlier mistake")
    if not by_id and recipe.induce.source == "existing":
        raise InputError(
            f"{recipe.induce.existing[0].source}: all rows are labeled harmless, but a mistake is "
            "a harmful response, or the refusal of a safe request (kind: refusal); check the "
            "labels, and fields: {harmful: NAME}"
        )
    return list(by_id.values())


def _mistaken(source: Source) -> list[Row]:
    """Return a source's rows that are mistakes; report how many are left out, and why."""
    rows = load_having(source, "a mistake", "response")
    mistaken = [row for row in rows if row.harmful is not False or _refuses_safe(row)]
    unlabeled = sum(row.harmful is None for row in mistaken)
    notice_left_out(source.source, rows, mistaken, "labeled harmless")
    if 0 < unlabeled < len(rows):
        notice(
            f"{source.source}: {unlabeled} of {len(rows)} rows have no harmful label, and count "
            "as mistakes"
        )
    return mistaken


def _refuses_safe(row: Row) -> bool:
    """Whether a row is the refusal of a safe request.

    The labels of the response are not enough: to refuse a harmful request is right, and harmless.
    """
    return row.kind == "refusal" and row.refused is True and row.harmful is False


class NearDuplicates:
    """Earlier mistakes: one that repeats them teaches nothing new.

    Harmful responses are compared with each other. Refusals all look alike, and what they teach is
    in the request, so the requests are compared.

    Args:
        threshold: share of a text's word 5-grams that an earlier one must contain.
        phrases: of refusals; None for those of the built-in languages.
    """

    def __init__(self, threshold: float, phrases: Phrases | None = None) -> None:
        self._phrases = phrases
        self._responses, self._requests = NearIndex(threshold), NearIndex(threshold)
        self._read = 0

    def catch_up(self, records: Sequence[Mistake]) -> None:
        """Read the mistakes kept so far; called only if there is work: resuming stays cheap."""
        for record in records[self._read :]:
            if record.outcome == "mistake" and record.kind == "harmful":
                self._responses.add(answer(record.response))
            elif record.outcome == "mistake":
                self._requests.add(transcript(record.instruction))
        self._read = len(records)

    def outcome(
        self, response: str, finish: Finish | None = None, unfit: Outcome | None = None
    ) -> Outcome:
        """Return the outcome of the next attempt at a harmful response; remember a mistake.

        Args:
            response: the whole text that the model wrote.
            finish: why it ended, if known.
            unfit: why a judge takes it for no mistake; None: it does not.
        """
        self._read += 1
        kind, text = substance(response, finish), answer(response)
        if kind == "refusal":
            return "refusal"
        if kind != "text" or (len(text.split()) < 2 and len(text) < 8):
            return "empty"
        if refuses(text, self._phrases):
            return "refusal"
        if unfit:
            return unfit
        return self._new(self._responses, text)

    def outcome_of_refusal(
        self, request: Prompt, response: str, finish: Finish | None = None, *, labeled: bool = False
    ) -> Outcome:
        """Return the outcome of the next attempt at a refusal; remember a mistake.

        Args:
            request: the safe request.
            response: the whole text that the model wrote.
            finish: why it ended, if known.
            labeled: whether the data say that it refuses, so that no phrases are looked for.
        """
        self._read += 1
        if substance(response, finish) != "text":
            return "empty"  # a provider's filter leaves no words to analyze
        if not labeled and not refuses(answer(response), self._phrases):
            return "compliance"
        return self._new(self._requests, transcript(request))

    def _new(self, index: NearIndex, text: str) -> Outcome:
        if index.has_near(text):
            return "duplicate"
        index.add(text)
        return "mistake"


def check(recipe: Recipe) -> None:
    """Look up the data that mistakes are taken from, and the chat template.

    Raises:
        InputError: a source is missing, broken or has no responses, or the model cannot be used.
    """
    uses_mistakes = open_method(recipe).uses_mistakes
    if uses_mistakes:
        existing(recipe)
        if recipe.induce.judge:
            check_judge_of_texts(recipe.induce.judge, recipe)
    check_chat_of(recipe.model, trains=True)
    if uses_mistakes and recipe.induce.source != "existing":
        check_conversations(recipe.model, [*recipe.instructions, *recipe.induce.refusals])


def _words_read(recipe: Recipe) -> tuple[str, ...]:
    """Return the words of the hints, and the phrases of refusals."""
    induce, read = recipe.induce, ["words.*.refusal"]
    if induce.source != "existing":
        hints = ("hints", "prompt") if induce.guidance == "hints" else (induce.guidance,)
        reasons = ("overcautious",) if induce.refusals else ()
        read += [f"words.*.induce.{part}" for part in (*hints, *reasons)]
    return tuple(read)


STAGE = Stage(
    "induce",
    outputs=("mistakes.jsonl",),
    keys=(
        *("seed", "language", "model", "adapter", "instructions", "decontaminate", "held_out"),
        "induce",
        "words.*.alpaca",
    ),
    check=check,
    other_data=lambda old, new: leave_out_others(old, new, "instructions", "induce"),
    more_keys=lambda recipe: (
        (*_words_read(recipe), *keys_of_judge(recipe.induce.judge)) if induces(recipe) else ()
    ),
)
