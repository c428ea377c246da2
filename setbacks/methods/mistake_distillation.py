"""Mistake distillation: the model, given the analysis of its mistake, teaches itself without it.

Our method. The teacher is the untrained model with guidance and the analysis of its own mistake in
the prompt; the student learns the teacher's answer from the instruction alone. So the analysis acts
on p(Y | X) directly, while mistake analysis teaches p(T | Y, X) and relies on guidance to use it.
A teacher with privileged context is the idea of self-distillation fine-tuning (SDFT, arXiv
2601.19897) and of on-policy self-alignment (OPSA, arXiv 2605.15239). This is its offline form: the
teacher writes first (`setbacks.methods.corrections`), a judge checks its texts for form and harm,
and the student learns those that pass. For a refused safe request, it learns the model's own answer
(`setbacks.methods.refused_requests`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

from pydantic import Field

from setbacks.methods import (
    Method,
    answers,
    mistake_sources,
    mixed,
    refusal_sources,
    share_of_refusals,
)
from setbacks.methods.corrections import CorrectionOptions, corrections, learned
from setbacks.methods.recovery import recoveries
from setbacks.methods.refused_requests import answers_to_refused
from setbacks.recipe import Recipe, Source, Sources, Train
from setbacks.records import Analysis, Correction, Example
from setbacks.runs.session import Session


class Options(CorrectionOptions):
    """Step 3, fine-tuning on the model's own corrected answers."""

    helpful: Sources = Field(
        [
            Source(source="builtin:helpful", split="train"),
            Source(source="builtin:safe", split="train"),
        ],
        description=str(Train.model_fields["helpful"].description),
    )
    helpful_from: Literal["data", "model"] = Field(
        "model", description=str(Train.model_fields["helpful_from"].description)
    )
    epochs: int = Field(1, ge=1, description=str(Train.model_fields["epochs"].description))
    recovery: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Examples per correction that begin like the mistake (8 to 24 tokens, without "
        "loss) and then put it right.",
    )


class MistakeDistillation(Method):
    """Supervised fine-tuning on checked answers that the model wrote, given its analysis."""

    name = "mistake_distillation"
    Options = Options
    uses_mistakes = True

    def has_teacher(self, recipe: Recipe) -> bool:
        """Return True: the teacher sees the analysis."""
        return True

    def prepare(self, run: Session, analyses: Sequence[Analysis]) -> Sequence[Correction]:
        """Have the teacher answer the instruction of every mistake; check the answers."""
        return [*corrections(run, analyses), *answers_to_refused(run, analyses)]

    def examples(self, recipe: Recipe, corrections: Sequence[Correction]) -> list[Example]:
        """Return every correction that passed, recoveries, safe answers, and helpful answers."""
        harmful = learned("correction", corrections)
        answered = learned("refusal_correction", corrections, "refusal")
        own = [*harmful, *share_of_refusals(recipe, answered, len(harmful))]
        own += recoveries(recipe, own, corrections, cast(Options, recipe.train).recovery)
        return mixed(recipe, [*own, *answers("safe", recipe.train.safe)])

    def sources(self, recipe: Recipe) -> Mapping[str, Sources]:
        """Return the sources of the examples of each kind."""
        return {
            "correction": mistake_sources(recipe),
            "recovery": [*mistake_sources(recipe), *refusal_sources(recipe)],
            "refusal_correction": refusal_sources(recipe),
            "safe": recipe.train.safe,
            "helpful": recipe.train.helpful,
        }
