"""The results on the material of training: mistakes, analyses, checked texts and examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from setbacks.measure.statistics import Estimate

OPTIONAL = {"optional": True}  # a key that JSON omits if there is no value


@dataclass(frozen=True)
class Induction:
    """Attempts to induce mistakes, by outcome, and the instructions that gave one."""

    instructions: int
    attempts: int
    outcomes: Mapping[str, int]
    instructions_with_mistake: Estimate
    instructions_without_mistake: int


@dataclass(frozen=True)
class CheckedTexts:
    """Texts that the model wrote for its own training: how many passed, and why others did not.

    Those in place of mistakes also say for how many `mistakes` they are, since the model may try
    several times, and how many of these are `corrected`.
    """

    n: int
    kept: int
    dropped: Mapping[str, int]
    mistakes: int | None = field(default=None, metadata=OPTIONAL)
    corrected: int | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class AnalysesOf:
    """Candidate analyses of one kind of response."""

    responses: int
    candidates: int
    passed: int
    responses_with_analysis: int


@dataclass(frozen=True)
class Analyses:
    """Candidate analyses, those that passed, and how many failed each check."""

    candidates: int
    passed: Estimate
    failures: Mapping[str, int]
    mistakes: AnalysesOf
    contrast: AnalysesOf
    refusals: AnalysesOf | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Examples:
    """Training examples of one kind; `replayed` of them come from earlier runs."""

    n: int
    mean_characters: float
    replayed: int | None = field(default=None, metadata=OPTIONAL)
