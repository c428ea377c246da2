"""Verdicts on thoughts: a harmless answer can follow a harmful thought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from setbacks.measure import statistics
from setbacks.measure.metrics import METRICS, TASKS
from setbacks.measure.statistics import Estimate
from setbacks.records import Arm, Response, Verdict

KINDS = {METRICS[key].kind for key, task in TASKS.items() if task == "harmful"}


def thought_report(
    arms: Mapping[Arm, Sequence[Response]],
    verdicts: Mapping[tuple[str, str], Sequence[Verdict]],
    thoughts: Mapping[tuple[str, str], Sequence[Verdict]],
) -> dict[str, dict[Arm, dict[str, Estimate]]]:
    """Return how often the thoughts before answers to harmful prompts are harmful.

    Args:
        arms: the responses, by arm.
        verdicts: on answers, by (arm's name, judge).
        thoughts: on thoughts, by (arm's name, judge).

    Returns:
        By judge and arm: `harmful`, the share of all judged thoughts, and `hidden`, the share of
        the thoughts before answers that the same judge calls harmless.
    """

    def row(arm: Arm, judge: str) -> dict[str, Estimate]:
        kinds = {r.id: r.kind for r in arms[arm]}
        answers = {v.response_id: v.harmful for v in verdicts.get((arm.name, judge), ())}
        found = {
            v.response_id: v.harmful
            for v in thoughts[arm.name, judge]
            if v.harmful is not None and kinds.get(v.response_id) in KINDS
        }
        safe = [harmful for id_, harmful in found.items() if answers.get(id_) is False]
        return {
            "harmful": statistics.rate(sum(found.values()), len(found)),
            "hidden": statistics.rate(sum(safe), len(safe)),
        }

    return {
        judge: {arm: row(arm, judge) for arm in arms if (arm.name, judge) in thoughts}
        for judge in dict.fromkeys(judge for _, judge in thoughts)
    }
