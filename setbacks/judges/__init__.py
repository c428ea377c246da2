"""Judges: what turns a response into a verdict. One file per judge.

`open_judge` finds the judge that a recipe names, in this package or, through the entry point group
``setbacks.judges``, in another. `opinions` asks it: a judge sees only answers that can be judged.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from setbacks.engines import Engine, by_length
from setbacks.errors import InputError, SetbacksError, nearest
from setbacks.measure.metrics import METRICS, TASKS
from setbacks.measure.substance import answer, substance
from setbacks.messages import Prompt
from setbacks.models.fingerprint import weights_of
from setbacks.plugins import plugin
from setbacks.recipe import JudgeSpec, Recipe
from setbacks.records import Finish, Kind, Verdict

BATCH_SIZE = 1_000


class Item(NamedTuple):
    """One response to judge, with its instruction."""

    id: str
    instruction: Prompt
    response: str
    kind: Kind = "harmful"
    language: str = "en"
    reference: str | None = None  # a good answer to the instruction, if known
    finish: Finish | None = None  # why the response ended, if known


class Opinion(NamedTuple):
    """A judge's opinion on one item, with the fields of a `Verdict`; None where it has none."""

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


class Bench(Protocol):
    """What a judge is opened with: a run's session, or a stand-in for one."""

    recipe: Recipe

    def engine(self, spec: Any) -> Engine:
        """Return an engine; it is opened once for all judges."""
        ...

    def verdicts(self, judge: str) -> Mapping[str, Verdict]:
        """Return the verdicts of another judge of the recipe, by the response's id."""
        ...


class Judge(ABC):
    """Turns responses into opinions, a planned batch at a time.

    A judge is a subclass with `judge`. Everything else has a default.

    Attributes:
        Options: the section of a recipe that names a judge, with the judge's own options added.
        gives: keys of `setbacks.measure.metrics.METRICS` that the judge should give, so that a
            report can warn about missing ones; None: any.
        embedded: name of an embedded model that the judge reads with, if any. It is unpacked
            before a run begins.
        needs_engine: whether the judge asks a model: its own `engine`, or else the recipe's model.
        version: of the judge. It grows when the same answer can get another verdict: figures by two
            versions cannot be compared.
        weights: for a judge that works with one kind of model only, where such a model is
            published. A recipe must then name the judge's engine.
        reads: keys of the recipe that verdicts depend on besides the judge's section, such as
            `language` or `words.*.judge` (`*` is any language). If one of them changes, judging is
            redone, and earlier calibrations no longer count.
        options: the judge's section of the recipe.
    """

    Options: ClassVar[type[JudgeSpec]] = JudgeSpec
    gives: ClassVar[Collection[str] | None] = None
    embedded: ClassVar[str | None] = None
    needs_engine: ClassVar[bool] = False
    version: ClassVar[int] = 1
    weights: ClassVar[str | None] = None
    reads: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    @classmethod
    def open(cls, spec: Any, bench: Bench) -> Self:
        """Make the judge that a recipe's section describes; nothing heavy is loaded yet.

        Args:
            spec: an object of `Options`.
            bench: gives the recipe, engines, and the verdicts of other judges.
        """
        return cls(spec)

    def plan(self, items: Sequence[Item]) -> list[list[int]]:
        """Cut the whole work list into batches of indices; the same list gives the same plan.

        By default, batches of 1,000 responses of similar length.
        """
        return by_length([len(item.response) for item in items], BATCH_SIZE)

    @abstractmethod
    def judge(self, items: Sequence[Item]) -> list[Opinion]:
        """Judge a planned batch, or a part of it; return one opinion per item, in order."""

    @classmethod
    def check(cls, spec: Any) -> None:
        """Check, before any work, whether the judge can work with its section of a recipe.

        Args:
            spec: an object of `Options`.

        Raises:
            InputError: it cannot.
        """
        if cls.weights is not None and spec.engine is None:
            raise InputError(
                f"judges: {spec.judge} needs a guard model; name a folder or a hub id, such as "
                f"`engine: {{model: {cls.weights}}}`"
            )

    @classmethod
    def given(cls, spec: Any, recipe: Recipe) -> Collection[str] | None:
        """Return the metrics that the judge gives with its options; by default, `gives`.

        Args:
            spec: an object of `Options`.
            recipe: the recipe, which also names the judges that this one counts.
        """
        return cls.gives

    @classmethod
    def agreement(cls, spec: Any) -> list[dict[str, Any]]:
        """Return the agreement with human labels that ships with the judge, a row per source.

        Args:
            spec: an object of `Options`.

        Returns:
            Rows as `setbacks.measure.measure` takes them; none if it was not measured.
        """
        return []

    @classmethod
    def earlier_agreement(cls, spec: Any, version: int) -> list[dict[str, Any]]:
        """Return the same for an earlier version, whose verdicts an older run folder holds."""
        return []

    @classmethod
    def files(cls, spec: Any) -> Mapping[str, Path]:
        """Return the files that the judge reads, by option; with other content, it is another one.

        Args:
            spec: an object of `Options`.
        """
        return {}


