"""Rank: does a larger adapter learn more?"""

from pydantic import Field

from setbacks.recipe import Section
from setbacks.report.page import Findings
from setbacks.studies import against_first, told_apart
from setbacks.studies.variants import variant


class Options(Section):
    """The `study` section of a recipe."""

    ranks: list[int] = Field([8, 32], min_length=2, description="LoRA ranks to compare.")


def study(recipe, options, folder, show):
    """Train and measure an adapter of each rank."""
    variants = [variant(recipe, f"rank_{r}.0", {"train.lora.r": r}) for r in options.ranks]
    tables, pictures, data = against_first(recipe, folder, variants, show, "By rank")
    answer = [told_apart(rows) for rows in data.values()]
    return Findings(
        "Rank", "Does a larger adapter learn more?", answer, tables, pictures, data=data
    )
