"""Judges: what turns a response into a verdict. One file a judge.

A judge is anything with this shape; `open_judge` finds it by name, in this package or, through the
entry point group ``setbacks.judges``, in another. `opinions` is how it is asked: it sees only
answers that can be judged.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from setbacks.errors import InputError, SetbacksError, nearest
from setbacks.measure.metrics import METRICS, TASKS
from setbacks.measure.substance import answer, substance
from setbacks.plugins import plugin
from setbacks.records import Finish, Kind, Verdict

if TYPE_CHECKING:
    from setbacks.engines import Engine
    from setbacks.recipe import JudgeSpec, Recipe


class Item(NamedTuple):
    """One response to judge, with what it answers."""

    id: str
    instruction: str
    response: str
    kind: Kind = "harmful"
    language: str = "en"
    reference: str | None = None  # a good answer to the instruction, where there is one
    finish: Finish | None = None  # why the response ended, where that is known


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

    A judge declares the metrics that it gives (keys of `setbacks.measure.metrics.METRICS`) by an
    attribute `gives`, such as ``("harmless_rate", "compliance")``. Then a report notices if it gave
    none. Without the attribute, reports go by what the judge did give.

    A judge whose agreement with human labels has been measured says so by a static method
    `agreement`, which returns a list of sources as `setbacks.measure.measure` takes them.
    """

    def plan(self, items: Sequence[Item]) -> list[list[int]]:
        """Cut the whole work list into batches of indices; the same list gives the same plan."""
        ...

    def judge(self, items: Sequence[Item]) -> list[Opinion]:
        """Judge a planned batch, or a part of it; one opinion an item, in order."""
        ...


class Bench(Protocol):
    """What a judge may need of the place where it works: a run's session, or another."""

    recipe: Recipe

    def engine(self, spec: Any) -> Engine:
        """Open an engine once, and give the same one to every judge that asks."""
        ...

    def verdicts(self, judge: str) -> Mapping[str, Verdict]:
        """Return what another judge of the recipe said, by the response's id."""
        ...


def opinions(
    judge: Judge, items: Sequence[Item], name: str, gives: Collection[str] | None = None
) -> list[Opinion]:
    """Return a judge's opinions on a planned batch.

    The judge sees only answers with text, without the thought that may stand before them. A
    refusal by the provider needs no judge: it is a refusal, and harmless. On an answer that says
    nothing there is no opinion.

    Args:
        judge: the judge.
        items: the batch.
        name: the judge's name, for messages.
        gives: the metrics that the judge gives (`gives`); None where they are not known.

    Raises:
        SetbacksError: the judge gave too few or too many opinions, or a number out of its range.
    """
    substances = [substance(item.response, item.finish) for item in items]
    shown = [
        item._replace(response=answer(item.response))
        for item, what in zip(items, substances, strict=True)
        if what == "text"
    ]
    made = judge.judge(shown) if shown else []
    if len(made) != len(shown):
        raise SetbacksError(
            f"judge {name}: gave {len(made)} opinions on {len(shown)} answers; it must give one on "
            "each, in order"
        )
    checked = iter([_checked(one, item, name) for one, item in zip(made, shown, strict=True)])
    tasks = {TASKS[key] for key in METRICS if key in TASKS and (gives is None or key in gives)}
    refusal = Opinion(
        harmful=False if "harmful" in tasks else None,
        refused=True if "refused" in tasks else None,
    )
    return [
        next(checked) if what == "text" else refusal if what == "refusal" else Opinion()
        for what in substances
    ]


def _checked(opinion: Opinion, item: Item, name: str) -> Opinion:
    """Return an opinion without numbers that are none (NaN), and the verdicts that rest on them."""
    fields = (
        ("p_harmful", "harmful", 0, 1),
        ("p_refused", "refused", 0, 1),
        ("harmless_score", "harmless_score", 1, 10),
        ("helpful_score", "helpful_score", 1, 10),
    )
    for field, verdict, low, high in fields:
        value = getattr(opinion, field)
        if value is None:
            continue
        if not math.isfinite(value):  # a model that overflowed
            nothing: dict[str, Any] = dict.fromkeys((field, verdict))
            opinion = opinion._replace(**nothing)
        elif not low <= value <= high:
            what = "probability" if high == 1 else "score"
            raise SetbacksError(
                f"judge {name}: gave answer {item.id} a {what} of {value}; it must be in "
                f"[{low}, {high}]"
            )
    return opinion


def gives(spec: JudgeSpec, recipe: Recipe) -> frozenset[str] | None:
    """Return the metrics that a judge of a recipe gives; None where it does not declare them.

    Args:
        spec: the judge.
        recipe: names the judges that a vote counts.

    Raises:
        InputError: there is no such judge, or it declares an unknown metric.
    """
    kind = plugin("judges", spec.judge)
    if "of" in inspect.signature(kind).parameters:
        counted = [gives(other, recipe) for other in recipe.judges if other.called in spec.of]
        known = [found for found in counted if found is not None]
        declared = frozenset().union(*known) if known and len(known) == len(counted) else None
    else:
        declared = getattr(kind, "gives", None)
    if declared is None:
        return None
    if unknown := [key for key in declared if key not in METRICS]:
        raise InputError(
            f'judge {spec.judge}: unknown metric "{unknown[0]}" in `gives`.'
            f"{nearest(unknown[0], METRICS)}"
        )
    return frozenset(
        key
        for key in declared
        if METRICS[key].kind in spec.kinds and (key != "preferred" or spec.pairwise)
    )


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


def open_judge(spec: JudgeSpec, bench: Bench) -> Judge:
    """Open the judge that a recipe's spec names; nothing heavy is loaded yet.

    A judge class is made with what its constructor asks for, of: `engine` (the spec's, or the
    run's own model), `language`, `retries`, `seed`, `verdict`, `pairwise`, `heads` (where the spec
    gives some), and `of`, the verdicts of other judges by name and response.

    Raises:
        InputError: as `check_judge`.
    """
    kind = check_judge(spec)
    offered: dict[str, Callable[[], Any]] = {
        "engine": lambda: bench.engine(spec.engine or bench.recipe.model),
        "language": lambda: bench.recipe.language,
        "retries": lambda: spec.retries,
        "seed": lambda: bench.recipe.seed,
        "verdict": lambda: spec.verdict,
        "pairwise": lambda: spec.pairwise,
        "of": lambda: {name: bench.verdicts(name) for name in spec.of},
    }
    if spec.heads is not None:
        offered["heads"] = lambda: Path(str(spec.heads))
    asked = inspect.signature(kind).parameters
    judge: Judge = kind(**{name: make() for name, make in offered.items() if name in asked})
    return judge
