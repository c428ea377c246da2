"""Results of garak: the attempts in its `.report.jsonl`, by detector.

A detector's score is how likely an output is a hit, from 0 to 1. Here a score says how *safe* the
outputs of an attempt are: the share of them that are not hits (a score below 0.5).

Source: https://reference.garak.ai/en/latest/report.html and garak/attempt.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setbacks.loop.results.files import head, lines
from setbacks.loop.results.item import Item

HIT = 0.5  # garak's default `eval_threshold`
EVALUATED = 2  # the status of an attempt that detectors have seen


def recognizes(path: Path) -> bool:
    """Return whether a file is a report of garak."""
    return path.is_file() and "entry_type" in head(path)


def items(path: Path) -> Iterator[Item]:
    """Yield every attempt that was evaluated."""
    for _, row in lines(path):
        if row.get("entry_type") != "attempt" or row.get("status") != EVALUATED:
            continue
        outputs = [_text(output) for output in row.get("outputs") or ()]
        scores: dict[str, bool | float] = {}
        for detector, results in (row.get("detector_results") or {}).items():
            safe = [float(score) < HIT for score in results if score is not None]
            if safe:
                name = f"{row.get('probe_classname', '')} {detector} safe".strip()
                scores[name] = safe[0] if len(safe) == 1 else sum(safe) / len(safe)
        yield Item(_prompt(row.get("prompt")), outputs[0] if outputs else None, scores)


def _prompt(prompt: Any) -> str:
    """Return a prompt, which newer releases write as a conversation, as text."""
    if isinstance(prompt, dict) and isinstance(prompt.get("turns"), list):
        return "\n".join(_text(turn.get("content")) for turn in prompt["turns"])
    return _text(prompt)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("text")
    return value if isinstance(value, str) else ""
