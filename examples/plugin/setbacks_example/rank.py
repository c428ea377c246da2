"""Rank: does a larger adapter learn more?"""

from pydantic import Field

from setbacks.recipe import Section
from setbacks.report.page import Findings
from setbacks.studies import Study, against_first, describe_differences
from setbacks.studies.variants import variant


class Rank(Study):
    """Compare adapters of different ranks."""

    title = "rank"
    question = "Does a larger adapter learn more?"

    class Options(Section):
        """Options of `setbacks study rank`."""

        ranks: list[int] = Field([8, 32], min_length=2, description="LoRA ranks to compare.")

    def run(self, recipe, options, folder, show):
        """Train and measure an adapter of each rank."""
        variants = [variant(recipe, f"rank_{r}.0", {"train.lora.r": r}) for r in options.ranks]
        tables, pictures, data = against_first(recipe, folder, variants, show, "By rank")
        answer = [describe_differences(rows) for rows in data.values()]
        title = f"{recipe.name}: {self.title}"
        return Findings(title, self.question, answer, tables, pictures, data=data)
