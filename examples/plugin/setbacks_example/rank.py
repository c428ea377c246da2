"""Rank: does a larger adapter learn more?"""

from pydantic import Field

from setbacks.recipe import Section
from setbacks.studies import Study, against_first
from setbacks.studies.variants import seeded


class Rank(Study):
    """Compare adapters of different ranks."""

    title = "rank"
    question = "Does a larger adapter learn more?"

    class Options(Section):
        """Options of `setbacks study rank`."""

        ranks: list[int] = Field([8, 32], min_length=2, description="LoRA ranks to compare.")

    def run(self, recipe, options, folder, show):
        """Train and measure an adapter of each rank."""
        changes = {f"rank_{r}": {"train.lora.r": r} for r in options.ranks}
        variants = seeded(recipe, changes, seeds=1)
        return against_first(self, recipe, folder, variants, show, "By rank")
