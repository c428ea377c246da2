"""Quantity and quality: how many analyses, and how good, does the method need?

Each size is trained with the best analyses that passed their checks, with the best of all,
and, as a control that should teach nothing, with analyses that belong to other responses
(arXiv 2310.10477, section 4.3).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from setbacks.page import Findings
from setbacks.recipe import Recipe, Section
from setbacks.studies import Show, against_first, told_apart
from setbacks.variants import variant

Quality = Literal["filtered", "unfiltered", "shuffled"]


class Options(Section):
    """What `study` of a recipe may hold."""

    sizes: list[int] = Field([25, 50, 100], description="Numbers of analyses.", min_length=1)
    qualities: list[Quality] = Field(
        ["filtered", "unfiltered", "shuffled"], description="Which analyses.", min_length=1
    )
    seeds: int = Field(1, ge=1, description="Trainings of each variant.")


def study(recipe: Recipe, options: Options, folder: Path, show: Show | None) -> Findings:
    """Train and measure every size and quality; the first is the largest of the first quality."""
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
    tables, pictures, data = against_first(recipe, folder, variants, show, "Quantity by quality")
    return Findings(
        title=f"{recipe.name}: quantity and quality",
        question="How many analyses does it take, and how good must they be?",
        answer=[told_apart(rows) for rows in data.values()],
        tables=tables,
        pictures=pictures,
        method=[
            "A size is the most that is trained on: where fewer analyses passed their checks, the "
            "variant has fewer. Shuffled analyses are the control: if they do as well, the content "
            "of the analyses is not what helps."
        ],
        data=data,
    )
