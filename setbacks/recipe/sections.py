"""The sections of a recipe, in the order in which a run reads them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from setbacks.data import Source
from setbacks.recipe.models import EngineField, JudgeField, Sampling
from setbacks.recipe.parts import (
    DOTTED,
    LOCAL,
    SEED_LIMIT,
    LocalPath,
    PartSection,
    Section,
    Seeds,
    Sources,
    file_name,
    short_for,
    unique,
)
from setbacks.records import Kind


class Induce(Section):
    """Step 1, guided mistake induction: ask the unaligned model for bad responses."""

    source: Literal["induced", "existing", "both"] = Field(
        "induced",
        description="Source of mistakes: `induced` (the model), `existing` (data) or `both`.",
    )
    existing: Sources = Field(
        [],
        description="Data sets with `text` and a harmful `response`, or a `response` that refuses "
        "a safe request (`kind: refusal`) (`existing` and `both`).",
    )
    refusals: Sources = Field(
        [],
        description="Data sets with safe prompts, to induce refusals, which are mistakes as well "
        "(`induced` and `both`), such as {source: builtin:twins, split: train}; []: none.",
    )
    guidance: Literal["hints", "persona", "category"] = Field(
        "hints",
        description="Instruction that makes the model answer badly: `hints` (a tone), `persona` "
        "(a role) or `category` (a category of harm).",
    )
    attempts: int = Field(
        3,
        ge=1,
        description="Maximum attempts per instruction, each with another hint, until the model "
        "does not refuse; or, for `refusals`, until it refuses.",
    )
    sampling: Sampling = Field(
        Sampling(max_new_tokens=64, temperature=0.8, top_p=0.95),
        description="Sampling of mistakes.",
    )
    near_duplicate: float = Field(
        0.7,
        gt=0,
        le=1,
        description="Share of word 5-grams in common with an earlier mistake from which a response "
        "is dropped; 1 keeps all.",
    )
    judge: JudgeField | None = Field(
        None,
        description="Judge that checks each induced response, such as `probe`; a harmless response "
        "is not a mistake, and the next attempt follows; null: no check.",
    )
    min_harmful: float = Field(
        0.5, ge=0, le=1, description="Lowest probability of harm of a mistake that `judge` checks."
    )


class Analyze(Section):
    """Step 2, guided analysis: have the analyst explain why a response is harmful."""

    analyst: EngineField | None = Field(
        None, description="Model that analyzes; null: the model itself, as in the paper."
    )
    candidates: int = Field(
        2, ge=1, description="Number of analyses per mistake; the best one is kept."
    )
    prefill: bool = Field(
        True,
        description="Start each analysis with 'The response is harmful because the instruction "
        "asks', or the same in its language.",
    )
    contrast: Sources = Field(
        [Source(source="builtin:safe", split="train", limit=40)],
        description="Data sets with benign `text` and an `answer`, to be analyzed as harmless, so "
        "that the model does not learn to call everything harmful; []: none.",
    )
    sampling: Sampling = Field(
        Sampling(max_new_tokens=80, temperature=0.8, top_p=0.95),
        description="Sampling of analyses.",
    )
    min_words: int = Field(
        12, ge=1, description="Fewest words in an analysis; shorter ones are dropped."
    )
    max_words: int = Field(
        200, ge=1, description="Most words in an analysis; longer ones are dropped."
    )
    min_overlap: int = Field(
        2,
        ge=0,
        description="Fewest content words of the instruction or response in an analysis.",
    )
    min_distinct: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Smallest share of distinct word 3-grams in an analysis, against repetition.",
    )


class Preflight(Section):
    """Before step 3: check what training can be expected to do."""

    flip_rate: Literal["auto", "always", "never"] = Field(
        "auto",
        description="When to measure the flip rate, the share of mistakes that a context turns "
        "into harmless refusals, which training would learn: `auto` (by the command `setbacks "
        "preflight`, if the method has a teacher), `always` (in every run whose method uses "
        "mistakes) or `never`.",
    )
    mistakes: int = Field(
        60, ge=10, description="Maximum number of mistakes on which the flip rate is measured."
    )


class Mix(Section):
    """How many examples of other kinds are mixed in, per example of the method."""

    contrast: float = Field(1.0, ge=0, description="Analyses of benign responses per example.")
    helpful: float = Field(1.0, ge=0, description="Helpful answers per example.")
    safe: float = Field(
        0.0,
        ge=0,
        description="Safe answers to red-team instructions per example.",
    )
    refusal: float = Field(
        1.0,
        ge=0,
        description="Refused safe requests per harmful mistake, at most; without harmful mistakes, "
        "all are used.",
    )


class Lora(Section):
    """The adapter (LoRA, arXiv 2106.09685)."""

    r: int = Field(16, ge=1, description="Rank.")
    alpha: int = Field(
        32, ge=1, description="Scale: the update is multiplied by alpha / r (see `rslora`)."
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on the adapter's input; doubles the time on a CPU."
    )
    targets: str | list[str] = Field(
        "all-linear",
        description="Modules that get an adapter: `all-linear` (every linear module of the "
        "language model but its head), a list of names, or a regular expression that matches "
        "whole names.",
    )
    target_parameters: list[str] = Field(
        [],
        description="Parameters outside of modules that get an adapter, such as the fused experts "
        "of a mixture: [mlp.experts.gate_up_proj, mlp.experts.down_proj].",
    )
    exclude: list[str] = Field([], description="Names of modules to leave out of `targets`.")
    layers: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="Indices of the layers that get an adapter, from 0; null: all."
    )
    modules_to_save: list[str] = Field(
        [],
        description="Names of modules to train and save in full, such as `embed_tokens` and "
        "`lm_head`.",
    )
    dora: bool = Field(
        False, description="Also learn the magnitude of the weights (DoRA, arXiv 2402.09353)."
    )
    rslora: bool = Field(
        False,
        description="Multiply the update by alpha / sqrt(r) (rank-stabilized LoRA, "
        "arXiv 2312.03732).",
    )


class Replay(Section):
    """Examples of earlier runs, mixed in so that the model keeps what it has learned."""

    runs: Annotated[list[str], LOCAL] = Field(
        [], description="Folders of earlier runs, trained by the same method; []: no replay."
    )
    share: float = Field(
        0.5,
        ge=0,
        description="Examples of earlier runs per example of this run.",
    )


class Train(PartSection):
    """Step 3, fine-tuning, with the method's options."""

    group, names, keeps_others = "methods", "method", True

    method: str = Field(
        "mistake_distillation",
        description="Method that trains the adapter; `setbacks list methods` shows all.",
    )
    mix: Mix = Field(
        Mix(),
        description="Examples of other kinds, mixed with those of the method. "
        "`mistake_distillation`: default {helpful: 1.3}.",
    )
    helpful: Sources = Field(
        [Source(source="builtin:helpful", split="train")],
        description="Data sets with `text` and a helpful `answer`. `mistake_distillation`: default "
        "`builtin:helpful`, `builtin:safe` and `builtin:twins`, split `train`.",
    )
    helpful_from: Literal["data", "model"] = Field(
        "data",
        description="Source of the answers to the prompts in `helpful`: `data` or the untrained "
        "`model`, which keeps the model's style. `mistake_distillation`: default `model`.",
    )
    helpful_sampling: Sampling = Field(
        Sampling(),
        description="Sampling of the model's helpful answers, which are learned up to their last "
        "whole sentence. `mistake_distillation`: default {max_new_tokens: 48}.",
    )
    judge: JudgeField | None = Field(
        None,
        description="Judge that checks the texts that the model writes for its training; null: "
        "`probe`.",
    )
    safe: Sources = Field(
        [Source(source="builtin:refusals", split="train")],
        description="Data sets with a red-team `text` and a safe `answer`.",
    )
    analyses: Literal["filtered", "unfiltered", "shuffled"] = Field(
        "filtered",
        description="Analyses to learn: `filtered` (the best that passed the checks; a teacher may "
        "see the best that failed where none passed), `unfiltered` (the best of all) or `shuffled` "
        "(those of other responses, a control that should teach nothing).",
    )
    most_analyses: int | None = Field(
        None, ge=1, description="Maximum number of analyses of mistakes to learn; null: all."
    )
    categories: list[str] | None = Field(
        None, description="Categories of harm to learn from; null: all."
    )
    question: Literal["unguided", "guided"] = Field(
        "unguided",
        description="Question before an analysis: `unguided` (neutral) or, for an ablation, "
        "`guided` (names the verdict).",
    )
    verdict: Literal["within", "first"] = Field(
        "within",
        description="Place of the verdict, harmful or harmless: `within` the analysis as it was "
        "generated, or `first`, as a separate word.",
    )
    verdict_weight: float = Field(
        1.0, gt=0, description="Weight in the loss of a verdict with `verdict: first`."
    )
    lora: Lora = Field(Lora(), description="Shape of the adapter.")
    seed: int | None = Field(
        None,
        ge=0,
        lt=SEED_LIMIT,
        description="Seed of the adapter's initial weights and the order of examples; null: the "
        "recipe's `seed`.",
    )
    epochs: int = Field(2, ge=1, description="Passes over the examples.")
    tokens: int | None = Field(
        None, ge=1, description="Number of tokens to train on; replaces `epochs`."
    )
    steps: int | None = Field(
        None, ge=1, description="Number of training steps; replaces `epochs`."
    )
    start: LocalPath = Field(
        None,
        description="Folder of an adapter to start from; null: the recipe's `adapter`, or a new "
        "one. Mistakes and the untrained arm come from the model without it.",
    )
    replay: Replay = Field(Replay(), description="Examples of earlier runs to mix in.")
    quantize: Literal["4bit"] | None = Field(
        None,
        description="Quantization of the base weights: `4bit` (QLoRA; needs CUDA and bitsandbytes) "
        "or null: none.",
    )
    snapshots: int = Field(
        0, ge=0, description="Number of evenly spaced adapter snapshots to keep in `snapshots/`."
    )
    batch_size: int = Field(8, ge=1, description="Examples per training step.")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate of AdamW; null: the method's, such as 5e-5 for `dpo`, or "
        "for supervised fine-tuning 1e-3 below 4 billion parameters and 3e-4 from there.",
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the steps for warm-up.")
    scheduler: str = Field(
        "cosine", description="Learning rate schedule, by its name in transformers."
    )
    max_length: int = Field(
        1024, ge=16, description="Longest example, in tokens; longer ones are cut."
    )
    gradient_checkpointing: bool = Field(
        False, description="Save memory; takes about a third more time."
    )
    checkpoint_every: int = Field(20, ge=1, description="Steps between checkpoints.")
    report_to: list[str] = Field(
        [], description="Experiment trackers, such as `wandb`, `tensorboard` or `trackio`."
    )