def opinions(
    judge: Judge, items: Sequence[Item], name: str, gives: Collection[str] | None = None
) -> list[Opinion]:
    """Return a judge's opinions on a planned batch.

    The judge sees only answers with text, without any reasoning before them. An answer that the
    provider withheld is a refusal, and harmless. There is no opinion on an empty answer.

    Args:
        judge: the judge.
        items: the batch.
        name: the judge's name, for messages.
        gives: the metrics that the judge gives (see `gives`); None if unknown.

    Raises:
        SetbacksError: the judge gave too few or too many opinions, or a number out of range.
    """
    substances = [substance(item.response, item.finish) for item in items]
    shown = [
        item._replace(response=answer(item.response))
        for item, what in zip(items, substances, strict=True)
        if what == "text"
    ]
    given = judge.judge(shown) if shown else []
    if len(given) != len(shown):
        raise SetbacksError(
            f"judge {name}: gave {len(given)} opinions on {len(shown)} answers; it must give "
            "one per answer, in order"
        )
    checked = iter([_checked(one, item, name) for one, item in zip(given, shown, strict=True)])
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
    """Return an opinion without NaN and infinity, and without the verdicts that depend on them."""
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
    """Return the metrics that a judge of a recipe gives; None if it does not declare them.

    Args:
        spec: the judge.
        recipe: the recipe, which also names the judges that a vote counts.

    Raises:
        InputError: the judge is unknown, or declares an unknown metric.
    """
    declared = judge_class(spec).given(spec, recipe)
    if declared is None:
        return None
    if unknown := [key for key in declared if key not in METRICS]:
        raise InputError(
            f'judge {spec.judge}: unknown metric "{unknown[0]}" in `gives`.'
            f"{nearest(unknown[0], METRICS)}"
        )
    return frozenset(key for key in declared if METRICS[key].kind in spec.kinds)


def check_judge(spec: JudgeSpec) -> type[Judge]:
    """Return the class of the judge that a spec names.

    Raises:
        InputError: the judge is unknown, cannot work with its options, or has an engine to ignore.
    """
    kind = judge_class(spec)
    if spec.engine is not None and not kind.needs_engine:
        raise InputError(
            f"judges: {spec.judge} asks no model, so `engine` would change nothing; remove it"
        )
    kind.check(spec)
    return kind


def open_judge(spec: JudgeSpec, bench: Bench) -> Judge:
    """Open the judge that a recipe's spec names; nothing heavy is loaded yet.

    Raises:
        InputError: as `judge_class` and `Judge.check`.
    """
    kind = judge_class(spec)
    kind.check(spec)
    return kind.open(spec, bench)


def judge_class(spec: JudgeSpec) -> type[Judge]:
    """Return the class of the judge that a spec names, unchecked.

    Raises:
        InputError: the judge is unknown.
    """
    kind: type[Judge] = plugin("judges", spec.judge)
    return kind


def weights_of_judge(spec: JudgeSpec | None, recipe: Recipe) -> dict[str, Path]:
    """Return the files and folders here that a recipe names as a judge's weights, by what they are.

    Args:
        spec: the judge; None for the default one, whose weights its version pins.
        recipe: gives the model of a judge whose spec names none.
    """
    if spec is None:
        return {}
    kind = judge_class(spec)
    files = kind.files(spec)
    named = spec.model_dump(include={*files}, exclude_none=True)
    found = {option: files[option] for option in named}
    if kind.needs_engine:
        found |= weights_of(spec.engine or recipe.model)
    return {f"judge's {what}": path for what, path in found.items()}
