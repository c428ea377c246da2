"""Studies: several runs that answer one question. One file each.

The entry point group ``setbacks.studies`` finds a study by name, in this package or in another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from setbacks.data import read_once
from setbacks.errors import InputError
from setbacks.files import expanded, kind_of, read_json
from setbacks.measure.differences import corrected
from setbacks.measure.formatting import POINTS, listed, with_interval
from setbacks.measure.metrics import TITLES, significant
from setbacks.measure.results import OPTIONAL, PairChange
from setbacks.measure.statistics import Difference, Estimate
from setbacks.notices import notice
from setbacks.pipeline import check
from setbacks.plugins import plugin
from setbacks.recipe import Recipe, Section
from setbacks.records import Arm, Way
from setbacks.report.page import FINDINGS, Findings, Picture, Table, write
from setbacks.report.plots import forest
from setbacks.runs.arms import trained_arm
from setbacks.runs.progress import Show
from setbacks.stages.unused import is_set
from setbacks.studies.scores import Scores, difference, estimate, gather, unsteady
from setbacks.studies.variants import Variant, each, prepare_folder, same_model, variant

SHOWN = ("harmless_rate", "compliance", "balanced_safety")


class Study(ABC):
    """Answers one question by several runs in a folder.

    A study is a subclass with a `title`, a `question` and `run`. Everything else has a default.

    Attributes:
        title: names the study on its page.
        question: what the study answers, in a sentence.
        Options: the section `study` of a recipe.
        replaces: dotted keys that the study sets itself; a notice says so if the recipe sets one.
    """

    title: ClassVar[str]
    question: ClassVar[str]
    Options: ClassVar[type[Section]] = Section
    replaces: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def options(cls, recipe: Recipe) -> Any:
        """Return the study's options in a recipe, an object of `Options`.

        Raises:
            InputError: an unknown key or a bad value.
        """
        return recipe.options(cls.Options)

    def check(self, recipe: Recipe, options: Any) -> None:
        """Check, before any work, whether the study can run.

        Args:
            recipe: the runs' recipe.
            options: an object of `Options`.

        Raises:
            InputError: it cannot.
        """
        check(recipe)

    @abstractmethod
    def run(self, recipe: Recipe, options: Any, folder: Path, show: Show | None) -> Findings:
        """Do the missing work in the folder, and return the findings.

        Args:
            recipe: the runs' recipe.
            options: an object of `Options`.
            folder: the study's folder; `setbacks.studies.variants.each` makes runs in it.
            show: takes the progress: what, done, total.

        Raises:
            InputError: there are too few records.
        """


@read_once()
def carry_out(name: str, recipe: Recipe, folder: Path, show: Show | None = None) -> Path:
    """Run the study `name`, or resume it; return its page.

    Args:
        name: the study's.
        recipe: the runs' recipe, with the study's options.
        folder: the study's folder; an earlier study of the same recipe is resumed.
        show: takes the progress: what, done, total.

    Raises:
        InputError: there is no such study; the recipe, its data or the folder is wrong, or there
            are too few records.
        SetbacksError: a step failed; progress is saved.
    """
    folder = expanded(folder)
    study: Study = plugin("studies", name)()
    options = study.options(recipe)
    if recipe.evaluate:
        raise InputError(
            "evaluate: a study or a comparison trains its own arms; remove it, or measure these "
            "arms with `setbacks run`"
        )
    study.check(recipe, options)
    if recipe.train.seed is not None and hasattr(options, "seeds"):
        notice("train.seed is set, but changes nothing: the seeds of trainings count from `seed`")
    default = Recipe(train=recipe.train.defaults())
    for key in study.replaces:
        if is_set(key, recipe, default):
            notice(f"{key} is set, but changes nothing: the study {study.title} sets it")
    _check_page(folder, name)
    recipe = prepare_folder(folder, recipe)
    findings = study.run(recipe, options, folder, show)
    return write(folder, replace(findings, study=name))


def _check_page(folder: Path, name: str) -> None:
    """Check that a folder has no page of another study or of a loop, which would be overwritten.

    Raises:
        InputError: it has one.
    """
    if kind_of(folder) == "loop":
        raise InputError(f"{folder}: holds a loop; choose another folder with --out")
    path = folder / FINDINGS
    if not path.exists():
        return
    held = read_json(path, "delete it, and the same command writes it again").get("study")
    if held not in (None, name):
        raise InputError(
            f"{folder}: holds the findings of another study ({held}); choose another folder with "
            "--out"
        )


@dataclass(frozen=True)
class VariantRow:
    """The results of a variant's arm; `difference` is its balanced safety minus the first's."""

    arm: Arm
    harmless_rate: Estimate
    compliance: Estimate
    balanced_safety: Estimate
    degenerate: Estimate
    difference: Difference | None = field(default=None, metadata=OPTIONAL)

    @property
    def rates(self) -> tuple[Estimate, ...]:
        """Its rates, in the order of the table."""
        return self.harmless_rate, self.compliance, self.balanced_safety, self.degenerate


def against_first(
    study: Study,
    recipe: Recipe,
    folder: Path,
    variants: Sequence[Variant],
    show: Show | None,
    title: str,
) -> Findings:
    """Run variants and compare each with the first, for every judge and way of answering.

    Args:
        study: whose title and question the findings have.
        recipe: of the study.
        folder: of the study.
        variants: named NAME.SEED; those of one name are averaged.
        show: called with progress.
        title: of the tables.

    Returns:
        Findings, with the rows of each judge as data.
    """
    done = list(each(folder, variants, "report", show, jobs=recipe.jobs))
    answer: list[str] = []
    cautions = _describe_same(same_model(done))
    tables: list[Table] = []
    pictures: list[Picture] = []
    data: dict[str, list[VariantRow]] = {}
    for number, judge in enumerate(spec.called for spec in recipe.judges):
        several = len(recipe.judges) > 1
        by_metric = gather(done, judge)
        of = {
            arm: {metric: by_arm[arm] for metric, by_arm in by_metric.items()}
            for arm in by_metric["harmless_rate"]
        }
        data[judge] = rows = [_row(arm, of, variants[0].arm) for arm in of]
        answer.append((f"By {judge}: " if several else "") + describe_differences(rows))
        cautions += unsteady(of, _changes(rows), "variant", "Train with more seeds")
        by = f", by {judge}" if several else ""
        tables.append(_table(title + by, rows, variants[0].arm))
        pictures += _forest(f"Balanced safety{by}", rows, f"f{number}")
    return Findings(
        title=f"{recipe.name}: {study.title}",
        question=study.question,
        answer=[*dict.fromkeys([*answer, *cautions])],
        tables=tables,
        pictures=pictures,
        data=data,
    )


def _row(arm: Arm, of: Mapping[Arm, Mapping[str, Scores]], first: str) -> VariantRow:
    """Return an arm's rates, and its difference from the first variant, asked in the same way."""
    base = trained_arm(first, arm.way)
    return VariantRow(
        arm=arm,
        **{metric: estimate(metric, of[arm]) for metric in (*SHOWN, "degenerate")},
        difference=None if arm == base else difference("balanced_safety", of[arm], of[base]),
    )


