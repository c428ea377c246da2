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
from setbacks.records import Kind, Verdict

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
    reference: str | None = None  # a good answer to the instruction, where there is one


class Opinion(NamedTuple):
    """What a judge says of one item; None where it does not say, or could not (`Verdict`)."""

    harmful: bool | None = None
    refused: bool | None = None
    p_harmful: float | None = None
    p_refused: float | None = None
    harmless_score: float | None = None
    helpful_score: float | None = None
    preferred: bool | None = None
    category: str | None = None
    raw: str | None = None
    attempts: int = 1


class Judge(Protocol):
    """Turns responses into opinions, a planned batch at a time.

    A judge that is made for one kind of model says where that is published by an attribute
    `weights`; a recipe must then name its engine, since no other model will do.

    A judge that reads with an embedded model names it by an attribute `embedded`; the model is then
    made before a run begins.

    A judge whose agreement with human labels has been measured says so by a static method
    `agreement`, which returns a list of sources as `setbacks.measure.measure` takes them.
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


def check_judge(spec: JudgeSpec) -> Any:
    """Return the class of the judge that a spec names.

    Raises:
        InputError: there is none of that name, the spec says what it does not take or lacks what
            it needs, or its heads are not there.
    """
    kind = plugin("judges", spec.judge)
    asked = inspect.signature(kind).parameters
    for key in ("heads", "verdict", "pairwise", "of"):
        if key not in asked and getattr(spec, key) != type(spec).model_fields[key].default:
            raise InputError(f"judges: {spec.judge} takes no `{key}`; leave it out")
    if spec.heads is not None and not Path(spec.heads).is_file():
        raise InputError(
            f"{spec.heads}: no such heads; `setbacks calibrate probe --fit LABELS` makes some"
        )
    if "of" in asked and not spec.of:
        raise InputError(
            f"judges: {spec.judge} needs other judges of the recipe, such as `of: [probe, llm]`"
        )
    if (
        spec.verdict == "probability"
        and spec.engine is not None
        and not plugin("engines", spec.engine.engine).shows_probabilities
    ):
        raise InputError(
            f"judges: {spec.judge}: the engine {spec.engine.engine} gives no token "
            "probabilities; leave out `verdict: probability`, or name another engine"
        )
    weights = getattr(kind, "weights", None)
    if weights is not None and spec.engine is None:
        raise InputError(
            f"judges: {spec.judge} needs a guard model; name a folder or a hub id, such as "
            f"`engine: {{model: {weights}}}`"
        )
    return kind


def open_judge(spec: JudgeSpec, run: RunFolder) -> Judge:
    """Open the judge that a recipe's spec names; nothing heavy is loaded yet.

    A judge class is made with what its constructor asks for, of: `engine` (the spec's, or the
    run's own model), `language`, `retries`, `seed`, `verdict`, `pairwise`, `heads` (where the spec
    gives some), and `of`, the verdicts of other judges by name and response.

    Raises:
        InputError: as `check_judge`.
    """
    kind = check_judge(spec)
    offered: dict[str, Callable[[], Any]] = {
        "engine": lambda: run.engine(spec.engine or run.recipe.model),
        "language": lambda: run.recipe.language,
        "retries": lambda: spec.retries,
        "seed": lambda: run.recipe.seed,
        "verdict": lambda: spec.verdict,
        "pairwise": lambda: spec.pairwise,
        "of": lambda: {name: _said(run, name) for name in spec.of},
    }
    if spec.heads is not None:
        offered["heads"] = lambda: Path(str(spec.heads))
    asked = inspect.signature(kind).parameters
    judge: Judge = kind(**{name: make() for name, make in offered.items() if name in asked})
    return judge


def _said(run: RunFolder, name: str) -> dict[str, Verdict]:
    """What a judge said in this run, by the response's id."""
    return {
        verdict.response_id: verdict
        for file in sorted((run.path / "verdicts").glob(f"*.{name}.jsonl"))
        for verdict in run.records(f"verdicts/{file.name}", Verdict)
    }
