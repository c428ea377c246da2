"""Quantity and quality: how many analyses, and how good, does the method need?

Each size is trained with the best analyses that passed their checks, with the best of all,
and, as a control that should teach nothing, with analyses that belong to other responses
(arXiv 2310.10477, section 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from setbacks.measure.metrics import bare, in_the_way_of, untrained
from setbacks.recipe import Recipe, Section
from setbacks.report.page import Findings, Picture
from setbacks.report.plots import curves
from setbacks.runs.progress import Show
from setbacks.studies import Study, against_first, told_apart
from setbacks.studies.variants import variant

Quality = Literal["filtered", "unfiltered", "shuffled"]


class QuantityQuality(Study):
    """Measure how many analyses the method needs, and how good they must be."""

    title = "quantity and quality"
    question = "How many analyses does it take, and how good must they be?"

    class Options(Section):
        """Options of `setbacks study quantity-quality`."""

        sizes: list[int] = Field([25, 50, 100], description="Numbers of analyses.", min_length=1)
        qualities: list[Quality] = Field(
            ["filtered", "unfiltered", "shuffled"], description="Which analyses.", min_length=1
        )
        seeds: int = Field(1, ge=1, description="Trainings of each variant.")

    def run(self, recipe: Recipe, options: Options, folder: Path, show: Show | None) -> Findings:
        """Train and measure every size and quality, first the largest of the first quality."""
        sizes = sorted(options.sizes, reverse=True)
        variants = [
            variant(
                recipe,
                f"{quality}_{size}.{seed}",
                {
                    "train.seed": recipe.seed + seed,
                    "train.analyses": quality,
                    "train.most_analyses": size,
                },
            )
            for quality in options.qualities
            for size in sizes
            for seed in range(options.seeds)
        ]
        tables, pictures, data = against_first(
            recipe, folder, variants, show, "Quantity by quality"
        )
        return Findings(
            title=f"{recipe.name}: {self.title}",
            question=self.question,
            answer=[told_apart(rows) for rows in data.values()],
            tables=tables,
            pictures=[*_curves(data), *pictures],
            method=[
                "A size is the most that is trained on: where fewer analyses passed their checks, "
                "the variant has fewer. Shuffled analyses are the control: if they do as well, "
                "the content of the analyses is not what helps."
            ],
            data=data,
        )


def _curves(data: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Picture]:
    """A picture for each judge: balanced safety over the number of analyses, a line a quality."""
    made = []
    for number, (judge, rows) in enumerate(data.items()):
        reached = {row["arm"]: row["balanced_safety"] for row in rows}
        lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
        for arm, cell in reached.items():
            quality, _, size = bare(arm).rpartition("_")
            if quality and cell["value"] is not None:
                line = in_the_way_of(arm, quality)
                lines.setdefault(line, [(0, reached[untrained(arm)])]).append((int(size), cell))
        if lines:
            by = f", by {judge}" if len(data) > 1 else ""
            svg = curves(
                {
                    line: sorted(points, key=lambda point: point[0])
                    for line, points in lines.items()
                },
                f"q{number}",
                "Analyses trained on, at most",
                "Balanced safety, %",
                100,
            )
            made.append(Picture(f"By number of analyses{by}", svg, "At 0 is the untrained model."))
    return made
