"""Studies: one question of the paper each, one file each.

A study is a module with a class `Options` (what `study` of a recipe may hold) and a function
`study`; the entry point group ``setbacks.studies`` finds it by name, in this package or in another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from setbacks.data import read_once
from setbacks.errors import InputError
from setbacks.files import expanded
from setbacks.measure.metrics import TITLES, in_the_way_of
from setbacks.measure.statistics import Estimate, holm
from setbacks.pipeline import check
from setbacks.plugins import plugin
from setbacks.recipe import Recipe
from setbacks.report.page import Findings, Picture, Table, write
from setbacks.report.plots import forest
from setbacks.runs.progress import Show
from setbacks.studies.scores import difference, estimate, gather, points, written
from setbacks.studies.variants import Variant, each, prepare_folder

ALPHA = 0.05
SHOWN = ("harmless_rate", "compliance", "balanced_safety")


class Study(Protocol):
    """A module that carries out one study."""

    Options: type[BaseModel]

    def study(
        self, recipe: Recipe, options: BaseModel, folder: Path, show: Show | None
    ) -> Findings:
        """Do what is missing in the folder, and say what was found.

        Args:
            recipe: what the runs are told.
            options: the recipe's `study`, checked.
            folder: where all is kept; `setbacks.studies.variants.each` makes runs in it.
            show: told of progress: what, done, total.
        """
        ...


@read_once()
def carry_out(name: str, recipe: Recipe, folder: Path, show: Show | None = None) -> Path:
    """Carry out the study `name`, or go on where it stopped; return its page.

    Raises:
        InputError: there is no such study; the recipe, its data or the folder is at fault, or
            there are too few records.
        SetbacksError: something failed on the way; what was done is kept.
    """
    folder = expanded(folder)
    made: Study = plugin("studies", name)
    options = recipe.options(made.Options, f"study {name}")
    if not (folder / "recipe.yaml").exists():
        check(recipe)  # what is mended may then have the same folder
    prepare_folder(folder, recipe)
    return write(folder, made.study(recipe, options, folder, show))


def against_first(
    recipe: Recipe,
    folder: Path,
    variants: Sequence[Variant],
    show: Show | None,
    title: str,
) -> tuple[list[Table], list[Picture], dict[str, Any]]:
    """Carry out variants and set each against the first, judge by judge, guided and not.

    Args:
        recipe: of the study.
        folder: of the study.
        variants: named NAME.SEED; those of one name are averaged.
        show: told of progress.
        title: of the tables and pictures.

    Returns:
        Tables, pictures, and rows by judge: arm, balanced safety and its parts, the difference.
    """
    done = list(each(folder, variants, "report", show, jobs=recipe.jobs))
    tables, pictures, data = [], [], {}
    for number, judge in enumerate(spec.called for spec in recipe.judges):
        by_metric = gather(done, judge)
        of = {
            arm: {metric: found[arm] for metric, found in by_metric.items()}
            for arm in by_metric["harmless_rate"]
        }
        first = variants[0].name.rpartition(".")[0]
        rows: list[dict[str, Any]] = []
        for arm, scores in of.items():
            base = in_the_way_of(arm, first)
            row: dict[str, Any] = {"arm": arm}
            row |= {metric: estimate(metric, scores)._asdict() for metric in SHOWN}
            if arm != base:
                row["difference"] = difference("balanced_safety", scores, of[base])._asdict()
            rows.append(row)
        by = f", by {judge}" if len(recipe.judges) > 1 else ""
        tables.append(
            Table(
                title + by,
                ["Variant", *(TITLES[m] for m in SHOWN), f"against {first}, in points"],
                [
                    [
                        row["arm"],
                        *(written(Estimate(**row[metric])) for metric in SHOWN),
                        points(row["difference"]) if "difference" in row else "",
                    ]
                    for row in rows
                ],
                "Rates in %, 95 % intervals in brackets. The difference is in balanced safety.",
            )
        )
        drawn = [(row["arm"], row["balanced_safety"]) for row in rows]
        if all(cell["value"] is not None for _, cell in drawn):  # else a suite is missing
            svg = forest(drawn, f"f{number}")
            note = f"95 % intervals; the dashed line is at {drawn[0][0]}."
            pictures.append(Picture(f"Balanced safety{by}", svg, note))
        data[judge] = rows
    return tables, pictures, data


def told_apart(rows: Sequence[dict[str, Any]]) -> str:
    """Say in words which variants differ from the first beyond chance (Holm).

    Args:
        rows: of `against_first`, the untrained model's among them.
    """
    first = next(row["arm"] for row in rows if "difference" not in row)
    tested = [row for row in rows if "difference" in row and row["difference"]["p"] is not None]
    corrected = holm([row["difference"]["p"] for row in tested])
    better: list[str] = []
    worse: list[str] = []
    for row, p in zip(tested, corrected, strict=True):
        if p < ALPHA:
            (better if row["difference"]["value"] > 0 else worse).append(row["arm"])
    parts = [
        f"{word} {first} beyond chance: {', '.join(names)}."
        for word, names in (("Above", better), ("Below", worse))
        if names
    ]
    return " ".join(parts) or f"No variant can be told from {first}."


def at_least(number: int, needed: int, what: str) -> None:
    """Refuse a study on too few records.

    Raises:
        InputError: there are fewer than are needed.
    """
    if number < needed:
        raise InputError(f"{number} {what}: this study needs at least {needed}; add some")
