"""The sections of a recipe that name a model or a judge, and how tokens are sampled."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, SerializeAsAny, model_validator

from setbacks.recipe.parts import PartSection, Section, file_name, short_for, unique
from setbacks.records import Kind

# Arguments of `apply_chat_template` that are no variables of a template.
_RESERVED = frozenset(
    "conversation messages chat_template add_generation_prompt continue_final_message tokenize "
    "padding truncation max_length return_tensors return_dict return_assistant_tokens_mask "
    "tokenizer_kwargs".split()
)


class Sampling(Section):
    """Settings of sampling."""

    max_new_tokens: int = Field(96, ge=1, description="Longest response, in tokens.")
    max_thinking_tokens: int | None = Field(
        1024,
        ge=1,
        description="Longest thought of a reasoning model, in tokens; a longer one is closed by "
        "force, and the response follows; null: thought and response share `max_new_tokens`.",
    )
    temperature: float = Field(
        0.0, ge=0, description="Sampling temperature; 0 picks the most likely token."
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Sample from the most likely tokens whose probabilities add up to this value.",
    )
    top_k: int = Field(50, ge=1, description="Sample from the k most likely tokens.")


class Engine(PartSection):
    """A model and the engine that runs it, with the engine's options."""

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
        "own",
        description="Chat template: `own` (the tokenizer's) or `alpaca` (for base models without "
        "one).",
    )
    template: dict[str, JsonValue] = Field(
        {},
        description="Variables of the chat template, such as {enable_thinking: false}.",
    )
    thinking: tuple[str, str] | None = Field(
        None,
        description="Markers before and after a thought, such as [<think>, </think>]; null: those "
        "that the chat template names, if any.",
    )
    system: str | None = Field(
        None,
        description="System prompt of every conversation with the model; a data row's own system "
        "turn follows it. Null: none.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Data type of the weights; `auto`: bfloat16 if the hardware is faster in it, "
        "else float32.",
    )
    device: str = Field("auto", description="Device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.")
    batch_size: int = Field(
        256, ge=1, description="Largest number of prompts in a batch of generation."
    )
    cuda_graphs: bool = Field(
        True, description="Replay captured CUDA graphs instead of starting each kernel."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with a hub model; unsafe."
    )
    on_disk: ClassVar[bool] = True  # whether a model may be a folder here

    @model_validator(mode="after")
    def _template_and_markers(self) -> Self:
        if ours := sorted(_RESERVED & self.template.keys()):
            raise ValueError(f'"{ours[0]}" in template is set by setbacks; remove it')
        if self.thinking and not all(marker.strip() for marker in self.thinking):
            raise ValueError("thinking needs two markers that are not blank")
        return self

    @property
    def runs_in(self) -> str:
        """The engine that holds the weights: this one, or the one inside each worker."""
        return self.engine


EngineField = Annotated[SerializeAsAny[Engine], short_for("model")]


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
    thoughts: bool = Field(
        False,
        description="Also judge the thoughts of reasoning models, apart from their answers.",
    )

    @property
    def called(self) -> str:
        """Its name in files and reports."""
        return self.name or self.judge

    @property
    def counts(self) -> list[str]:
        """The judges whose verdicts it counts; they come before it in a recipe."""
        return []


JudgeField = Annotated[SerializeAsAny[JudgeSpec], short_for("judge")]


def _people_are_not_judges(judges: list[JudgeSpec]) -> list[JudgeSpec]:
    """Reject a judge with the name of people's labels: its verdicts would mix with them."""
    if any(judge.called == "human" for judge in judges):
        raise ValueError(
            '"human" stands for labels by people, from `setbacks review serve RUN` or from the '
            "`answers` of `evaluate`; remove it here, or rename the judge"
        )
    return judges


def _counted_come_first(judges: list[JudgeSpec]) -> list[JudgeSpec]:
    """Reject a judge that counts judges which are missing or come later."""
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
    list[JudgeField],
    unique("called"),
    AfterValidator(_people_are_not_judges),
    AfterValidator(_counted_come_first),
]
