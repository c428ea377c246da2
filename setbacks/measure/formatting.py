"""Numbers for people: the only module that writes them.

One set of rules for pages, the terminal, model cards, findings and tables of studies:

- An unknown number is "–".
- A minus sign is "−"; a difference always has its sign.
- Rates have one decimal and are in percent, scores and coefficients have two decimals.
- A value with its interval is "60.0 [50.2, 69.1]"; a table has the unit in its header, a
  sentence after the number: "60.0 %".
- A number of answers is "90", or "90 of 120" if some have no score.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from setbacks.measure.metrics import METRICS, Tested

MISSING = "–"


class Estimated(Protocol):
    """Anything with a value, its interval, and a number of observations."""

    @property
    def value(self) -> float | None:
        """The value; None where it is not known."""

    @property
    def low(self) -> float | None:
        """The lower end of its interval."""

    @property
    def high(self) -> float | None:
        """The upper end of its interval."""

    @property
    def n(self) -> int:
        """How many observations it is from."""


class Changed(Estimated, Tested, Protocol):
    """A difference with its interval, and its p value after Holm's correction."""


class Written(NamedTuple):
    """An estimate as text for two cells; the interval is empty where there is none."""

    value: str
    interval: str


class Unit(NamedTuple):
    """How to write numbers of one sort.

    Args:
        name: name of the unit, in a sentence.
        scale: what values are multiplied by.
        places: number of decimals.
        signed: whether positive numbers have a plus sign.
    """

    name: str
    scale: float
    places: int
    signed: bool = False


PERCENT = Unit("%", scale=100, places=1)
POINTS = Unit("points", scale=100, places=1, signed=True)  # percentage points
SCORE = Unit("of 10", scale=1, places=2)
SCORE_CHANGE = Unit("of 10", scale=1, places=2, signed=True)
NATS = Unit("nats per token", scale=1, places=2)
FINE_CHANGE = Unit("", scale=1, places=3, signed=True)


def is_score(metric: str) -> bool:
    """Whether a metric is a score of 1 to 10, and not a rate."""
    return metric in METRICS and not METRICS[metric].is_rate


def unit_of(metric: str) -> Unit:
    """Return the unit of a metric's values."""
    return SCORE if is_score(metric) else PERCENT


def unit_of_change(metric: str) -> Unit:
    """Return the unit of a metric's differences."""
    return SCORE_CHANGE if is_score(metric) else POINTS


def number(value: float | None, places: int = 2, signed: bool = False) -> str:
    """Write a number with a fixed number of decimals."""
    if value is None:
        return MISSING
    text = f"{value:{'+' if signed else ''}.{places}f}"
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("+-")  # no "-0.0"
    return text.replace("-", "−")


def in_unit(value: float | None, unit: Unit) -> str:
    """Write a number in its unit."""
    return number(None if value is None else unit.scale * value, unit.places, unit.signed)


def written(estimate: Estimated, unit: Unit = PERCENT) -> Written:
    """Write an estimate for a table with a separate column for the interval."""
    value = in_unit(estimate.value, unit)
    if estimate.low is None or estimate.high is None:
        return Written(value, "")
    low, high = in_unit(estimate.low, unit), in_unit(estimate.high, unit)
    return Written(value, f"{low} to {high}" if unit.signed else f"{low} – {high}")


def with_interval(estimate: Estimated, unit: Unit = PERCENT) -> str:
    """Write an estimate for one cell: "60.0 [50.2, 69.1]"."""
    value = in_unit(estimate.value, unit)
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{in_unit(estimate.low, unit)}, {in_unit(estimate.high, unit)}]"


def coefficient(triple: Sequence[float | None] | None) -> str:
    """Write an AUC, a kappa or the like, given as value, low, high: "0.71 [0.60, 0.80]"."""
    value, low, high = triple or (None, None, None)
    if value is None or low is None or high is None:
        return number(value)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def percent(value: float | None, places: int = 1) -> str:
    """Write a share for a sentence: "60.0 %"."""
    return MISSING if value is None else f"{number(100 * value, places)} %"


def change_in_words(change: Estimated, unit: Unit = POINTS, then: str = "") -> str:
    """Write a difference for a sentence, with its interval, and what is to follow that."""
    value, low, high = (in_unit(end, unit) for end in (change.value, change.low, change.high))
    return f"{value} {unit.name} (95 % interval {low} to {high}{then})"


def change_with_p(change: Changed, unit: Unit = POINTS) -> str:
    """Write a difference for a sentence, with its interval and its corrected p value."""
    p = "no test" if change.p_holm is None else f"{p_equals(change.p_holm)} corrected"
    return change_in_words(change, unit, f", {p}")


def p_value(value: float | None) -> str:
    """Write a p value with three decimals."""
    return "< 0.001" if value is not None and value < 0.001 else number(value, 3)


def p_equals(value: float) -> str:
    """Write a p value for a sentence: "p = 0.012" or "p < 0.001"."""
    return f"p {p_value(value)}" if value < 0.001 else f"p = {p_value(value)}"


def of_asked(scored: int, expected: int) -> str:
    """Write how many answers have a score: "90", or "90 of 120" where some have none."""
    return f"{scored} of {expected}" if scored < expected else f"{scored}"


def amount(n: int, noun: str) -> str:
    """Write a number of things: "1 step", "5 steps"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def counts(table: Mapping[str, tuple[int, int]]) -> str:
    """Write names with their counts: "vanilla 3 of 24, sft 1 of 24"."""
    return ", ".join(f"{name} {n} of {of}" for name, (n, of) in table.items())


def listed(names: Iterable[str]) -> str:
    """Write names as a list in a sentence: "a, b and c"."""
    *rest, last = list(names)
    return f"{', '.join(rest)} and {last}" if rest else last


def three_digits(value: float) -> str:
    """Write a number with up to three significant digits: "50", "2.07"."""
    return f"{value:.3g}".replace("-", "−")


def two_digits(value: float) -> str:
    """Write a rough number, such as a sample size, with two significant digits."""
    return f"{int(float(f'{value:.2g}')):,}"


def clock(seconds: float) -> str:
    """Write a duration in hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
