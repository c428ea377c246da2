"""Mistake distillation: the model, given the analysis of its mistake, teaches itself without it.

Our method. The teacher is the untrained model with guidance and the analysis of its own mistake in
the prompt; the student learns the teacher's answer from the instruction alone. So the analysis acts
on p(Y | X) directly, while mistake analysis teaches p(T | Y, X) and relies on guidance to use it.
A teacher with privileged context is the idea of self-distillation fine-tuning (SDFT, arXiv
2601.19897) and of on-policy self-alignment (OPSA, arXiv 2605.15239). This is its offline form: the
teacher writes first (`setbacks.methods.corrections`), a judge checks its texts for form and harm,
and the student learns those that pass. For a refused safe request, it learns the model's own answer
(`setbacks.methods.refused_requests`).

With `train.distill`, the student learns more of the same texts: at each token, the teacher's whole
distribution (`setbacks.training.distillation`). On its own benign answers, the teacher is the
untrained model, which sees what the student sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from pydantic import Field

from setbacks.errors import InputError
from setbacks.methods import (
    LEARNING_OF_ANALYSES,
    Method,
    answers,
    answers_itself,
    mistake_sources,
    mixed,
    refusal_sources,
    share_of_refusals,
)
from setbacks.methods.corrections import CorrectionOptions, corrections, learned
from setbacks.methods.recovery import recoveries
from setbacks.methods.refused_requests import answers_to_refused
from setbacks.recipe import Mix, Recipe, Sampling, Source, Sources, Train
from setbacks.records import Analysis, Correction, Example, Teaching
from setbacks.runs.session import Session

if TYPE_CHECKING:
    from setbacks.training import TrainingRun


def _described(name: str) -> str:
    """Return the description of a field of `train` that has another default here."""
    return str(Train.model_fields[name].description)


class Options(CorrectionOptions):
    """Step 3, fine-tuning on the model's own corrected answers."""

    helpful: Sources = Field(
        [
            Source(source="builtin:helpful", split="train"),
            Source(source="builtin:safe", split="train"),
            Source(source="builtin:twins", split="train"),
        ],
        description=_described("helpful"),
    )
    mix: Mix = Field(Mix(helpful=1.3), description=_described("mix"))
    helpful_from: Literal["data", "model"] = Field("model", description=_described("helpful_from"))
    helpful_sampling: Sampling = Field(
        Sampling(max_new_tokens=48),
        description=_described("helpful_sampling"),
    )
    recovery: float = Field(
        0.0,
        ge=0,
        description="Examples per correction that begin like the mistake (8 to 24 tokens, without "
        "loss) and then put it right.",
    )
    distill: Literal["text", "forward_kl", "jsd"] = Field(
        "text",
        description="What to learn of texts that the model wrote: the `text`, or the teacher's "
        "next-token distributions, by the forward KL divergence (`forward_kl`) or the generalized "
        "Jensen-Shannon divergence (`jsd`). Other texts are learned as text.",
    )
    top_k: int | None = Field(
        100,
        ge=1,
        description="Number of the teacher's most probable tokens that a divergence compares; all "
        "other tokens count as one. null: the whole vocabulary.",
    )
    jsd_beta: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Weight of the teacher in the mixture that `jsd` compares both models with; "
        "near 0, it acts like `forward_kl`.",
    )


class MistakeDistillation(Method):
    """Supervised fine-tuning on checked answers that the model wrote, given its analysis."""

    name = "mistake_distillation"
    Options = Options
    uses_mistakes = True

    def unused(self, recipe: Recipe) -> Sequence[str]:
        """Return the keys of `train` that change nothing in this method."""
        options = cast(Options, recipe.train)
        divergence = {"text": ("top_k", "jsd_beta"), "forward_kl": ("jsd_beta",), "jsd": ()}
        right = ("analyses",) if options.context == "guidance" else ()
        return (*LEARNING_OF_ANALYSES, *divergence[options.distill], *right)

    def has_teacher(self, recipe: Recipe) -> bool:
        """Return True: the teacher sees the analysis."""
        return True

    def prepare(self, run: Session, analyses: Sequence[Analysis]) -> Sequence[Correction]:
        """Have the teacher answer the instruction of every mistake; check the answers."""
        return [*corrections(run, analyses), *answers_to_refused(run, analyses)]

    def examples(self, recipe: Recipe, corrections: Sequence[Correction]) -> list[Example]:
        """Return every correction that passed, recoveries, safe answers, and helpful answers."""
        options = cast(Options, recipe.train)
        teacher = options.distill != "text"
        harmful = learned("correction", corrections, teacher=teacher)
        answered = learned("refusal_correction", corrections, "refusal", teacher=teacher)
        own = [*harmful, *share_of_refusals(recipe, answered, len(harmful))]
        own += recoveries(recipe, own, corrections, options.recovery)
        made = mixed(recipe, [*own, *answers("safe", recipe.train.safe)])
        return [*map(_taught_by_itself, made)] if teacher and answers_itself(recipe) else made

    def check(self, recipe: Recipe) -> None:
        """Reject processes that share one model, if a teacher's distributions are learned."""
        from setbacks.training import processes

        if cast(Options, recipe.train).distill != "text" and processes.shard():
            raise InputError(
                "train.distill: only `text` can be learned by a model that is sharded across "
                "processes (FSDP, DeepSpeed); set train.distill=text, or use "
                "recipes/accelerate/ddp.yaml"
            )

    def fit(self, run: TrainingRun, examples: Sequence[Example], adapter: Path) -> int:
        """Train an adapter on the texts, or on the teacher's distributions."""
        from setbacks.training import supervised
        from setbacks.training.distillation import Divergence

        options = cast(Options, run.recipe.train)
        betas = {"text": None, "forward_kl": 0.0, "jsd": options.jsd_beta}
        beta = betas[options.distill]
        divergence = None if beta is None else Divergence(beta, options.top_k)
        return supervised.fit(run, examples, adapter, divergence)

    def sources(self, recipe: Recipe) -> Mapping[str, Sources]:
        """Return the sources of the examples of each kind."""
        return {
            "correction": mistake_sources(recipe),
            "recovery": [*mistake_sources(recipe), *refusal_sources(recipe)],
            "refusal_correction": refusal_sources(recipe),
            "safe": recipe.train.safe,
            "helpful": recipe.train.helpful,
        }


def _taught_by_itself(example: Example) -> Example:
    """Return a helpful example with the untrained model as its teacher; others are unchanged."""
    if example.kind != "helpful":
        return example
    return example.model_copy(update={"teacher": Teaching(prompt=example.prompt)})
