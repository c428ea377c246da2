"""Numbers as people read them: the one place that writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Written(NamedTuple):
    """An estimate as text; empty where there is no number."""

    value: str
    interval: str
    n: int


def percent(cell: Mapping[str, Any]) -> Written:
    """Write a rate as a percentage with one decimal."""
    return _written(cell, 100, 1)


def score(cell: Mapping[str, Any]) -> Written:
    """Write a score of 1 to 10 with two decimals."""
    return _written(cell, 1, 2)


def _written(cell: Mapping[str, Any], scale: int, places: int) -> Written:
    if cell["value"] is None:
        return Written("–", "", cell["n"])
    value = f"{scale * cell['value']:.{places}f}"
    if cell["low"] is None:
        return Written(value, "", cell["n"])
    low, high = (f"{scale * cell[key]:.{places}f}" for key in ("low", "high"))
    return Written(value, f"{low} – {high}", cell["n"])


def points(cell: Mapping[str, Any], scale: int = 100) -> Written:
    """Write a difference with its sign: in points, or as it is for a scale of 1."""
    places = 1 if scale == 100 else 2
    value, low, high = (
        "" if cell[key] is None else f"{scale * cell[key]:+.{places}f}".replace("-", "−")
        for key in ("value", "low", "high")
    )
    return Written(value, f"{low} to {high}" if low else "", cell["n"])


def p_value(value: float | None) -> str:
    """Write a p-value with three decimals."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def clock(seconds: float) -> str:
    """Write a duration in hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