def _table(title: str, rows: Sequence[VariantRow], first: str) -> Table:
    label = trained_arm(first).label
    several = len(_bases(rows)) > 1
    same_way = f", from the arm of {label} that answers in the same way" if several else ""
    return Table(
        title,
        [
            "Variant",
            *(TITLES[m] for m in SHOWN),
            "Degenerate answers",
            f"against {label}, in points",
        ],
        [
            [
                row.arm.label,
                *map(with_interval, row.rates),
                with_interval(row.difference, POINTS) if row.difference else "",
            ]
            for row in rows
        ],
        f"Rates in %, 95 % intervals in brackets. The difference is in balanced safety{same_way}.",
    )


def _forest(title: str, rows: Sequence[VariantRow], name: str) -> list[Picture]:
    """Draw the balanced safety of the arms that have one, if any does."""
    drawn = {row.arm: row.balanced_safety for row in rows if row.balanced_safety.value is not None}
    if not drawn:
        return []
    guided = [arm.label for arm in drawn if arm.way == "guided"]
    svg = forest([(arm.label, cell) for arm, cell in drawn.items()], name, guided=guided)
    note = f"95 % intervals; the dashed line is at {next(iter(drawn)).label}."
    return [Picture(title, svg, note + (" Filled dots answered with guidance." if guided else ""))]


