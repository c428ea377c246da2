"""The page of a loop: a line a round, what decided, and the accepted models on the test prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from setbacks.loop.rounds.numbers import RoundResult, results
from setbacks.loop.rounds.state import Outcome, Round
from setbacks.measure import Measurement
from setbacks.measure.formatting import (
    MISSING,
    POINTS,
    amount,
    change_in_words,
    clock,
    in_unit,
    listed,
    unit_of,
    unit_of_change,
    with_interval,
)
from setbacks.measure.metrics import COMPARED, TITLES
from setbacks.measure.results import Change, Score
from setbacks.recipe import Recipe
from setbacks.records import Arm
from setbacks.report.page import Findings, Table

# Why the loop ended, by what was decided about its last round.
ENDED: dict[Outcome, str] = {
    "accepted": "All planned rounds were run.",
    "worse": "{round} failed the gate, so the loop stopped.",
    "undecided": "The gate could not tell whether {round} is better: a gain, if there is one, is "
    "within noise. So the loop stopped.",
    "alarm": "{round} passed the gate, but its report has an alarm, so the loop stopped.",
    "no setbacks": "Before {round}, nothing went wrong in production that it may learn from, so it "
    "was not run. All planned rounds are done.",
}


def findings(recipe: Recipe, folder: Path, rounds: Sequence[Round], test: Measurement) -> Findings:
    """Present a loop in words, tables and numbers.

    Args:
        recipe: of the loop.
        folder: its folder.
        rounds: the decided rounds.
        test: the results of the accepted models on the test prompts.
    """
    table = results(folder, rounds)
    judge = recipe.judges[0].called
    return Findings(
        title=f"{recipe.name}: loop",
        question="What does each round of training on the model's failures add, and at what cost?",
        answer=list(_answer(rounds, test, judge)),
        tables=[_rounds(rounds, table), _decisions(rounds), _test(test, judge)],
        method=[
            "Each round is a run: the last accepted model makes the mistakes, and training "
            "continues its adapter and replays examples of earlier accepted rounds. A round is "
            "accepted only if the gate passes on the validation prompts and its report has no "
            "alarm. Otherwise the loop stops, and the model stays as it was.",
            "Failed prompts are validation prompts with a harmful answer, a refusal of a safe "
            "request, or a degenerate answer. A failure came back if an earlier model had it and "
            "the current one did not.",
            f"Judged by {judge}, without guidance. Intervals are 95 %, and differences are paired "
            "by prompt. The test prompts decided nothing.",
        ],
        data={
            "rounds": [{**one.model_dump(), **_numbers(table.get(one.number))} for one in rounds],
            "spent": [
                {
                    "round": row.number,
                    "tokens": row.tokens,
                    "money": row.money,
                    "seconds": row.seconds,
                }
                for row in table.values()
            ],
            "test": {judge: test.judges[judge]},
        },
    )


def _numbers(row: RoundResult | None) -> dict[str, object]:
    """Return a round's numbers without its costs, which no two runs of it share."""
    if row is None:
        return {}
    costs = ("number", "tokens", "money", "seconds")
    return {key: value for key, value in vars(row).items() if key not in costs}


def _answer(rounds: Sequence[Round], test: Measurement, judge: str) -> Iterator[str]:
    accepted = [one for one in rounds if one.accepted]
    if not accepted:
        yield "No round was accepted: the model stays as it was before the loop."
    else:
        count = f"{len(accepted)} of {amount(len(rounds), 'round')} accepted"
        current = accepted[-1].name
        yield f"The current model is that of {current}, {count}."
        yield from _gain(test, judge, current)
    if rounds:
        sentence = ENDED[rounds[-1].outcome].format(round=f"round {rounds[-1].number}")
        yield sentence[0].upper() + sentence[1:]
    for one in rounds:
        yield from (f"Round {one.number}: {text}" for text in one.alarms)


def _gain(test: Measurement, judge: str, current: str) -> Iterator[str]:
    """Say how the current model differs from the one before the loop on the test prompts."""

    def of(score: Score) -> str:
        unit = unit_of(metric)
        return f"{in_unit(score.value, unit)} {unit.name}"

    for metric in COMPARED:
        rows = {row.arm.name: row.score(metric) for row in test.judges[judge].arms}
        change = _changes(test, judge, metric).get(current)
        if change is not None:
            yield (
                f"On the test prompts, its {TITLES[metric]} is {of(rows[current])}, and "
                f"{of(rows['before'])} before the loop: "
                f"{change_in_words(change, unit_of_change(metric))}."
            )
            return


def _changes(test: Measurement, judge: str, metric: str) -> Mapping[str, Change]:
    """Return the differences of the unguided models from the one before the loop, by arm."""
    return {
        row.arm.name: row.metrics[metric]
        for row in test.judges[judge].differences
        if row.against == Arm.evaluated("before") and metric in row.metrics
    }


def _rounds(rounds: Sequence[Round], table: Mapping[int, RoundResult]) -> Table:
    return Table(
        "Rounds",
        [
            "Round",
            "decision",
            "mistakes learned from",
            "balanced safety before",
            "after",
            "change, in points",
            "failed before",
            "fixed",
            "came back",
            "newly failed",
            "newly refused",
            "cost",
        ],
        [[str(one.number), one.outcome, *_cells(table.get(one.number))] for one in rounds],
        "On the validation prompts; 95 % intervals in brackets. Numbers of prompts, of which those "
        "newly refused are safe.",
    )


def _cells(row: RoundResult | None) -> list[str]:
    if row is None:
        return [MISSING] * 10
    mistakes = [f"{number} {origin}" for origin, number in row.mistakes.items() if number]
    counts = (row.failed, row.fixed, row.came_back, row.new, row.newly_refused)
    money = [f"{row.money:.2f} in money"] if row.money else []
    return [
        listed(mistakes) if mistakes else MISSING,
        with_interval(row.before),
        with_interval(row.after),
        with_interval(row.change, POINTS),
        *map(str, counts),
        ", ".join([f"{row.tokens:,} tokens", clock(row.seconds), *money]),
    ]


def _decisions(rounds: Sequence[Round]) -> Table:
    return Table(
        "What decided",
        ["Round", "decision", "evidence on the validation prompts"],
        [
            [str(one.number), one.outcome, line]
            for one in rounds
            for line in (*one.evidence, *one.alarms) or (MISSING,)
        ],
    )


def _test(test: Measurement, judge: str) -> Table:
    report = test.judges[judge]
    shown = [
        metric
        for metric in COMPARED
        if any(row.score(metric).value is not None for row in report.arms)
    ]
    changes = _changes(test, judge, "balanced_safety")
    return Table(
        "Accepted models on the test prompts",
        [
            "Model",
            *(TITLES[metric] for metric in shown),
            "balanced safety against before, in points",
        ],
        [
            [
                row.arm.label,
                *(with_interval(row.score(metric), unit_of(metric)) for metric in shown),
                with_interval(changes[row.arm.name], POINTS) if row.arm.name in changes else "",
            ]
            for row in report.arms
        ],
        "Rates in %, scores of 10, 95 % intervals in brackets.",
    )
