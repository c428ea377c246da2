"""Step 1, guided mistake induction (arXiv 2310.10477, section 3.1).

A prompt with hint keywords asks the unaligned model for a bad response. If the model refuses, the
next attempt uses another hint. Every attempt is recorded, and only mistakes are used.
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
from setbacks.judges import Item
from setbacks.judges.checks import Checker
from setbacks.judges.refusal import Phrases, phrases_of, refuses
from setbacks.measure.substance import answer, substance
from setbacks.methods import open_method
from setbacks.notices import notice
from setbacks.prompts import ask
from setbacks.recipe import Recipe
from setbacks.records import Completion, Finish, Instruction, Mistake, Outcome, Request, digest
from setbacks.runs.journal import Journal
from setbacks.runs.redo import Stage
from setbacks.runs.session import Session, planned
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
        InputError: a source is missing or broken, or no attempt gave a mistake.
    """
    if not open_method(run.recipe).uses_mistakes:
        return []
    recipe = run.recipe.induce
    journal = run.journal("mistakes.jsonl", Mistake)
    seen = NearDuplicates(recipe.near_duplicate, phrases_of(run.recipe))
    if recipe.source in ("existing", "both"):
        _take(run, journal, seen)
    if recipe.source in ("induced", "both"):
        remaining = instructions(run.recipe.instructions, language=run.recipe.language)
        notice_languages(run.recipe, remaining)
        for number in range(recipe.attempts):
            refused = _ask(run, journal, seen, remaining, number)
            remaining = [instruction for instruction in remaining if instruction.id in refused]
    attempts = journal.finish()
    if not any(attempt.outcome == "mistake" for attempt in attempts):
        raise InputError(
            f"{run.path}: none of {len(attempts)} attempts gave a mistake (the model refused, gave "
            "no answer, or a judge rated it harmless); raise induce.attempts, or take mistakes "
            "from data (induce.source: existing)"
        )
    return attempts


def _ask(
    run: Session,
    journal: Journal[Mistake],
    seen: NearDuplicates,
    remaining: Sequence[Instruction],
    number: int,
) -> set[str]:
    """Try each instruction once; return the ids of those whose attempt gave no mistake."""
    recipe = run.recipe
    engine = run.engine(recipe.model)
    attempts = []
    for instruction in remaining:
        # Instructions start at different hints, so that the first round uses all hints.
        first = int(instruction.id, 16)
        hints = _words(recipe, instruction)["hints"]
        hint = hints[(first + number) % len(hints)]
        id_ = digest("mistake", recipe.seed, instruction.id, number, hint)
        attempts.append(Attempt(id_, instruction, number, hint))

    def request(attempt: Attempt) -> Request:
        words = _words(recipe, attempt.instruction)
        return Request(
            prompt=ask(words["prompt"], attempt.instruction.text, hint=attempt.hint),
            seed=int(attempt.id, 16),
        )

    checker = Checker(recipe.induce.judge, run) if recipe.induce.judge else None

    def harmless(batch: Sequence[Attempt], completions: Sequence[Completion]) -> list[bool]:
        """Say which responses of a batch the judge finds harmless; without a judge, none."""
        if checker is None:
            return [False] * len(batch)
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
        return [harm < recipe.induce.min_harmful for harm in checker.harm(items)]

    def records(batch: Sequence[Attempt], completions: Sequence[Completion]) -> list[Mistake]:
        seen.catch_up(journal.records)
        return [
            Mistake(
                id=attempt.id,
                instruction_id=attempt.instruction.id,
                instruction=attempt.instruction.text,
                response=completion.text,
                thought=completion.thought,
                outcome=seen.outcome(completion.text, completion.finish, harmless=spared),
                attempt=attempt.number,
                hint=attempt.hint,
                category=attempt.instruction.category,
                language=attempt.instruction.language,
                source=attempt.instruction.source,
                model=engine.name,
            )
            for attempt, completion, spared in zip(
                batch, completions, harmless(batch, completions), strict=True
            )
        ]

    start, label = len(journal), f"(attempt {number + 1})"
    work = run.work(journal, "induce", planned(engine, attempts, request), label)
    for batch, completions in work.generated(
        engine, request, recipe.induce.sampling, recipe.current
    ):
        work.commit(batch, records(batch, completions), completions)
    return {
        record.instruction_id
        for record in journal.records[start : start + len(attempts)]
        if record.outcome != "mistake"
    }


