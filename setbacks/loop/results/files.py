"""Reading the files of other tools: JSON, and JSON Lines of which one line may be broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setbacks.errors import InputError
from setbacks.text import one_line


def head(path: Path) -> dict[str, Any]:
    """Return the first line of a JSON Lines file; {} for anything else."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            value = json.loads(file.readline(10_000_000))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def document(path: Path) -> Any:
    """Return the value of a JSON file; None for anything else, such as JSON Lines."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None


def lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line.

    Raises:
        InputError: a line is not a JSON object; the last one may be incomplete, since its writer
            may still be at work.
    """
    broken = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                if broken:
                    break
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    broken = number
                    continue
                if not isinstance(value, dict):
                    raise InputError(one_line(f"{path}, line {number}: not a JSON object"))
                yield number, value
            else:
                return
    except (OSError, ValueError) as error:
        raise InputError(one_line(f"{path}: cannot be read ({error})")) from None
    raise InputError(one_line(f"{path}, line {broken}: not JSON; remove or repair that line"))
