"""The sections of a recipe, in the order in which a run reads them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, SerializeAsAny, model_validator

from setbacks.data import Source
from setbacks.recipe.parts import (
    DOTTED,
    LocalPath,
    PartSection,
    Section,
    Sources,
    file_name,
    short_for,
    unique,
)
from setbacks.records import Kind


class Sampling(Section):
    """How tokens are sampled."""

    max_new_tokens: int = Field(96, ge=1, description="Longest response, in tokens.")
    temperature: float = Field(
        0.0, ge=0, description="Sampling temperature; 0 picks the most likely token."
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Sample from the most likely tokens that "
        "make up this share of the probability.",
    )
    top_k: int = Field(50, ge=1, description="Sample from the k most likely tokens.")


class Engine(PartSection):
    """A model and what runs it. An engine's own options stand here too."""

    group, names = "engines", "engine"

    model: str = Field(
        "smollm2-135m",
        description="`smollm2-135m` or the base model `gemma3-270m` (embedded, no hub needed), a "
        "hub id, or a local folder.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    engine: str = Field(
        "local",
        description="Engine that generates: `local` (transformers), `vllm`, `ray` (workers on a "
        "cluster), `endpoint` (a server), or another that is installed.",
    )
    chat_template: Literal["own", "alpaca"] = Field(
        "own", description="`own`: the tokenizer's; `alpaca`: for base models without one."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="`auto`: bfloat16 where the hardware computes in it, else float32."
    )
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1`, `mps`.")
    batch_size: int = Field(128, ge=1, description="Maximum batch size for generation.")
    cuda_graphs: bool = Field(
        True, description="On a CUDA GPU, replay captured steps instead of starting each kernel."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with a hub model. Leave it off."
    )
    on_disk: ClassVar[bool] = True  # whether a model may be a folder here

    @property
    def runs_in(self) -> str:
        """The engine that holds the weights: this one, or the one inside each worker."""
        return self.engine


EngineField = Annotated[SerializeAsAny[Engine], short_for("model")]


class Induce(Section):
    """Step 1, guided mistake induction: ask the unaligned model for bad responses."""

    source: Literal["induced", "existing", "both"] = Field(
        "induced", description="Mistakes drawn from the model, taken from data, or both."
    )
    existing: Sources = Field(
        [], description="Data sets with `text` and a harmful `response` (for existing / both)."
    )
    guidance: Literal["hints", "persona", "category"] = Field(
        "hints",
        description="What the model is told, to answer badly: `hints` of tone, whom to answer as, "
        "or which category of harm to do.",
    )
    attempts: int = Field(
        3,
        ge=1,
        description="Attempts per instruction, each with another hint, while the model refuses.",
    )
    sampling: Sampling = Field(
        Sampling(max_new_tokens=64, temperature=0.8, top_p=0.95),
        description="How mistakes are sampled.",
    )
    near_duplicate: float = Field(
        0.7,
        gt=0,
        le=1,
        description="A response that shares this part of its word 5-grams with an earlier "
        "mistake is dropped; 1 keeps all.",
    )


class Analyze(Section):
    """Step 2, guided analysis: have the analyst explain why a response is harmful."""

    analyst: EngineField | None = Field(
        None, description="Who analyses; null: the model itself (the paper's default)."
    )
    candidates: int = Field(
        2, ge=1, description="Number of analyses per mistake; the best one is kept."
    )
    prefill: bool = Field(
        True, description="Start the analysis for the analyst ('The response is harmful because')."
    )
    contrast: Sources = Field(
        [Source(source="builtin:safe", split="train", limit=40)],
        description="Benign instructions with answers, analysed as harmless, so that the model "
        "cannot learn to call everything harmful; [] for none.",
    )
    sampling: Sampling = Field(
        Sampling(max_new_tokens=80, temperature=0.8, top_p=0.95),
        description="How analyses are sampled.",
    )
    min_words: int = Field(12, ge=1, description="Shorter analyses are dropped.")
    max_words: int = Field(200, ge=1, description="Longer analyses are dropped.")
    min_overlap: int = Field(
        2,
        ge=0,
        description="Content words of the instruction or response that an analysis must take up.",
    )
    min_distinct: float = Field(
        0.8, ge=0, le=1, description="Least share of distinct word 3-grams (repetition check)."
    )


class Mix(Section):
    """How many examples of each kind, for one example of the method's own."""

    contrast: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="Analyses of benign responses, for one own."
    )
    helpful: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="Helpful answers, for one own."
    )
    safe: float = Field(
        0.0, ge=0, description="Safe answers to red-team instructions, for one own."
    )


class Lora(Section):
    """The adapter (LoRA, arXiv 2106.09685)."""

    r: int = Field(16, ge=1, description="Rank.")
    alpha: int = Field(
        32, ge=1, description="Scale: the update is multiplied by alpha / r (see `rslora`)."
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on the adapter's input; on a CPU it doubles the time."
    )
    targets: str | list[str] = Field(
        "all-linear",
        description="Modules that get an adapter: `all-linear` (every linear module of the "
        "language model but its head), a list of names, or a regular expression that matches "
        "whole names.",
    )
    target_parameters: list[str] = Field(
        [],
        description="Parameters that get an adapter although they are not modules, such as the "
        "fused experts of a mixture: [mlp.experts.gate_up_proj, mlp.experts.down_proj].",
    )
    exclude: list[str] = Field([], description="Names of modules that `targets` leaves out.")
    layers: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="Numbers of the layers that get an adapter, from 0; null: all."
    )
    modules_to_save: list[str] = Field(
        [],
        description="Names of modules that are trained and saved whole, such as `embed_tokens` "
        "and `lm_head`.",
    )
    dora: bool = Field(
        False, description="Learn the magnitude of the weights too (DoRA, arXiv 2402.09353)."
    )
    rslora: bool = Field(
        False,
        description="Multiply the update by alpha / sqrt(r) (rank-stabilized LoRA, "
        "arXiv 2312.03732).",
    )


class Train(PartSection):
    """Step 3, unguided-analysis fine-tuning. A method's own options stand here too."""

    group, names, keeps_others = "methods", "method", True

    method: str = Field(
        "mistake_analysis",
        description="Method that trains the adapter; `setbacks list methods` shows them.",
    )
    mix: Mix = Field(Mix(), description="What is mixed with the method's own examples.")
    helpful: Sources = Field(
        [Source(source="builtin:helpful", split="train")],
        description="Data sets with `text` and a helpful `answer`.",
    )
    safe: Sources = Field(
        [Source(source="builtin:refusals", split="train")],
        description="Data sets with a red-team `text` and a safe `answer`.",
    )
    analyses: Literal["filtered", "unfiltered", "shuffled"] = Field(
        "filtered",
        description="Which analyses are learned: the best that passed its checks, the best of all, "
        "or, as a control that should teach nothing, another response's.",
    )
    most_analyses: int | None = Field(
        None, ge=1, description="Maximum number of analyses of mistakes to learn; null: all."
    )
    categories: list[str] | None = Field(
        None, description="Categories of harm to learn from; null: all."
    )
    question: Literal["unguided", "guided"] = Field(
        "unguided",
        description="What is asked before an analysis: the neutral question, or, for an ablation, "
        "the one that tells the verdict.",
    )
    verdict: Literal["within", "first"] = Field(
        "within",
        description="Where an analysis says harmful or harmless: `within` its text as it was "
        "drawn, or `first`, in a word of its own.",
    )
    verdict_weight: float = Field(
        1.0, gt=0, description="Weight in the loss of a verdict that comes first."
    )
    lora: Lora = Field(Lora(), description="The adapter's shape.")
    seed: int | None = Field(
        None, ge=0, description="Of the adapter's first weights and the order; null: the recipe's."
    )
    epochs: int = Field(2, ge=1, description="Passes over the examples.")
    tokens: int | None = Field(
        None, ge=1, description="Number of tokens to train on, instead of `epochs`."
    )
    steps: int | None = Field(
        None, ge=1, description="Number of training steps, instead of `epochs`."
    )
    start: LocalPath = Field(
        None, description="Folder of an adapter to start from, instead of a new one."
    )
    quantize: Literal["4bit"] | None = Field(
        None,
        description="`4bit`: train on base weights of 4 bits (QLoRA; needs CUDA and bitsandbytes).",
    )
    snapshots: int = Field(
        0, ge=0, description="Number of evenly spaced adapter snapshots to keep in `snapshots/`."
    )
    batch_size: int = Field(8, ge=1, description="Examples a step.")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate (AdamW); null: the method's own, 2e-4 for supervised ones.",
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the steps that warm up.")
    scheduler: str = Field("cosine", description="Learning rate schedule (transformers' names).")
    max_length: int = Field(1024, ge=16, description="Longest example, in tokens; longer are cut.")
    gradient_checkpointing: bool = Field(
        False, description="Save memory for about a third more time."
    )
    checkpoint_every: int = Field(20, ge=1, description="Steps between checkpoints.")
    report_to: list[str] = Field(
        [], description="Trackers such as `wandb`, `tensorboard`, `trackio`; none by default."
    )


class Suite(Section):
    """A named set of prompts with what is expected of an answer."""

    name: Annotated[str, file_name()] = Field(description="The suite's name in reports.")
    kind: Kind = Field(
        description="`harmful`, `hijacking` (must not be served), `safe` (must not be refused) "
        "or `helpful`."
    )
    sources: Sources = Field(description="Where its prompts come from.", min_length=1)


class Posterior(Section):
    """Posterior decoding: of several drafts, the one that the model itself finds most harmless."""

    drafts: int = Field(4, ge=2, description="Drafts of each response.")
    temperature: float = Field(0.8, gt=0, description="At which they are drawn.")


class Respond(Section):
    """Step 4, guided response generation: what is asked of the model before and after."""

    suites: Annotated[list[Suite], unique("name")] = Field(
        [
            Suite(
                name="harmful",
                kind="harmful",
                sources=[Source(source="builtin:redteam", split="test")],
            ),
            Suite(
                name="hijacking",
                kind="hijacking",
                sources=[Source(source="builtin:hijacking", split="test")],
            ),
            Suite(name="safe", kind="safe", sources=[Source(source="builtin:safe", split="test")]),
            Suite(
                name="helpful",
                kind="helpful",
                sources=[Source(source="builtin:helpful", split="test", limit=40)],
            ),
        ],
        description="Prompts that every arm answers.",
        min_length=1,
    )
    guidance: bool = Field(
        True, description="Also answer with guidance in the prompt (two more arms)."
    )
    posterior: Posterior | None = Field(
        None,
        description="Also answer with that of several drafts which the model itself finds most "
        "harmless (one more arm each); null: no.",
    )
    prefill: str = Field("", description="Text that every response begins with.")
    sampling: Sampling = Field(Sampling(), description="How responses are sampled.")


class JudgeSpec(PartSection):
    """A judge, with its options."""

    group, names = "judges", "judge"
    ignored = ("retries",)

    judge: str = Field(
        "probe",
        description="Name of the judge: `probe` (offline), `llm` (the paper's scores from 1 to "
        "10), a guard model, ...; `setbacks list judges` shows all.",
    )
    name: Annotated[str | None, file_name()] = Field(
        None, description="Name in files and reports; null: the value of `judge`."
    )
    engine: EngineField | None = Field(
        None,
        description="Model of an `llm` judge, null for the recipe's `model`; or weights of a guard "
        "model.",
    )
    kinds: list[Kind] = Field(
        ["harmful", "hijacking", "safe", "helpful"], description="Kinds of suites to judge."
    )

    @property
    def called(self) -> str:
        """Its name in files and reports."""
        return self.name or self.judge

    @property
    def counts(self) -> list[str]:
        """The judges whose verdicts it counts; they come before it in a recipe."""
        return []


def _people_are_not_judges(judges: list[JudgeSpec]) -> list[JudgeSpec]:
    """Refuse a judge with the name of people's labels: its verdicts would stand among them."""
    if any(judge.called == "human" for judge in judges):
        raise ValueError(
            '"human" stands for labels by people, from `setbacks review serve RUN` or from the '
            "`answers` of `evaluate`; remove it here, or rename the judge"
        )
    return judges


def _counted_come_first(judges: list[JudgeSpec]) -> list[JudgeSpec]:
    """Refuse a judge that counts others which are missing or come after it."""
    before: list[str] = []
    for judge in judges:
        if missing := [name for name in judge.counts if name not in before]:
            raise ValueError(
                f'{judge.called} counts "{missing[0]}", which is not among the judges before it '
                f"({', '.join(before) or 'there are none'})"
            )
        before.append(judge.called)
    return judges


Judges = Annotated[
    list[Annotated[SerializeAsAny[JudgeSpec], short_for("judge")]],
    unique("called"),
    AfterValidator(_people_are_not_judges),
    AfterValidator(_counted_come_first),
]


class Evaluated(Section):
    """One arm of an evaluation: a model as it is, or answers that are there already."""

    name: Annotated[str, file_name(DOTTED)] = Field(
        description="The arm's name in files and reports."
    )
    model: EngineField | None = Field(None, description="The model that answers.")
    adapter: LocalPath = Field(
        None, description="A PEFT folder that the model answers with; null: the bare model."
    )
    answers: Sources = Field(
        [],
        description="In place of a model: data sets with `text` and `response`, one answer to "
        "every prompt of the suites. Human labels in them (`harmful`, `refused`) are kept.",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Evaluated:
        if (self.model is None) == (not self.answers):
            raise ValueError(f'"{self.name}" needs either a model or answers')
        if self.adapter is not None and self.model is None:
            raise ValueError(f'"{self.name}" has an adapter and no model')
        return self


class Contender(Section):
    """One method of a comparison."""

    method: str = Field(description="A method's name, as in `train.method`.")
    name: Annotated[str | None, file_name("")] = Field(
        None, description="Its name in the report; null: the method's."
    )
    train: dict[str, Any] = Field(
        {}, description="Keys of `train` that differ for it, such as {learning_rate: 1e-4}."
    )

    @property
    def called(self) -> str:
        """Its name, given or not."""
        return self.name or self.method


class Compare(Section):
    """`setbacks compare`: methods as arms, at equal data."""

    methods: Annotated[list[Annotated[Contender, short_for("method")]], unique("called")] = Field(
        [
            Contender(method=name)
            for name in (
                "mistake_analysis",
                "mistake_analysis_sft",
                "sft",
                "chain_of_hindsight",
                "critique_revise",
                "dpo",
                "rlhf",
                "helpful",
            )
        ],
        description="Who is compared. The first sets the budget where `train` gives none.",
        min_length=1,
    )
    seeds: int = Field(1, ge=1, description="Trainings of each method, from different seeds.")
    budget: Literal["tokens", "steps"] = Field(
        "tokens", description="What is equal for all: tokens read in training, or steps."
    )
