"""What a harvest is told, and the names of the files that it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from setbacks.loop.harvest.redaction import Redactor

ARM = "logs"
SCANNED = "scanned.jsonl"
CANDIDATES = "candidates.jsonl"
SETBACKS = "setbacks.jsonl"


@dataclass(frozen=True)
class Settings:
    """What a harvest is told, besides its logs and judge.

    Args:
        safe: whether every request in the logs is safe, so that refusing it is a setback.
        unsure: distance of a probability from 0.5 within which the judge is unsure.
        redactor: replaces personal data; None keeps it.
        seen: run folders of earlier rounds.
        against: recipes whose test prompts are kept apart, besides the built-in ones.
        keep_days: days until the folder expires.
    """

    safe: bool = False
    unsure: float = 0.2
    redactor: Redactor | None = None
    seen: Sequence[Path] = ()
    against: Sequence[str] = ()
    keep_days: int = 90
