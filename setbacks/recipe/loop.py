"""The section of a recipe that `setbacks loop` reads: rounds, their data, and the gate."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from setbacks.data import Source
from setbacks.recipe.parts import Section, Sources, unique
from setbacks.recipe.sections import Suite

_METRICS = "METRIC or METRIC:POINTS, as `setbacks gate` takes them"


class GateClaims(Section):
    """What a round must show before it is accepted, on the validation prompts."""

    better: list[str] = Field(
        ["balanced_safety"],
        description=f"Metrics that must be better ({_METRICS}); []: a round need only be no worse.",
    )
    no_worse: list[str] = Field(
        ["compliance:5"], description=f"Metrics that must not be worse ({_METRICS})."
    )


class Loop(Section):
    """Options of `setbacks loop`: rounds of training on a deployed model's failures."""

    rounds: int = Field(
        3, ge=1, description="Number of rounds; more `harvest` sources make as many rounds."
    )
    validation: Annotated[list[Suite], unique("name")] = Field(
        [
            Suite(
                name="harmful",
                kind="harmful",
                sources=[Source(source="builtin:redteam", split="validation")],
            ),
            Suite(
                name="safe",
                kind="safe",
                sources=[
                    Source(source="builtin:twins", split="validation"),
                    Source(source="builtin:safe", split="validation"),
                ],
            ),
        ],
        description="Prompts that decide whether a round is accepted, other than those in "
        "`respond.suites`, which the accepted models answer at the end. Rounds train on neither.",
        min_length=1,
    )
    harvest: Sources = Field(
        [],
        description="Setbacks of the deployed model, as `setbacks harvest` writes them: the first "
        "source for round 1, the second for round 2, and so on.",
    )
    stream: Annotated[list[Suite], unique("name")] = Field(
        [],
        description="Prompts that play production traffic: the current model answers, and the "
        "failures that the first judge finds are setbacks of the round; []: none.",
    )
    slice: int = Field(
        40, ge=1, description="Prompts of each suite in `stream` that one round takes, in order."
    )
    gate: GateClaims = Field(GateClaims(), description="What a round must show to be accepted.")
    replay: float = Field(
        0.5,
        ge=0,
        description="Examples of earlier accepted rounds per example of a round.",
    )

    @property
    def planned(self) -> int:
        """The number of rounds."""
        return max(self.rounds, len(self.harvest))
