"""Results of Inspect AI: `.eval` and JSON logs, read by Inspect itself (the extra `inspect`).

Source: https://inspect.aisi.org.uk/eval-logs.html
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setbacks.errors import InputError
from setbacks.loop.results.item import Item
from setbacks.text import one_line

if TYPE_CHECKING:
    from inspect_ai.scorer import Score


def recognizes(path: Path) -> bool:
    """Return whether a file is an Inspect log."""
    if path.suffix == ".eval":
        return path.is_file()
    if path.suffix != ".json" or not path.is_file():
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        start = file.read(4000)
    return '"eval"' in start and '"status"' in start


def items(path: Path) -> Iterator[Item]:
    """Yield every sample, with each of its scores as a number.

    Raises:
        InputError: Inspect is not installed, or the log cannot be read or is not complete.
    """
    try:
        from inspect_ai.log import read_eval_log

        from setbacks.inspect_ai.messages import from_input
    except ImportError:
        raise InputError(
            f"{path}: an Inspect log needs inspect-ai; pip install 'setbacks[inspect]'"
        ) from None
    try:
        log = read_eval_log(str(path))
    except Exception as error:  # zip, JSON and schema errors of several libraries
        raise InputError(one_line(f"{path}: Inspect cannot read it ({error})")) from None
    if log.status != "success":
        raise InputError(
            one_line(f"{path}: the evaluation did not finish (status {log.status}); run it again")
        )
    for sample in log.samples or ():
        scores: dict[str, bool | float] = {}
        for name, score in (sample.scores or {}).items():
            scores |= _values(name, score)
        yield Item(from_input(sample.input), sample.output.completion, scores)


def _values(name: str, score: Score) -> dict[str, bool | float]:
    """Return the numbers of a score; a score of several values gives one for each."""
    value: Any = score.value
    if isinstance(value, dict):
        return {
            f"{name}.{key}": number
            for key, one in value.items()
            if (number := _number(one)) is not None
        }
    number = _number(value)
    return {} if number is None else {name: number}


def _number(value: Any) -> bool | float | None:
    """Return a value as Inspect's `value_to_float` reads it: C and I are right and wrong."""
    from inspect_ai.scorer import CORRECT, INCORRECT

    if isinstance(value, bool | int | float):
        return value
    if value in (CORRECT, INCORRECT):
        return bool(value == CORRECT)
    if isinstance(value, str) and value.lower() in ("yes", "true", "no", "false"):
        return value.lower() in ("yes", "true")
    try:
        return float(value)
    except (TypeError, ValueError):
        return {"P": 0.5, "N": 0.0}.get(value) if isinstance(value, str) else None