class Suite(Section):
    """A named set of prompts, and how their answers are to be judged."""

    name: Annotated[str, file_name()] = Field(description="Name in files and reports.")
    kind: Kind = Field(
        description="Kind of prompts: `harmful` or `hijacking` (must not be served), `safe` (must "
        "not be refused) or `helpful`."
    )
    sources: Sources = Field(description="Data sets with the prompts, as `text`.", min_length=1)


class Posterior(Section):
    """Posterior decoding: the model picks the draft that it finds most harmless."""

    drafts: int = Field(4, ge=2, description="Drafts per response.")
    temperature: float = Field(0.8, gt=0, description="Sampling temperature of drafts.")
    rank_by: Literal["spoken", "states"] = Field(
        "spoken",
        description="Estimate of a draft's harm: the model's `spoken` verdict, or a linear probe "
        "of its hidden `states`, fitted on the run's mistakes and on harmless answers to the same "
        "instructions (`train.safe`, corrections). It needs the engine `local` and a method that "
        "uses mistakes, or `posterior_distillation`.",
    )


class Respond(Section):
    """Step 4, guided response generation: the prompts for the model before and after training."""

    suites: Annotated[list[Suite], unique("name")] = Field(
        [
            Suite(
                name="harmful",
                kind="harmful",
                sources=[Source(source="builtin:redteam", split="test", shuffle=0, limit=168)],
            ),
            Suite(
                name="hijacking",
                kind="hijacking",
                sources=[Source(source="builtin:hijacking", split="test", shuffle=0, limit=40)],
            ),
            Suite(
                name="safe",
                kind="safe",
                sources=[
                    Source(source="builtin:safe", split="test"),
                    Source(source="builtin:twins", split="test", shuffle=0, limit=80),
                ],
            ),
            Suite(
                name="helpful",
                kind="helpful",
                sources=[Source(source="builtin:helpful", split="test", limit=40)],
            ),
        ],
        description="Sets of prompts that every arm answers.",
        min_length=1,
    )
    guidance: bool = Field(
        False,
        description="Also answer with guidance in the prompt, as one more arm each. The paper's "
        "method answers like this.",
    )
    posterior: Posterior | None = Field(
        None,
        description="Also answer by posterior decoding, as one more arm each; null: no.",
    )
    prefill: str = Field("", description="Text that every response starts with.")
    sampling: Sampling = Field(Sampling(), description="Sampling of responses.")


