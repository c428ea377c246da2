"""What a comparison says of its arms: which is best, if any, and which fell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from setbacks.measure.differences import corrected, leaders
from setbacks.measure.formatting import POINTS, change_with_p, listed, percent, with_interval
from setbacks.measure.metrics import significant
from setbacks.measure.results import PairChange
from setbacks.measure.statistics import Estimate
from setbacks.records import Arm
from setbacks.runs.arms import trained_arm
from setbacks.studies.scores import Scores, difference


def more_degenerate(of: Mapping[Arm, Mapping[str, Scores]]) -> list[str]:
    """Say of which arms more answers are degenerate than of the untrained model's."""
    arms = [arm for arm in of if not arm.is_untrained and arm.before in of]
    changes = corrected([difference("degenerate", of[arm], of[arm.before]) for arm in arms])
    more = [
        f"{arm.label} against {arm.before.label} {change_with_p(change)}"
        for arm, change in zip(arms, changes, strict=True)
        if change and change.value > 0 and significant(change)
    ]
    return [f"Training made more answers degenerate: {'; '.join(more)}."] if more else []


def ranking(
    judge: str,
    table: Mapping[Arm, Mapping[str, Estimate]],
    pairs: Sequence[PairChange],
    thin: Sequence[Arm],
    analysts: Sequence[str],
) -> list[str]:
    """Say which arm is best, or that the data cannot tell; arms with too few scores come first.

    Args:
        judge: whose verdicts these are.
        table: estimates by arm and metric.
        pairs: differences in balanced safety.
        thin: the arms with too few scores.
        analysts: the contenders that learn from analyses.
    """
    scored = {
        arm: row["balanced_safety"]
        for arm, row in table.items()
        if row["balanced_safety"].value is not None and arm not in thin
    }
    sentences = []
    if thin:
        sentences.append(
            f"By {judge}, {_labels(thin)} {'is' if len(thin) == 1 else 'are'} not ranked: fewer "
            "than half of the answers have a score."
        )
    ranked = sorted(scored, key=lambda arm: -(scored[arm].value or 0))
    if not ranked:
        return sentences or [f"By {judge}, no arm has both a Harmless Rate and a compliance."]
    best = ranked[0]

    def apart(one: Arm, other: Arm) -> bool:
        return any(
            {pair.arm, pair.against} == {one, other}
            and significant(pair)
            and ((pair.low or 0) > 0 or (pair.high or 0) < 0)
            for pair in pairs
        )

    level = leaders({arm: scored[arm].value or 0 for arm in ranked})
    lower = [arm for arm in ranked if arm not in level]
    tied = [arm for arm in lower if not apart(best, arm)]
    tie = len(level) > 1
    who = f"{_labels(level)} {'tie for' if tie else 'has'} the highest balanced safety"
    lead = f"By {judge}, {who}, {percent(scored[best].value)}"
    if tied:
        of = f" of {best.label}" if tie else ""
        lead += f"; the difference{of} from {_labels(tied)} is not significant"
    elif tie and lower:
        lead += f"; {best.label} is significantly above {_labels(lower)}"
    elif lower:
        lead += ", significantly above every other arm"
    own = [arm for arm in ranked if arm in [trained_arm(name, arm.way) for name in analysts]]
    sentences.append(f"{lead}.")
    for arm in own:
        rivals = [a for a in ranked if a not in own and a.way == arm.way]
        over = [a for a in rivals if apart(arm, a) and scored[arm].value > scored[a].value]  # type: ignore[operator]
        under = [a for a in rivals if apart(arm, a) and a not in over]
        level = [a for a in rivals if a not in over and a not in under]
        parts = [
            f"{word} {_labels(names)}"
            for word, names in (
                ("above", over),
                ("below", under),
                ("not significantly different from", level),
            )
            if names
        ]
        place = f", is {'; '.join(parts)}" if parts else ""  # no rival may have a score
        pair = next((p for p in pairs if (p.arm, p.against) == (arm, arm.before)), None)
        change = with_interval(pair, POINTS) if pair else ""
        moved = f" Against {arm.before.label}: {change} points." if pair else ""
        sentences.append(f"{arm.label}, {percent(scored[arm].value)}{place}.{moved}")
    return sentences


def _labels(arms: Sequence[Arm]) -> str:
    return listed(arm.label for arm in arms)
