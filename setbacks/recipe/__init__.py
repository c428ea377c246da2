"""The recipe: all that a run is told, in one object whose every field says what it is.

`Recipe()` with nothing said is the quickstart: the embedded model, the built-in instruction sets,
sizes for two cores. A YAML file names only what differs; `setbacks new` writes one with comments.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SerializeAsAny,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from setbacks.data import Source
from setbacks.errors import InputError, nearest
from setbacks.files import expanded
from setbacks.plugins import installed, plugin
from setbacks.records import Kind

Part = TypeVar("Part", bound=BaseModel)


LONGEST_NAME = 100  # two of them, and an ending, fit into the 255 bytes of a file's name
# An arm's name may have dots, as models' names do. Judges' and suites' have none, so a file's name,
# such as ARM.JUDGE.jsonl, can be read from its end.
DOTTED = ".-"


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PartSection(Section):
    """A section that names a part: a method, for one. The part's options stand beside the name.

    The name picks the class: a part's `Options` is a subclass of the section that adds its fields,
    so that they are checked, documented, and completed like all others. A key that is an option of
    another part is kept where `keeps_others` says so (a comparison's methods share one section),
    and refused otherwise. Where the named part is not installed, its options are kept as they are.
    """

    model_config = ConfigDict(extra="allow")  # `_of_its_part` refuses what nobody knows

    group: ClassVar[str]  # of entry points, as `setbacks.plugins.plugin` takes it
    names: ClassVar[str]  # the field that names the part
    keeps_others: ClassVar[bool] = False

    def __new__(cls, *_: Any, **data: Any) -> Self:
        """Make an object of the class that the name picks."""
        return super().__new__(cls._class_for(data) or cls)

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_part(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        kind = cls._class_for(data)
        if kind is None:
            return handler(data)
        return handler(_with_others(cls, data)) if kind is cls else kind.model_validate(data)

    @classmethod
    def _class_for(cls, data: Any) -> type[Self] | None:
        """The class for a part's options; None where the part is not installed."""
        if not isinstance(data, dict):
            return None
        name = data.get(cls.names, cls.model_fields[cls.names].default)
        if not isinstance(name, str) or name not in installed(cls.group):
            return None
        kind = options_of(cls.group, name)
        return kind if issubclass(kind, cls) else cls


def options_of(group: str, name: str) -> type[PartSection]:
    """Return the section that holds the options of an installed part.

    Args:
        group: of entry points, as `setbacks.plugins.plugin` takes it.
        name: the part's.
    """
    kind: type[PartSection] = plugin(group, name).Options
    return kind


def _with_others(cls: type[PartSection], data: dict[str, Any]) -> dict[str, Any]:
    """Sort out the keys that are not a part's own: other parts' options, and mistakes.

    Recipes of earlier versions hold the options of all parts, so another part's default is dropped.

    Raises:
        ValidationError: a key is nobody's, or another part's and not kept.
    """
    kept = {}
    for key, value in data.items():
        if key in cls.model_fields:
            kept[key] = value
            continue
        owner = _owner(cls, key)
        problem: Any = {"type": "extra_forbidden", "loc": (key,), "input": value}
        if owner is None:
            raise ValidationError.from_exception_data(cls.__name__, [problem])
        if value is None:
            continue
        options = options_of(cls.group, owner)
        value = getattr(options.model_validate({cls.names: owner, key: value}), key)
        if value == options.model_fields[key].get_default(call_default_factory=True):
            continue
        if not cls.keeps_others:
            own = data.get(cls.names, cls.model_fields[cls.names].default)
            problem["type"] = PydanticCustomError(
                "other_part", f"an option of {owner} and not of {own}; leave it out"
            )
            raise ValidationError.from_exception_data(cls.__name__, [problem])
        kept[key] = value
    return kept


def _owner(cls: type[PartSection], key: Any) -> str | None:
    """The installed part that has an option of this name."""
    parts = sorted(installed(cls.group), key=lambda name: (name != key, name))
    return next((n for n in parts if key in options_of(cls.group, n).model_fields), None)


def _named(key: str) -> BeforeValidator:
    """Let a plain string stand for a section in which only `key` is given."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def name_problem(name: str, also: str = "-") -> str:
    """Say why a name, which becomes part of file names, is refused; empty where it is not.

    Args:
        name: of an arm, a suite, a judge or a contender.
        also: what it may hold besides letters, digits and "_".
    """
    allowed = f"A-Za-z0-9_{also}"
    if re.fullmatch(rf"(?!\.)[{allowed}]{{1,{LONGEST_NAME}}}", name):
        return ""
    filler = "-" if "-" in also else "_"
    without_accents = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    fit = re.sub(rf"[^{allowed}]+", filler, without_accents).strip(".-")[:LONGEST_NAME]
    signs = ", ".join(f'"{sign}"' for sign in also + "_")
    return (
        f'"{name}" is no name here; use at most {LONGEST_NAME} letters (a to z), digits and {signs}'
        + (f', such as "{fit}"' if fit else "")
    )


def _name(also: str = "-") -> AfterValidator:
    """Let only names pass that can be part of a file's name."""

    def check(name: str | None) -> str | None:
        if name is not None and (problem := name_problem(name, also)):
            raise ValueError(problem)
        return name

    return AfterValidator(check)


def _names_differ(sections: list[Any]) -> list[Any]:
    """Refuse two sections of one name: their records would have the same ids."""
    names = [getattr(section, "called", section.name) for section in sections]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'"{twice[0]}" is there twice; give each a name of its own')
    return sections


