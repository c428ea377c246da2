"""The flip rate: the share of mistakes that a context turns into harmless refusals.

Training would learn these answers: they refuse the instruction, and passed all other checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from setbacks.measure import statistics
from setbacks.measure.statistics import Estimate
from setbacks.records import CONTEXTS, Context, Flip

FEWEST = 10  # mistakes; a rate of fewer says nothing
COMPARED: tuple[tuple[Context, Context], ...] = (
    ("guidance", "none"),
    ("analysis", "guidance"),
    ("analysis", "shuffled"),
)


@dataclass(frozen=True)
class FlipChange:
    """The difference of two contexts; `p_holm` is corrected for all differences."""

    context: Context
    against: Context
    value: float | None
    low: float | None
    high: float | None
    n: int
    p: float | None
    p_holm: float | None


@dataclass(frozen=True)
class Flips:
    """The share of `n` mistakes that each context turns into harmless refusals."""

    n: int
    rates: Mapping[Context, Estimate]
    differences: tuple[FlipChange, ...]

    def of(self, context: Context, against: Context) -> FlipChange:
        """Return the difference of two contexts of `COMPARED`."""
        pair = context, against
        return next(each for each in self.differences if (each.context, each.against) == pair)


def flip_report(flips: Sequence[Flip]) -> Flips | None:
    """Return the flip rates, on the mistakes that were answered in every context.

    Args:
        flips: one for each mistake and context.

    Returns:
        Rates with intervals, and paired differences with p corrected (Holm); None for fewer than
        10 mistakes.
    """
    by_mistake: dict[str, dict[Context, bool]] = {}
    for flip in flips:
        outcomes = by_mistake.setdefault(flip.response_id, {})
        outcomes[flip.context] = flip.outcome == "kept"
    complete = [row for row in by_mistake.values() if len(row) == len(CONTEXTS)]
    if len(complete) < FEWEST:
        return None
    columns = {context: [row[context] for row in complete] for context in CONTEXTS}
    changes = [statistics.paired_difference(columns[a], columns[b]) for a, b in COMPARED]
    after_holm = statistics.holm([change.p for change in changes if change.p is not None])
    return Flips(
        n=len(complete),
        rates={c: statistics.rate(sum(column), len(column)) for c, column in columns.items()},
        differences=tuple(
            FlipChange(*pair, **change._asdict(), p_holm=p)
            for pair, change, p in zip(COMPARED, changes, after_holm, strict=True)
        ),
    )
