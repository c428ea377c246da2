"""Studies: several runs that answer one question. One file each.

The entry point group ``setbacks.studies`` finds a study by name, in this package or in another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from setbacks.data import read_once
from setbacks.errors import InputError
from setbacks.files import expanded
from setbacks.measure.differences import corrected
from setbacks.measure.formatting import POINTS, with_interval
from setbacks.measure.metrics import TITLES, significant
from setbacks.measure.results import OPTIONAL
from setbacks.measure.statistics import Difference, Estimate
from setbacks.notices import notice
from setbacks.pipeline import check
from setbacks.plugins import plugin
from setbacks.recipe import Recipe, Section
from setbacks.records import Arm
from setbacks.report.page import Findings, Picture, Table, write
from setbacks.report.plots import forest
from setbacks.runs.arms import trained_arm
from setbacks.runs.progress import Show
from setbacks.studies.scores import difference, estimate, gather
from setbacks.studies.variants import Variant, each, prepare_folder, variant

SHOWN = ("harmless_rate", "compliance", "balanced_safety")


class Study(ABC):
    """Answers one question by several runs in a folder.

    A study is a subclass with a `title`, a `question` and `run`. Everything else has a default.

    Attributes:
        title: names the study on its page.
        question: what the study answers, in a sentence.
        Options: the section `study` of a recipe.
    """

    title: ClassVar[str]
    question: ClassVar[str]
    Options: ClassVar[type[Section]] = Section

    @classmethod
    def options(cls, recipe: Recipe) -> Any:
        """Return the study's options in a recipe, an object of `Options`.

        Raises:
            InputError: an unknown key or a bad value.
        """
        return recipe.options(cls.Options, f"study {cls.title}")

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
    study.check(recipe, options)
    if recipe.train.seed is not None and hasattr(options, "seeds"):
        notice("train.seed is set, but changes nothing: the seeds of trainings count from `seed`")
    recipe = prepare_folder(folder, recipe)
    return write(folder, study.run(recipe, options, folder, show))


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
    recipe: Recipe,
    folder: Path,
    variants: Sequence[Variant],
    show: Show | None,
    title: str,
) -> tuple[list[Table], list[Picture], dict[str, list[VariantRow]]]:
    """Run variants and compare each with the first, for every judge, guided and unguided.

    Args:
        recipe: of the study.
        folder: of the study.
        variants: named NAME.SEED; those of one name are averaged.
        show: called with progress.
        title: of the tables and pictures.

    Returns:
        Tables, pictures, and rows by judge.
    """
    done = list(each(folder, variants, "report", show, jobs=recipe.jobs))
    tables, pictures, data = [], [], {}
    for number, judge in enumerate(spec.called for spec in recipe.judges):
        by_metric = gather(done, judge)
        of = {
            arm: {metric: by_arm[arm] for metric, by_arm in by_metric.items()}
            for arm in by_metric["harmless_rate"]
        }
        first = variants[0].name.rpartition(".")[0]
        rows = []
        for arm, scores in of.items():
            base = trained_arm(first, arm.way)
            against = None if arm == base else difference("balanced_safety", scores, of[base])
            rates = {metric: estimate(metric, scores) for metric in (*SHOWN, "degenerate")}
            rows.append(VariantRow(arm=arm, **rates, difference=against))
        by = f", by {judge}" if len(recipe.judges) > 1 else ""
        tables.append(
            Table(
                title + by,
                [
                    "Variant",
                    *(TITLES[m] for m in SHOWN),
                    "Degenerate answers",
                    f"against {trained_arm(first).label}, in points",
                ],
                [
                    [
                        row.arm.label,
                        *map(with_interval, row.rates),
                        with_interval(row.difference, POINTS) if row.difference else "",
                    ]
                    for row in rows
                ],
                "Rates in %, 95 % intervals in brackets. The difference is in balanced safety.",
            )
        )
        drawn = [(row.arm.label, row.balanced_safety) for row in rows]
        if all(cell.value is not None for _, cell in drawn):  # else a suite is missing
            guided = [arm.label for arm in of if arm.way == "guided"]
            svg = forest(drawn, f"f{number}", guided=guided)
            note = f"95 % intervals; the dashed line is at {drawn[0][0]}."
            pictures.append(Picture(f"Balanced safety{by}", svg, note))
        data[judge] = rows
    return tables, pictures, data


def describe_differences(rows: Sequence[VariantRow]) -> str:
    """Say in words which variants differ significantly from the first (Holm).

    Args:
        rows: of `against_first`, the untrained model's among them.
    """
    first = next(row.arm.label for row in rows if row.difference is None)
    others = [(row.arm.label, row.difference) for row in rows if row.difference is not None]
    changes = corrected([change for _, change in others])
    better: list[str] = []
    worse: list[str] = []
    for (label, _), change in zip(others, changes, strict=True):
        if change and significant(change):
            (better if change.value > 0 else worse).append(label)
    parts = [
        f"Significantly {word} {first}: {', '.join(names)}."
        for word, names in (("above", better), ("below", worse))
        if names
    ]
    return " ".join(parts) or f"No variant differs significantly from {first}."


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
        InputError: a method is there twice, or the recipe lacks what one needs.
    """
    names = methods_of(recipe, named)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"study.methods: {twice[0]} is there twice; remove one")
    for name in names:
        check(variant(recipe, name, {"train.method": name}).recipe)


def at_least(number: int, needed: int, what: str) -> None:
    """Refuse a study on too few records.

    Raises:
        InputError: there are fewer than are needed.
    """
    if number < needed:
        raise InputError(f"{number} {what}: this study needs at least {needed}; add some")