def _people_are_no_recipe(judges: list[Any]) -> list[Any]:
    """Refuse a judge called as people are: it would write where their labels stand."""
    if any(judge.called == "human" for judge in judges):
        raise ValueError(
            '"human" stands for labels by people, from `setbacks review serve RUN` or from the '
            "`answers` of `evaluate`; remove it here, or rename the judge"
        )
    return judges


def _votes_come_last(judges: list[Any]) -> list[Any]:
    """Refuse a vote of judges that are not there, or that speak after it."""
    before: list[str] = []
    for judge in judges:
        if missing := [name for name in judge.of if name not in before]:
            raise ValueError(
                f'{judge.called} is of "{missing[0]}", which is no judge before it '
                f"({', '.join(before) or 'there is none'})"
            )
        before.append(judge.called)
    return judges


Sources = Annotated[
    list[Source],
    BeforeValidator(lambda value: [value] if isinstance(value, str | dict | Source) else value),
]


LOCAL = "a path on this machine"
# A file or folder; relative paths start from the folder of the recipe.
LocalPath = Annotated[str | None, LOCAL]


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


EngineField = Annotated[SerializeAsAny[Engine], _named("model")]


class JudgeSpec(Section):
    """One judge."""

    judge: str = Field(
        "probe",
        description="`probe` (offline), `llm` (the paper's 1-10 scores), `llama-guard`, "
        "`qwen3guard`, `shieldgemma`, `wildguard`, `granite-guardian`, `refusal` or `vote`.",
    )
    name: Annotated[str | None, _name()] = Field(
        None, description="Its name in files and reports; null: the judge's own."
    )
    engine: EngineField | None = Field(
        None,
        description="The judging model of an `llm` judge, null for the recipe's own; a guard's "
        "weights.",
    )
    heads: LocalPath = Field(
        None, description="A `probe` judge's heads, as `setbacks calibrate probe --fit` wrote them."
    )
    retries: int = Field(
        2, ge=0, description="Retries when the reply of an `llm` judge cannot be parsed."
    )
    verdict: Literal["rating", "probability"] = Field(
        "rating",
        description="What an `llm` judge's harmful and refused rest on: its rating and a list of "
        "phrases, or the probabilities of Yes and No.",
    )
    pairwise: bool = Field(
        False, description="Have an `llm` judge compare helpful answers with the reference's."
    )
    of: list[str] = Field([], description="The judges of this recipe that a `vote` counts.")
    kinds: list[Kind] = Field(
        ["harmful", "hijacking", "safe", "helpful"], description="Suites that it judges."
    )

    @property
    def called(self) -> str:
        """Its name, given or not."""
        return self.name or self.judge


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
    judge: Annotated[JudgeSpec, _named("judge")] | None = Field(
        None,
        description="Judge that checks each induced response, such as `probe`: a harmless one is "
        "not a mistake, and the next attempt is made; null: not checked.",
    )
    min_harmful: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Lowest probability of harm of a mistake that `judge` checked.",
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
        "mistake_distillation",
        description="Method that trains the adapter; `setbacks list methods` shows them.",
    )
    mix: Mix = Field(Mix(), description="What is mixed with the method's own examples.")
    helpful: Sources = Field(
        [Source(source="builtin:helpful", split="train")],
        description="Data sets with `text` and a helpful `answer`.",
    )
    helpful_from: Literal["data", "model"] = Field(
        "data",
        description="Who answers the prompts in `helpful`: the `data`, or the untrained `model` "
        "itself, which is then not pulled away from its own style. `mistake_distillation`: "
        "default `model`.",
    )
    helpful_sampling: Sampling = Field(
        Sampling(), description="How the model's own helpful answers are sampled."
    )
    judge: Annotated[JudgeSpec, _named("judge")] | None = Field(
        None,
        description="Judge that checks the texts that the model writes for its own training; "
        "null: `probe`.",
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

    name: Annotated[str, _name()] = Field(description="The suite's name in reports.")
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

    suites: Annotated[list[Suite], AfterValidator(_names_differ)] = Field(
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


class Evaluated(Section):
    """One arm of an evaluation: a model as it is, or answers that are there already."""

    name: Annotated[str, _name(DOTTED)] = Field(description="The arm's name in files and reports.")
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
    name: Annotated[str | None, _name("")] = Field(
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

    methods: Annotated[
        list[Annotated[Contender, _named("method")]], AfterValidator(_names_differ)
    ] = Field(
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
        description="Who is compared. The first sets the budget where `train` gives none.",
        min_length=1,
    )
    seeds: int = Field(1, ge=1, description="Trainings of each method, from different seeds.")
    budget: Literal["tokens", "steps"] = Field(
        "tokens", description="What is equal for all: tokens read in training, or steps."
    )


class Recipe(Section):
    """All that a run is told. Every field has a default; the defaults are the quickstart."""

    name: str = Field("quickstart", description="The run's name in its report.")
    seed: int = Field(0, ge=0, description="Every draw follows from this and from content.")
    language: Literal["en", "zh"] = Field("en", description="Language of our own prompts.")
    model: EngineField = Field(default_factory=Engine, description="The model that is aligned.")
    instructions: Sources = Field(
        [Source(source="builtin:redteam", split="train")],
        description="Red-team instructions that mistakes are drawn for.",
        min_length=1,
    )
    induce: Induce = Field(Induce(), description="Step 1: guided mistake induction.")
    analyze: Analyze = Field(Analyze(), description="Step 2: guided analysis.")
    train: SerializeAsAny[Train] = Field(
        default_factory=Train, description="Step 3: unguided-analysis fine-tuning."
    )
    respond: Respond = Field(Respond(), description="Step 4: guided response generation.")
    judges: Annotated[
        list[Annotated[JudgeSpec, _named("judge")]],
        AfterValidator(_names_differ),
        AfterValidator(_people_are_no_recipe),
        AfterValidator(_votes_come_last),
    ] = Field([JudgeSpec()], description="Judges of the responses, in this order.", min_length=1)
    evaluate: Annotated[list[Evaluated], AfterValidator(_names_differ)] = Field(
        [],
        description="`setbacks evaluate`: answer with these, each against the first, and train "
        "nothing; [] for the method.",
    )
    compare: Compare = Field(Compare(), description="What `setbacks compare` compares.")
    jobs: int = Field(
        1,
        ge=1,
        description="Runs of a comparison or a study that go on side by side, each in a process "
        "of its own; for a GPU that one run of a small model leaves idle.",
    )
    study: dict[str, Any] = Field(
        {}, description="Options of `setbacks study NAME`; the study's page lists them."
    )

    def options(self, kind: type[Part], where: str) -> Part:
        """Check the recipe's `study` against what a study knows.

        Raises:
            InputError: an unknown key or a bad value; `where` begins its message.
        """
        try:
            return kind.model_validate(self.study)
        except ValidationError as error:
            raise InputError(f"{where}: {_explain(error, kind)}") from None

    @property
    def train_seed(self) -> int:
        """The seed of the training."""
        return self.seed if self.train.seed is None else self.train.seed

    @classmethod
    def load(cls, path: Path | str | None = None, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe from YAML; paths in it count from its own folder.

        Args:
            path: the YAML file; None for the quickstart.
            overrides: ``key.path=value`` strings that win over the file (omegaconf's dot list).

        Raises:
            InputError: the file is missing, is no YAML, or holds an unknown key or a bad value.
        """
        told: Any = {} if path is None else _read_yaml(Path(path))
        where = "the command line" if path is None else str(path)
        if overrides:
            with suppress(ValidationError):
                cls.model_validate(told)
                where = "the command line"  # since the file by itself is in order
            told = _merge(_written_out(cls, told), parse_overrides(overrides))
        base = Path.cwd() if path is None else Path(path).resolve().parent
        return cls.parse(told, where).rebased(base)

    @classmethod
    def parse(cls, told: Any, where: str) -> Recipe:
        """Make a recipe of plain data.

        Raises:
            InputError: an unknown key or a bad value; `where` begins its message.
        """
        try:
            return cls.model_validate(told)
        except ValidationError as error:
            raise InputError(f"{where}: {_explain(error)}") from None

    def rebased(self, base: Path) -> Recipe:
        """Return this recipe with the paths of sources and models counted from `base`."""

        def walk(value: Any) -> Any:
            if isinstance(value, Source):
                return _absolute(value, base)
            if isinstance(value, Section):
                parts = {key: walk(inner) for key, inner in value}
                for key, field in type(value).model_fields.items():
                    if LOCAL in field.metadata and parts[key] is not None:
                        parts[key] = _from(base, parts[key])
                if isinstance(value, Engine) and value.on_disk and _is_folder(value.model, base):
                    parts["model"] = _from(base, value.model)
                return value.model_copy(update=parts)
            return [walk(item) for item in value] if isinstance(value, list) else value

        rebased: Recipe = walk(self)
        return rebased

    def parts(self, kind: type[Part]) -> Iterator[Part]:
        """Yield every part of a kind, such as each `Source` or `Engine`, in the recipe's order."""

        def walk(value: Any) -> Iterator[Part]:
            if isinstance(value, kind):
                yield value
            elif isinstance(value, BaseModel):
                for _, inner in value:
                    yield from walk(inner)
            elif isinstance(value, list):
                for item in value:
                    yield from walk(item)

        yield from walk(self)

    def to_yaml(self) -> str:
        """Return the whole recipe, defaults included, as YAML."""
        told = self.model_dump(mode="json")
        text: str = yaml.safe_dump(told, sort_keys=False, allow_unicode=True)
        # PyYAML writes some line separators raw and reads them back as spaces.
        return text if yaml.safe_load(text) == told else yaml.safe_dump(told, sort_keys=False)


def _absolute(source: Source, base: Path) -> Source:
    """Count a source's path from `base`; names such as builtin:redteam stay as they are."""
    update = {}
    if not source.source.startswith(("builtin:", "preset:", "hub:")):
        update["source"] = _from(base, source.source)
    if source.path is not None:
        update["path"] = _from(base, source.path)
    return source.model_copy(update=update)


def _from(base: Path, path: str) -> str:
    return os.path.normpath(base / expanded(path))


def _is_folder(model: str, base: Path) -> bool:
    """Whether a model is a folder and no hub id: it is written like one, or it is there."""
    return model.startswith((".", "~", os.sep)) or (base / model).is_dir()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        siblings = path.parent.glob("*.y*ml") if path.parent.is_dir() else ()
        hint = nearest(path.name, [other.name for other in siblings])
        raise InputError(
            f"{path}: no such recipe.{hint} `setbacks new {path.name}` writes one."
        ) from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; name a recipe, which is a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise InputError(f"{path}:{line} not YAML: {' '.join(problem.split())}") from None
    if told is None:
        return {}
    if not isinstance(told, dict):
        raise InputError(f"{path}: a recipe is `key: value` lines, not a {type(told).__name__}")
    return told


def parse_overrides(overrides: Sequence[str]) -> Any:
    """Turn ``key.path=value`` strings into nested mappings."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals or not key:
            raise InputError(f'"{item}" is no override; write key.path=value, such as seed=1')
    try:
        # Interpolations stay text: a recipe is data and must not read the environment.
        return OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)), resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{' '.join(overrides)}: {' '.join(str(error).split())}") from None


def _merge(old: Any, new: Any) -> Any:
    """Lay `new` over `old`, mapping by mapping."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{key: _merge(old.get(key), value) for key, value in new.items()}}


def _written_out(section: type[BaseModel], told: Any) -> Any:
    """Write out what stands short for an engine, so that an override can lie beside its model."""
    if not isinstance(told, dict):
        return {"model": told} if section is Engine and isinstance(told, str) else told
    fields = section.model_fields
    inner = {key: section_of(fields[key].annotation) for key in told if key in fields}
    return {key: _written_out(s, v) if (s := inner.get(key)) else v for key, v in told.items()}


def _explain(error: ValidationError, root: type[BaseModel] | None = None) -> str:
    """Say in one line what is wrong with a recipe, or with a `root`, and where."""
    problems = []
    for problem in error.errors(include_url=False):
        # pydantic names union members and validators in the path; the user wrote neither.
        where = ".".join(str(part) for part in problem["loc"] if "[" not in str(part))
        if problem["type"] == "extra_forbidden":
            key = str(problem["loc"][-1])
            hint = nearest(key, _fields_at(root or Recipe, problem["loc"][:-1]))
            problems.append(f'unknown key "{where}".{hint}')
        else:
            problems.append(f"{where or 'recipe'}: {problem['msg']}")
    said = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
    return " ".join(said.split())  # a key may hold the end of a line


def _fields_at(section: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The field names of the section that a validation error's path leads to from another."""
    for part in path:
        field = _fields(section).get(str(part))
        if field is not None:
            section = section_of(field.annotation) or section
    return list(_fields(section))


def _fields(section: type[BaseModel]) -> dict[str, Any]:
    """A section's fields, those of all installed parts among them."""
    fields: dict[str, Any] = dict(section.model_fields)
    if issubclass(section, PartSection):
        for name in installed(section.group):
            fields = options_of(section.group, name).model_fields | fields
    return fields


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field's type holds: itself, in a list, or beside None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (section_of(part) for part in getattr(annotation, "__args__", ()))
    return next((section for section in inner if section), None)