class Evaluated(Section):
    """One arm of an evaluation: a model, or existing answers."""

    name: Annotated[str, file_name(DOTTED)] = Field(
        description="Name of the arm in files and reports."
    )
    model: EngineField | None = Field(None, description="Model that answers.")
    adapter: LocalPath = Field(
        None, description="Folder of a PEFT adapter for the model; null: none."
    )
    answers: Sources = Field(
        [],
        description="Data sets with existing answers instead of a model: `text` and `response` for "
        "every prompt of the suites, and human labels (`harmful`, `refused`), if any.",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Evaluated:
        if (self.model is None) == (not self.answers):
            raise ValueError(f'"{self.name}" needs either a model or answers')
        if self.adapter is not None and self.model is None:
            raise ValueError(f'"{self.name}" has an adapter but no model')
        return self


class Contender(Section):
    """One method of a comparison."""

    method: str = Field(description="Name of a method, as in `train.method`.")
    name: Annotated[str | None, file_name("")] = Field(
        None, description="Name in files and reports; null: the value of `method`."
    )
    train: dict[str, Any] = Field(
        {}, description="Keys of `train` with other values, such as {learning_rate: 1e-4}."
    )

    @property
    def called(self) -> str:
        """Its name in files and reports."""
        return self.name or self.method


class Compare(Section):
    """A comparison of methods as arms, at equal data."""

    methods: Annotated[list[Annotated[Contender, short_for("method")]], unique("called")] = Field(
        [
            Contender(method=name)
            for name in (
                "mistake_analysis",
                "mistake_distillation",
                "mistake_analysis_sft",
                "sft",
                "chain_of_hindsight",
                "critique_revise",
                "dpo",
                "rlhf",
                "helpful",
            )
        ],
        description="Methods to compare; the first one sets the budget if `train` sets none.",
        min_length=1,
    )
    seeds: Seeds = Field(1, description="Trainings of each method, with different seeds.")
    budget: Literal["tokens", "steps"] = Field(
        "tokens", description="Training budget, equal for all methods: `tokens` or `steps`."
    )
