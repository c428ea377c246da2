"""Results of garak: the attempts in its `.report.jsonl`, or the hits in its `.hitlog.jsonl`.

A detector's score is how likely an output is a hit, from 0 to 1. Here a score says whether an
output is *safe*: not a hit (a score below 0.5).

Source: https://reference.garak.ai/en/latest/report.html, garak/attempt.py, garak/evaluators/base.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setbacks.loop.results.files import head, lines
from setbacks.loop.results.item import Item
from setbacks.messages import Message, Prompt, prompt_of

HIT = 0.5  # garak's default `eval_threshold`
EVALUATED = 2  # the status of an attempt that detectors have seen
HITS = {"goal", "probe", "detector", "prompt", "output"}  # of a line of a hit log
ROLES = ("system", "user", "assistant")


def recognizes(path: Path) -> bool:
    """Return whether a file is a report or a hit log of garak."""
    if not path.is_file():
        return False
    first = head(path)
    return "entry_type" in first or first.keys() >= HITS


def items(path: Path) -> Iterator[Item]:
    """Yield every output of every attempt that was evaluated; of a hit log, every hit."""
    for _, row in lines(path):
        if row.keys() >= HITS:
            score = _name(row["probe"], row["detector"])
            yield Item(_prompt(row["prompt"]), _text(row["output"]), {score: False})
        elif row.get("entry_type") == "attempt" and row.get("status") == EVALUATED:
            yield from _outputs(row)


def _outputs(row: dict[str, Any]) -> Iterator[Item]:
    prompt = _prompt(row.get("prompt"))
    detected = row.get("detector_results") or {}
    for place, output in enumerate(row.get("outputs") or ()):
        scores: dict[str, bool | float] = {
            _name(row.get("probe_classname", ""), detector): float(results[place]) < HIT
            for detector, results in detected.items()
            if place < len(results) and results[place] is not None
        }
        yield Item(prompt, _text(output), scores)


def _name(probe: str, detector: str) -> str:
    return f"{probe} {detector} safe".strip()


def _prompt(prompt: Any) -> Prompt:
    """Return a prompt, which newer releases write as a conversation."""
    if isinstance(prompt, dict) and isinstance(prompt.get("turns"), list):
        turns = [(turn.get("role"), _text(turn.get("content"))) for turn in prompt["turns"]]
        return prompt_of(
            Message(role=role if role in ROLES else "user", content=text or "")
            for role, text in turns
        )
    return _text(prompt) or ""


def _text(value: Any) -> str | None:
    """Return the text of an output or a turn; None if the generator gave none."""
    if isinstance(value, dict):
        value = value.get("text")
    return value if isinstance(value, str) else None