def _bases(rows: Sequence[VariantRow]) -> dict[Way, Arm]:
    """The arms of the first variant, which the others are compared with, by way of answering."""
    return {row.arm.way: row.arm for row in rows if row.difference is None}


def _changes(rows: Sequence[VariantRow]) -> list[PairChange]:
    """The differences of rows, corrected together (Holm); without a value if one has no scores."""
    bases = _bases(rows)
    others = [(row.arm, row.difference) for row in rows if row.difference is not None]
    changes = corrected([change for _, change in others])
    return [
        PairChange.of(arm, bases[arm.way], change)
        for (arm, _), change in zip(others, changes, strict=True)
    ]


def describe_differences(rows: Sequence[VariantRow]) -> str:
    """Say in words which variants differ significantly from the first (Holm).

    Args:
        rows: of `against_first`, the untrained model's among them.
    """
    bases, changes = _bases(rows).values(), _changes(rows)
    known = [change for change in changes if change.value is not None]
    if changes and not known:
        return (
            "No variant can be compared: balanced safety needs scored answers to harmful and to "
            "safe prompts."
        )
    parts = []
    for base in bases:
        moved = [x for x in known if x.against == base and significant(x)]
        above = [x.arm.label for x in moved if (x.value or 0) > 0]
        below = [x.arm.label for x in moved if (x.value or 0) < 0]
        for word, names in (("above", above), ("below", below)):
            if names:
                parts.append(f"Significantly {word} {base.label}: {', '.join(names)}.")
    if not parts:
        named = " or ".join(base.label for base in bases)
        parts.append(f"No variant differs significantly from {named}.")
    if missing := [change.arm.label for change in changes if change.value is None]:
        parts.append(f"Without a balanced safety to compare: {', '.join(missing)}.")
    return " ".join(parts)


def _describe_same(copies: Mapping[str, str]) -> list[str]:
    """Say which variants are one model, though they have several rows."""
    lines = []
    for first in dict.fromkeys(copies.values()):
        names = [trained_arm(name).label for name, one in copies.items() if one == first]
        lines.append(
            f"{listed(names)} learned from the same examples as {trained_arm(first).label}: "
            f"{'it is' if len(names) == 1 else 'they are'} the same model."
        )
    return lines


def methods_of(recipe: Recipe, named: Sequence[str] | None) -> list[str]:
    """Return the names of the methods that a study compares.

    Args:
        recipe: the study's.
        named: its option `methods`; None: the recipe's method, and SFT, the plainest baseline.
    """
    return [*dict.fromkeys((recipe.train.method, "sft"))] if named is None else [*named]


def check_methods(recipe: Recipe, named: Sequence[str] | None) -> None:
    """Check a recipe with each method that a study compares.

    Args:
        recipe: as in `methods_of`.
        named: as in `methods_of`.

    Raises:
        InputError: the recipe lacks what one needs.
    """
    for name in methods_of(recipe, named):
        check(variant(recipe, name, {"train.method": name}).recipe)


def at_least(number: int, needed: int, what: str) -> None:
    """Refuse a study on too few records.

    Raises:
        InputError: there are fewer than are needed.
    """
    if number < needed:
        raise InputError(f"{number} {what}: this study needs at least {needed}; add some")
