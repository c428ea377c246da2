"""The paragraph under a report's title: the most important result, and its certainty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from setbacks.measure.differences import first_places
from setbacks.measure.findings.judges import by_training, comparable
from setbacks.measure.formatting import (
    POINTS,
    change_with_p,
    counts,
    listed,
    percent,
    with_interval,
)
from setbacks.measure.metrics import KINDS, MAIN, MANY, thin
from setbacks.measure.results import ArmRow, Best, Change, JudgeReport, Measurement
from setbacks.records import Arm, Way

# How an arm answered, in words.
WAYS: dict[Way, str] = {
    "unguided": "without guidance",
    "guided": "with guidance",
    "posterior": "by posterior decoding",
}


def summary(results: Measurement) -> str:
    """Return the most important result in one paragraph, by the first judge."""
    if not results.judges:
        return "No judge has scored the responses yet."
    judge, report = next(iter(results.judges.items()))
    sentences = [*_unscored(judge, report.arms)]
    if report.best is None:
        sentences.append(
            "Balanced safety needs two arms with enough scores on both harmful and safe prompts; "
            "this run has fewer, so arms are not ranked."
        )
    else:
        sentences += _ranking(judge, report, report.best)
        sentences += _effect_of_training(report, report.best)
    return " ".join(sentences)


def _unscored(judge: str, rows: Sequence[ArmRow]) -> Iterator[str]:
    """What to say before any praise: the arms of which many answers have no score."""
    table = {}
    for row in rows:
        cells = [row.score(MAIN[kind]) for kind in KINDS]
        if any(cell.n < (1 - MANY) * cell.asked for cell in cells):
            table[row.arm.label] = sum(c.n for c in cells), sum(c.asked for c in cells)
    if not table:
        return
    left_out = [row.arm.label for row in rows if thin(row, "balanced_safety")]
    verb = "is" if len(left_out) == 1 else "are"
    ranked = f"; {listed(left_out)} {verb} not ranked" if left_out else ""
    yield (
        f"Not all answers have a score by {judge} ({counts(table)}): the numbers describe the "
        f"scored ones{ranked}."
    )


def _ranking(judge: str, report: JudgeReport, best: Best) -> Iterator[str]:
    """The best arm or arms, whether the lead is significant, and how far it is above the first."""
    rows = {row.arm: row for row in report.arms}
    top, first = rows[best.arm], report.arms[0]
    level = first_places(report)
    tie = len(level) > 1
    if tie:
        yield (
            f"By the judge {judge}, {listed(arm.label for arm in level)} tie for the highest "
            f"balanced safety, {percent(top.balanced_safety.value)}."
        )
    else:
        yield (
            f"By the judge {judge}, {top.arm.label} has the highest balanced safety, "
            f"{percent(top.balanced_safety.value)}: it keeps {percent(top.harmless_rate.value)} of "
            "its answers to harmful prompts harmless and answers "
            f"{percent(top.compliance.value)} of the safe ones."
        )
    if best.supported:
        if len(rows) > 2:
            yield "Its lead over every other arm is significant."
    elif lower := [arm.label for arm in best.tied if arm not in level]:
        lead = f"The lead of {top.arm.label}" if tie else "Its lead"
        yield f"{lead} over {listed(lower)} is not significant."
    change = _change(report, top.arm, first.arm)
    if change and not thin(first, "balanced_safety"):
        of = f" of {top.arm.label}" if tie else ""
        yield f"Against {first.arm.label} the difference{of} is {change_with_p(change)}."


def _effect_of_training(report: JudgeReport, best: Best) -> Iterator[str]:
    """How far training itself moved balanced safety, where there is one trained model.

    Nothing if that is how far the best arm is above the first, which `_ranking` has said.
    """
    rows = {row.arm: row for row in report.arms}
    own = [
        row
        for row in report.differences
        if by_training(row) and comparable(rows, row, "balanced_safety")
    ]
    effects = [
        f"{with_interval(cell, POINTS)} points {WAYS[row.arm.way]}"
        for row in own
        if (cell := row.metrics.get("balanced_safety"))
    ]
    pairs = [(row.arm, row.against) for row in own]
    is_new = pairs != [(best.arm, report.arms[0].arm)]
    if effects and is_new and len({row.arm.model for row in own}) == 1:
        yield f"Training itself moved balanced safety by {' and '.join(effects)}."


def _change(report: JudgeReport, arm: Arm, against: Arm) -> Change | None:
    for row in report.differences:
        if (row.arm, row.against) == (arm, against):
            return row.metrics.get("balanced_safety")
    return None
