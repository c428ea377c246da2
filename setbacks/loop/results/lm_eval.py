"""Results of lm-evaluation-harness: the files `samples_*.jsonl` that `--log_samples` writes.

Source: https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/interface.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setbacks.loop.results.files import head, lines
from setbacks.loop.results.item import Item

# Fields that are not metrics.
OTHERS = {
    "doc_id",
    "doc",
    "target",
    "arguments",
    "resps",
    "filtered_resps",
    "filter",
    "metrics",
    "doc_hash",
    "prompt_hash",
    "target_hash",
}


def recognizes(path: Path) -> bool:
    """Return whether a file holds samples of lm-eval."""
    return path.is_file() and {"doc_id", "arguments", "resps"} <= head(path).keys()


def items(path: Path) -> Iterator[Item]:
    """Yield every sample; its metrics are those that the file lists, or its numeric fields."""
    for _, row in lines(path):
        names = row.get("metrics") or [key for key in row if key not in OTHERS]
        scores = {key: row[key] for key in names if isinstance(row.get(key), bool | int | float)}
        if row.get("filter") not in (None, "none"):
            scores = {f"{key} ({row['filter']})": value for key, value in scores.items()}
        yield Item(_prompt(row.get("arguments")), _first(row.get("filtered_resps")), scores)


def _prompt(arguments: Any) -> str:
    """Return the context of a request: the first of its arguments, of the first request."""
    while isinstance(arguments, list | dict) and arguments:
        arguments = next(iter(arguments.values() if isinstance(arguments, dict) else arguments))
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def _first(value: Any) -> str | None:
    while isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) else None