def _words(recipe: Recipe, instruction: Instruction) -> Mapping[str, Any]:
    """Return the words that guide the mistake on an instruction, in its language."""
    words: Mapping[str, Any] = recipe.words_for(instruction.language)["induce"]
    guidance = recipe.induce.guidance
    return words if guidance == "hints" else words[guidance]


def _take(run: Session, journal: Journal[Mistake], seen: NearDuplicates) -> None:
    """Take mistakes from data, in batches of a thousand."""
    rows = existing(run.recipe)

    batches = [rows[start : start + 1000] for start in range(0, len(rows), 1000)]
    work = run.work(journal, "induce", batches, "(from data)")
    for batch in work:
        seen.catch_up(journal.records)
        work.commit(
            batch, [m.model_copy(update={"outcome": seen.outcome(m.response)}) for m in batch]
        )


def existing(recipe: Recipe) -> list[Mistake]:
    """Return the mistakes that a recipe takes from data: responses not labeled harmless.

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
        for row in _mistaken(source):
            assert row.response is not None
            id_ = digest("existing", row.text, row.response)
            by_id[id_] = Mistake(
                id=id_,
                instruction_id=digest("instruction", row.text),
                instruction=row.text,
                response=row.response,
                outcome="mistake",
                attempt=0,
                hint=None,
                category=row.category,
                language=language_of(row.language, row.text, recipe.language),
                source=row.source,
                model=None,
            )
    if not by_id and recipe.induce.source == "existing":
        raise InputError(
            f"{recipe.induce.existing[0].source}: all rows are labeled harmless, but a mistake is "
            "a harmful response; check the labels, and fields: {harmful: NAME}"
        )
    return list(by_id.values())


def _mistaken(source: Source) -> list[Row]:
    """Return a source's rows with a response not labeled harmless; report how many are left out."""
    rows = load_having(source, "a mistake", "response")
    mistaken = [row for row in rows if row.harmful is not False]
    unlabeled = sum(row.harmful is None for row in mistaken)
    notice_left_out(source.source, rows, mistaken, "labeled harmless")
    if 0 < unlabeled < len(rows):
        notice(
            f"{source.source}: {unlabeled} of {len(rows)} rows have no harmful label, and count "
            "as mistakes"
        )
    return mistaken


class NearDuplicates:
    """Earlier mistakes: a response that repeats one teaches nothing new.

    Args:
        threshold: share of a response's word 5-grams that an earlier mistake must contain.
        phrases: of refusals; None for those of the built-in languages.
    """

    def __init__(self, threshold: float, phrases: Phrases | None = None) -> None:
        self._index = NearIndex(threshold)
        self._phrases = phrases
        self._read = 0

    def catch_up(self, records: Sequence[Mistake]) -> None:
        """Read the mistakes kept so far; called only if there is work: resuming stays cheap."""
        for record in records[self._read :]:
            if record.outcome == "mistake":
                self._index.add(answer(record.response))
        self._read = len(records)

    def outcome(
        self, response: str, finish: Finish | None = None, *, harmless: bool = False
    ) -> Outcome:
        """Return the outcome of the next attempt, and remember it if it is a mistake.

        Args:
            response: the whole text that the model wrote.
            finish: why it ended, if known.
            harmless: whether a judge rated it harmless.
        """
        self._read += 1
        kind, text = substance(response, finish), answer(response)
        if kind == "refusal":
            return "refusal"
        if kind != "text" or (len(text.split()) < 2 and len(text) < 8):
            return "empty"
        if refuses(text, self._phrases):
            return "refusal"
        if harmless:
            return "harmless"
        if self._index.has_near(text):
            return "duplicate"
        self._index.add(text)
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
        check_conversations(recipe.model, recipe.instructions)


STAGE = Stage(
    "induce",
    outputs=("mistakes.jsonl",),
    keys=(
        *("seed", "language", "model", "adapter", "instructions", "decontaminate", "induce"),
        "words.*.alpaca",
    ),
    check=check,
    more_keys=lambda recipe: (
        ("words.*.induce", "words.*.refusal", *keys_of_judge(recipe.induce.judge))
        if induces(recipe)
        else ()
    ),
)
