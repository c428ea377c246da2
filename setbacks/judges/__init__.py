"""Judges: what turns a response into a verdict. One file a judge.

A judge is anything with this shape; `open_judge` finds it by name, in this package or, through the
entry point group ``setbacks.judges``, in another.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from setbacks.errors import InputError
from setbacks.plugins import plugin
from setbacks.records import Kind

if TYPE_CHECKING:
    from setbacks.recipe import JudgeSpec
    from setbacks.runfolder import RunFolder


class Item(NamedTuple):
    """One response to judge, with what it answers."""

    id: str
    instruction: str
    response: str
    kind: Kind = "harmful"
    language: str = "en"


class Opinion(NamedTuple):
    """What a judge says of one item; None where it does not say, or could not (`Verdict`)."""

    harmful: bool | None = None
    refused: bool | None = None
    p_harmful: float | None = None
    p_refused: float | None = None
    harmless_score: float | None = None
    helpful_score: float | None = None
    raw: str | None = None
    attempts: int = 1


class Judge(Protocol):
    """Turns responses into opinions, a planned batch at a time.

    A judge whose agreement with human labels has been measured says so by a static method
    `agreement`, which returns a list of sources as `setbacks.metrics.measure` takes them.
    """

    def plan(self, items: Sequence[Item]) -> list[list[int]]:
        """Cut the whole work list into batches of indices; the same list gives the same plan."""
        ...

    def judge(self, items: Sequence[Item]) -> list[Opinion]:
        """Judge one planned batch; one opinion an item, in order."""
        ...


def agreement(kind: str) -> list[dict[str, Any]]:
    """Return what a kind of judge is worth against human labels; nothing if unmeasured.

    Raises:
        InputError: there is no such judge.
    """
    measured = getattr(plugin("judges", kind), "agreement", None)
    return [] if measured is None else measured()


def open_judge(spec: JudgeSpec, run: RunFolder) -> Judge:
    """Open the judge that a recipe's spec names; nothing heavy is loaded yet.

    A judge class is made with what its constructor asks for, of: `engine` (the spec's, or the
    run's own model), `language`, `retries`, `seed`, `heads` (where the spec gives some).

    Raises:
        InputError: there is no judge of that name, or it takes no heads.
    """
    kind = plugin("judges", spec.judge)
    offered: dict[str, Callable[[], Any]] = {
        "engine": lambda: run.engine(spec.engine or run.recipe.model),
        "language": lambda: run.recipe.language,
        "retries": lambda: spec.retries,
        "seed": lambda: run.recipe.seed,
    }
    asked = inspect.signature(kind).parameters
    if spec.heads is not None:
        if "heads" not in asked:
            raise InputError(f"judges: {spec.judge} takes no `heads`; leave them out")
        offered["heads"] = lambda: Path(str(spec.heads))
    judge: Judge = kind(**{name: make() for name, make in offered.items() if name in asked})
    return judge
