"""Results of promptfoo: the JSON that `promptfoo eval --output results.json` writes.

Source: https://www.promptfoo.dev/docs/configuration/outputs
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setbacks.data.conversations import conversation
from setbacks.errors import InputError
from setbacks.loop.results.files import document
from setbacks.loop.results.item import Item
from setbacks.messages import Prompt, prompt_of
from setbacks.text import one_line

_ERROR = 2  # of promptfoo's ResultFailureReason


def recognizes(path: Path) -> bool:
    """Return whether a file has promptfoo's form."""
    if path.suffix != ".json" or not path.is_file():
        return False
    return _rows(document(path)) is not None


def items(path: Path) -> Iterator[Item]:
    """Yield every output, by provider; its metrics are `success`, `score` and the named scores."""
    for number, row in enumerate(_rows(document(path)) or (), 1):
        if not isinstance(row, dict):
            raise InputError(one_line(f"{path}, result {number}: not an object"))
        provider = row.get("provider")
        of = provider.get("label") or provider.get("id") if isinstance(provider, dict) else provider
        scores = {
            key: row[key]
            for key in ("success", "score")
            if isinstance(row.get(key), bool | int | float)
        }
        named = {
            name: value
            for name, value in (row.get("namedScores") or {}).items()
            if isinstance(value, bool | int | float)
        }
        failed = row.get("failureReason") == _ERROR  # the provider gave no answer
        yield Item(_prompt(row), _output(row), {} if failed else scores | named, str(of or ""))


def _rows(data: Any) -> list[Any] | None:
    """Return the list of results; it is nested since version 2 of the format."""
    held = data.get("results") if isinstance(data, dict) else None
    rows = held.get("results") if isinstance(held, dict) else held
    if isinstance(rows, list) and all(isinstance(row, dict) and "prompt" in row for row in rows):
        return rows
    return None


def _prompt(row: dict[str, Any]) -> Prompt:
    """Return a prompt; a chat is a list of messages, as JSON text."""
    prompt = row.get("prompt")
    raw = prompt.get("raw") if isinstance(prompt, dict) else prompt
    try:
        turns = conversation(raw, set())
    except ValueError:
        turns = None
    if turns:
        return prompt_of(turns)
    return raw if isinstance(raw, str) else json.dumps(raw)


def _output(row: dict[str, Any]) -> str | None:
    response = row.get("response")
    output = response.get("output") if isinstance(response, dict) else None
    return output if isinstance(output, str) or output is None else json.dumps(output)
