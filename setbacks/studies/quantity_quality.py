"""Quantity and quality: how many analyses, and how good, does the method need?

Each size is trained with the best analyses that passed their checks, with the best of all,
and, as a control that should teach nothing, with analyses that belong to other responses
(arXiv 2310.10477, section 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from setbacks.errors import InputError
from setbacks.measure.statistics import Estimate
from setbacks.methods import CHOICE_OF_ANALYSES, unused
from setbacks.recipe import Recipe, Section
from setbacks.recipe.parts import Seeds, unique
from setbacks.records import WAYS, Arm
from setbacks.report.page import Findings, Picture
from setbacks.report.plots import curves
from setbacks.runs.arms import trained_arm
from setbacks.runs.progress import Show
from setbacks.studies import Study, VariantRow, against_first
from setbacks.studies.variants import seeded

Quality = Literal["filtered", "unfiltered", "shuffled"]


class QuantityQuality(Study):
    """Measure how many analyses the method needs, and how good they must be."""

    title = "quantity and quality"
    question = "How many analyses does it take, and how good must they be?"
    replaces = ("train.analyses", "train.most_analyses")

    class Options(Section):
        """Options of `setbacks study quantity-quality`."""

        sizes: Annotated[list[Annotated[int, Field(ge=1)]], unique()] = Field(
            [25, 50, 100], description="Numbers of analyses to compare.", min_length=1
        )
        qualities: Annotated[list[Quality], unique()] = Field(
            ["filtered", "unfiltered", "shuffled"],
            description="Kinds of analyses to compare, as in `train.analyses`.",
            min_length=1,
        )
        seeds: Seeds = Field(1, description="Trainings of each variant, with different seeds.")

    def check(self, recipe: Recipe, options: Options) -> None:
        """Check the recipe, that its method chooses among analyses, and the sizes."""
        super().check(recipe, options)
        if not_used := [key for key in CHOICE_OF_ANALYSES if key in unused(recipe)]:
            raise InputError(
                f"train.method: {recipe.train.method} does not choose among analyses with these "
                f"settings (train.{not_used[0]} changes nothing), which this study varies; use "
                "mistake_analysis, or mistake_distillation with train.context=analysis"
            )

        if 1 in options.sizes and "shuffled" in options.qualities:
            raise InputError(
                "study.sizes: 1 has no other analysis to shuffle with; use sizes of 2 or more, or "
                "leave shuffled out of study.qualities"
            )

    def run(self, recipe: Recipe, options: Options, folder: Path, show: Show | None) -> Findings:
        """Train and measure every size and quality, first the largest of the first quality."""
        changes = {
            _name(quality, size): {"train.analyses": quality, "train.most_analyses": size}
            for quality in options.qualities
            for size in sorted(options.sizes, reverse=True)
        }
        variants = seeded(recipe, changes, options.seeds)
        found = against_first(self, recipe, folder, variants, show, "Quantity by quality")
        return replace(
            found,
            pictures=[*_curves(found.data, options), *found.pictures],
            method=[
                "A size is the most that is trained on: where there are fewer analyses, or fewer "
                "that passed their checks, the variant has fewer. Shuffled analyses are the "
                "control: if they do as well, the content of the analyses is not what helps."
            ],
        )


def _curves(
    data: Mapping[str, Sequence[VariantRow]], options: QuantityQuality.Options
) -> list[Picture]:
    """A picture for each judge: balanced safety over the number of analyses, a line a quality."""
    pictures = []
    for number, (judge, rows) in enumerate(data.items()):
        reached = {row.arm: row.balanced_safety for row in rows}
        lines: dict[str, list[tuple[float, Estimate]]] = {}
        for quality, way in product(options.qualities, WAYS):
            arms = {0: Arm.untrained(way)}
            arms |= {n: trained_arm(_name(quality, n), way) for n in sorted(options.sizes)}
            points: list[tuple[float, Estimate]] = [
                (size, cell)
                for size, arm in arms.items()
                if (cell := reached.get(arm)) and cell.value is not None
            ]
            if any(size for size, _ in points):
                lines[trained_arm(quality, way).label] = points
        if lines:
            by = f", by {judge}" if len(data) > 1 else ""
            svg = curves(
                lines, f"q{number}", "Analyses trained on, at most", "Balanced safety, %", 100
            )
            title = f"By number of analyses{by}"
            pictures.append(Picture(title, svg, "At 0 is the untrained model."))
    return pictures


def _name(quality: Quality, size: int) -> str:
    """The name of a variant, and of the model that is trained in it."""
    return f"{quality}_{size}"
