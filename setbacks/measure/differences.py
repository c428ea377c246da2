"""Differences between arms by one judge, on the prompts that both answered, and the best arm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from setbacks.measure import statistics
from setbacks.measure.judged import Judged
from setbacks.measure.metrics import (
    ALPHA,
    BALANCED,
    COMPARED,
    METRICS,
    Key,
    Outcomes,
    thin,
)
from setbacks.measure.results import ArmRow, Best, Change, Comparison, JudgeReport
from setbacks.measure.statistics import Difference, Sample
from setbacks.records import Arm


def differences(table: Mapping[Arm, Judged]) -> tuple[Comparison, ...]:
    """Compare each arm with the first, and each trained arm with its untrained counterpart.

    Args:
        table: the arms as one judge sees them; the first is the baseline.
    """
    compared = pairs(table)
    judged: dict[str, list[Change | None]] = {}
    people: dict[str, list[Change | None]] = {}
    for key in COMPARED:
        arms = [(table[arm], table[against]) for arm, against in compared]
        judged[key] = corrected([difference(a.outcomes, b.outcomes, key) for a, b in arms])
        people[key] = corrected([difference_by_people(a, b, key) for a, b in arms])
    # Of refusals, degenerate or not: compliance would hide more of them behind fewer loops.
    refused = corrected(
        [
            difference(table[against].as_judged, table[arm].as_judged, "compliance")
            for arm, against in compared
        ]
    )
    return tuple(
        Comparison(
            arm,
            against,
            {key: change for key in COMPARED if (change := judged[key][i])},
            {key: change for key in COMPARED if (change := people[key][i])},
            refused[i],
        )
        for i, (arm, against) in enumerate(compared)
    )


def pairs(arms: Iterable[Arm]) -> list[tuple[Arm, Arm]]:
    """Return which arms to compare: each with the first, a trained one with its counterpart too."""
    arms = list(arms)
    others = arms[1:]
    return [(arm, arms[0]) for arm in others] + [
        (arm, arm.before) for arm in others if arm.trained and arm.before in others
    ]


def best(table: Mapping[Arm, Judged], rows: Sequence[ArmRow]) -> Best | None:
    """Return the arm with the highest balanced safety, and those not significantly below it.

    Arms with too few scored answers are left out.
    """
    scored = {
        row.arm: row.balanced_safety.value
        for row in rows
        if row.balanced_safety.value is not None and not thin(row, "balanced_safety")
    }
    if len(scored) < 2:
        return None
    top = max(scored, key=lambda arm: scored[arm])
    others = [arm for arm in scored if arm != top]
    changes = corrected(
        [difference(table[top].outcomes, table[arm].outcomes, "balanced_safety") for arm in others]
    )
    tied = tuple(arm for arm, change in zip(others, changes, strict=True) if not _is_above(change))
    return Best(top, not tied, tied)


def leaders(values: Mapping[Arm, float]) -> list[Arm]:
    """Return the arms with the highest value, in their order: one, or several that tie.

    Args:
        values: by arm, at least one.
    """
    highest = max(values.values())
    return [arm for arm, value in values.items() if math.isclose(value, highest)]


def first_places(report: JudgeReport) -> list[Arm]:
    """Return the arms that share the highest balanced safety; none where arms are not ranked."""
    if report.best is None:
        return []
    ranked = {report.best.arm, *report.best.tied}
    return leaders(
        {
            row.arm: row.balanced_safety.value
            for row in report.arms
            if row.arm in ranked and row.balanced_safety.value is not None
        }
    )


def _is_above(change: Change | None) -> bool:
    return (
        change is not None
        and change.p_holm is not None
        and change.p_holm < ALPHA
        and change.low is not None
        and change.low > 0
    )


def difference(a: Outcomes, b: Outcomes, key: str) -> Difference:
    """Return the difference a - b, on the prompts that have a score in both.

    Args:
        a: the values of one arm.
        b: those of the other.
        key: a metric of `COMPARED`.
    """

    def values(key: str, kind: Callable[[Any], Any]) -> tuple[list[Any], list[Any]]:
        shared = _shared(a, b, key)
        return [kind(a[key][k]) for k in shared], [kind(b[key][k]) for k in shared]

    if key == "balanced_safety":
        return statistics.balanced_difference(*(values(half, bool) for half in BALANCED))
    return statistics.paired_difference(*values(key, bool if METRICS[key].is_rate else float))


def difference_by_people(a: Judged, b: Judged, key: str) -> Difference:
    """Return the same, with the judge's error corrected by human labels.

    It has no value where either arm has fewer labels than `statistics.FEWEST_LABELS`.
    """

    def samples(key: str) -> tuple[Sample, Sample]:
        shared = _shared(a.predicted, b.predicted, key)
        return a.sample(key, shared), b.sample(key, shared)

    if key == "balanced_safety":
        return statistics.corrected_balanced_difference(*(samples(half) for half in BALANCED))
    return statistics.corrected_difference(*samples(key), METRICS[key].scale)


def _shared(a: Outcomes, b: Outcomes, key: str) -> list[Key]:
    """The prompts on which both arms have a score."""
    return [prompt for prompt in a[key] if prompt in b[key]]


def corrected(rows: Sequence[Difference]) -> list[Change | None]:
    """Return one metric's differences with their p values corrected together (Holm).

    Args:
        rows: the differences; one without a value becomes None.
    """
    changes = [None if d.value is None else Change(d.value, d.low, d.high, d.n, d.p) for d in rows]
    tested = [change for change in changes if change is not None and change.p is not None]
    after_holm = iter(statistics.holm([change.p for change in tested if change.p is not None]))
    return [
        replace(change, p_holm=next(after_holm))
        if change is not None and change.p is not None
        else change
        for change in changes
    ]
