"""What flows through a run: records, one on each line of a journal.

A record's `id` is derived from the content that it came from, never from the order of work, and a
record names the records that it came from. `v` is the version of the schema. It grows when a field
changes its meaning, so that old folders can be recognized: since version 2, an instruction can be
the turns of a conversation; a string is short for one user turn. `docs/run-folder.md` is generated
from the descriptions of the fields.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field

from setbacks.messages import Completion as Completion
from setbacks.messages import Finish as Finish
from setbacks.messages import Message, Prompt, prompt_of, transcript
from setbacks.messages import Request as Request
from setbacks.text import same_text

SCHEMA_VERSION = 2

Kind = Literal["harmful", "hijacking", "safe", "helpful"]
# What a mistake is: a harmful response, or the refusal of a safe request.
Setback = Literal["harmful", "refusal"]
Label = Literal["harmful", "refusal", "harmless"]
# `refusal` ends an attempt at a harmful response, `compliance` one at a refusal.
Outcome = Literal["mistake", "refusal", "empty", "duplicate", "harmless", "unscored", "compliance"]
# What the checks of a text that the model wrote for its own training say of its form and its
# content; "kept" is learned.
Form = Literal["empty", "unfinished", "degenerate"]
Checked = Literal["kept", Form, "harmful", "refusal", "compliance", "unscored", "off_topic"]
# What the model sees besides the instruction of its mistake, to measure the flip rate.
Context = Literal["none", "guidance", "analysis", "shuffled"]
CONTEXTS: tuple[Context, ...] = get_args(Context)
Way = Literal["unguided", "guided", "posterior"]
WAYS: tuple[Way, ...] = get_args(Way)


def digest(*parts: object) -> str:
    """Return 16 hex digits that name this content: the same for the same parts, everywhere.

    Args:
        parts: strings, prompts, numbers, booleans or None; their order counts.
    """
    return hashlib.blake2b(
        "\x1f".join(map(_part, parts)).encode("utf-8", "surrogatepass"), digest_size=8
    ).hexdigest()


def _part(part: object) -> str:
    if isinstance(part, tuple):  # the turns of a conversation
        return "\x1e".join(turn.model_dump_json() for turn in part)
    return str(part)


@contextmanager
def in_bulk() -> Iterator[None]:
    """Make many records at once, also as a decorator: without the garbage collector.

    A hundred thousand new objects set it off again and again, and it finds nothing.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _unset(value: object) -> bool:
    return value is None


OfMistake = Annotated[
    Setback,
    Field(
        exclude_if=lambda kind: kind == "harmful",
        description="`refusal` where the mistake is the refusal of a safe request; else missing.",
    ),
]


class Record(BaseModel):
    """What all records have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(
        description="16 hex digits, derived from the content that the record came from."
    )
    v: int = Field(SCHEMA_VERSION, le=SCHEMA_VERSION, description="Version of the schema.")


def same_prompt(prompt: Prompt) -> str:
    """Return a prompt in a form that is equal for copies of it, as `same_text` does for texts."""
    return same_text(transcript(prompt))


class Instruction(NamedTuple):
    """X: what a user asks, and what is known of it; `answer` is a good answer to it.

    `harmful` is whether the data call the instruction itself harmful, where they say so. It comes
    from a source and is in no journal: a million of them are held in memory.
    """

    id: str
    text: Prompt
    answer: str | None = None
    category: str | None = None
    language: str = "en"
    source: str = ""
    harmful: bool | None = None


class Mistake(Record):
    """One attempt to induce a mistake (Y).

    Only those with outcome `mistake` are used. The others are kept so that they can be counted.
    """

    instruction_id: str = Field(description="`id` of the instruction.")
    instruction: Prompt = Field(description="The instruction.")
    response: str = Field(description="The model's response.")
    thought: str | None = Field(
        None,
        exclude_if=_unset,
        description="Thought of a reasoning model before the response; missing without one.",
    )
    kind: OfMistake = "harmful"
    outcome: Outcome = Field(description="`mistake` (used), or why it is not used.")
    attempt: int = Field(description="Number of the attempt, from 0.")
    hint: str | None = Field(
        description="The hint that guided the attempt; null for a mistake from data."
    )
    category: str | None = Field(description="Category of harm, copied from the instruction.")
    language: str = Field(description="Copied from the instruction.")
    source: str = Field(description="The source, copied from the instruction.")
    model: str | None = Field(
        description="Model that wrote the response; null for a mistake from data."
    )


class Analysis(Record):
    """One candidate analysis (T) of a response, with its quality checks."""

    response_id: str = Field(
        description="`id` of the mistake; for a benign response, an id derived from its content."
    )
    instruction: Prompt = Field(description="The instruction.")
    response: str = Field(description="The response that is analyzed.")
    harmful: bool = Field(
        description="True for a harmful mistake; false for a refusal and for a contrast analysis."
    )
    kind: OfMistake = "harmful"
    text: str = Field(description="The analysis, cut after its last complete sentence.")
    candidate: int = Field(description="Number of the candidate, from 0.")
    checks: dict[str, bool] = Field(
        description="Quality checks (`agrees`, `on_topic`, `length`, `no_repetition`): true if "
        "passed."
    )
    score: float = Field(description="Ranks the candidates that passed; higher is better.")
    category: str | None = Field(
        description="Copied from the response; without one, the clause of the policy that the "
        "analysis names."
    )
    language: str = Field(description="Copied from the response.")
    analyst: str = Field(description="Model that wrote the analysis.")

    @property
    def label(self) -> Label:
        """What is said of the response; a key of the words in a pack's `analyze`."""
        return label_of(self.harmful, self.kind)

    @property
    def passed(self) -> bool:
        """Whether every quality check passed."""
        return all(self.checks.values())


def label_of(harmful: bool, kind: Setback) -> Label:
    """Return what is said of a response: `harmless` is one that is no mistake."""
    return "refusal" if kind == "refusal" else "harmful" if harmful else "harmless"


class Reading(Record):
    """The model's own verdict on a response, in answer to the neutral question."""

    response_id: str = Field(description="`id` of the mistake, or of the benign response.")
    harmful: bool = Field(description="Label of the response.")
    kind: OfMistake = "harmful"
    p_harmful: float = Field(
        description='Probability, 0 to 1, that the model says "harmful" rather than "harmless" '
        "to the neutral question."
    )
    text: str | None = Field(
        None, description="The analysis that the trained model writes; null before training."
    )


_CHECKED = (
    "`kept` (learned), or why not: `empty`, `unfinished`, `degenerate`, `harmful`, `refusal` (of a "
    "benign prompt), `compliance` (with a harmful one), `unscored` (the judge gave no verdict), "
    "`off_topic` (not about its instruction)."
)


class Flip(Record):
    """The teacher's answer to the instruction of a mistake, in one context.

    It flips the mistake if it is harmless and can be learned (outcome `kept`).
    """

    response_id: str = Field(description="`id` of the mistake.")
    context: Context = Field(
        description="What the model saw: the instruction alone (`none`), with `guidance`, or with "
        "guidance and the `analysis` of the mistake, or that of another mistake (`shuffled`)."
    )
    analysis_id: str | None = Field(
        None, description="`id` of the analysis that the model saw; null without one."
    )
    text: str = Field(description="What the model wrote.")
    outcome: Checked = Field(description=_CHECKED)
    model: str = Field(description="Model that wrote the answer.")


class Teaching(BaseModel, frozen=True, extra="forbid"):
    """How a teacher wrote a completion: its next-token distributions are learned."""

    prompt: list[Message] = Field(description="Messages that the teacher sees.")
    opening: str = Field(
        "", description="Start of the completion that the teacher was given; learned as text."
    )
    cut: bool = Field(
        False,
        description="True if the teacher wrote more than the completion: the end of the turn is "
        "learned as text.",
    )


class Example(Record):
    """One training example. The loss covers only the completion, after what is `given` of it."""

    kind: str = Field(
        description="`analysis`, `contrast`, `helpful`, `safe`, or a method's own kind, such as "
        "`pair`."
    )
    prompt: list[Message] = Field(description="Messages before the completion; they have no loss.")
    completion: str = Field(description="What the model learns.")
    thought: str | None = Field(
        None,
        exclude_if=_unset,
        description="The thought before the completion, which is learned too; missing without one.",
    )
    parents: list[str] = Field(description="`id`s of the records that it was made from.")
    verdict: str | None = Field(
        None,
        description="Start of the completion that states the verdict, if that gets a higher "
        "weight.",
    )
    rejected: str | None = Field(None, description="The completion that a preference pair rejects.")
    given: str | None = Field(
        None,
        exclude_if=_unset,
        description="Start of the completion that is given and has no loss, as in an answer that "
        "begins wrongly and is put right; missing without one.",
    )
    teacher: Teaching | None = Field(
        None,
        exclude_if=_unset,
        description="Prompt of the teacher, the given `opening` of its answer, and whether the "
        "answer was `cut` (`train.distill`); missing where the text is learned.",
    )
    replayed_from: str | None = Field(
        None,
        exclude_if=_unset,
        description="Name of the earlier run that it was taken from (`train.replay`); missing in "
        "an example of this run.",
    )

    @property
    def instruction(self) -> Prompt:
        """The messages before the completion; a single user turn as a string."""
        return prompt_of(self.prompt)


class Revision(Record):
    """A mistake that the model rewrote after reading its critique (method `critique_revise`)."""

    analysis_id: str = Field(description="`id` of the analysis that served as the critique.")
    instruction: Prompt = Field(description="The instruction.")
    response: str = Field(description="The mistake.")
    kind: OfMistake = "harmful"
    text: str = Field(description="The revision.")
    passed: bool = Field(description="True if the revision can be used.")
    model: str = Field(description="Model that wrote the revision.")


class Correction(Record):
    """The model's own answer in place of a mistake, checked (`setbacks.methods.corrections`)."""

    analysis_id: str = Field(description="`id` of the analysis of the mistake.")
    instruction: Prompt = Field(description="The instruction.")
    response: str = Field(description="The mistake.")
    kind: OfMistake = "harmful"
    prompt: Prompt | None = Field(
        None,
        exclude_if=_unset,
        description="Prompt of the model; missing in runs of earlier versions.",
    )
    opening: str | None = Field(
        None, exclude_if=_unset, description="Given beginning of `text`; missing without one."
    )
    text: str = Field(description="What the model wrote.")
    answer: str = Field(description="The part to learn: up to the last whole sentence.")
    outcome: Checked = Field(description=_CHECKED)
    sample: int = Field(description="Number of the attempt, from 0.")
    model: str = Field(description="Model that wrote the answer.")


class OwnAnswer(Record):
    """The untrained model's answer to a benign prompt (`train.helpful_from: model`)."""

    instruction_id: str = Field(description="`id` of the instruction.")
    instruction: Prompt = Field(description="The instruction.")
    text: str = Field(description="What the model wrote.")
    answer: str = Field(description="The part to learn: up to the last whole sentence.")
    outcome: Checked = Field(description=_CHECKED)
    language: str = Field(description="Language of the instruction.")
    source: str = Field(description="Source of the instruction.")
    model: str = Field(description="Model that wrote the answer.")


class Choice(Record):
    """Drafts of an answer, ranked by the model itself (method `posterior_distillation`)."""

    instruction: Prompt = Field(description="The instruction.")
    drafts: list[str] = Field(description="Drafts of an answer, the least harmful first.")
    p_harmful: list[float] = Field(
        description="For each draft, the probability, 0 to 1, that the model finds it harmful."
    )
    model: str = Field(description="Model that wrote and ranked the drafts.")


@dataclass(frozen=True)
class Arm:
    """A model in the comparison, and the way in which it answers.

    Args:
        name: what the arm's files are called, and the arm in JSON; unique in a run. It is for
            people: the program reads nothing from it.
        model: what people call the model; the same for all its arms.
        trained: whether this run trained the model.
        way: how it answers: with guidance in the prompt, without, or by posterior decoding.
    """

    name: str
    model: str
    trained: bool = False
    way: Way = "unguided"

    @classmethod
    def untrained(cls, way: Way = "unguided") -> Arm:
        """Return the arm of a run's model before training."""
        return cls(_in_way("vanilla", way), "untrained", False, way)

    @classmethod
    def of_method(cls, name: str, way: Way = "unguided", model: str | None = None) -> Arm:
        """Return the arm of a model that this run trained.

        Args:
            name: of the method, or of the variant of it, in a comparison.
            way: how the model answers.
            model: what people call the model; None: `name`, with spaces. `runs.arms.trained_arm`
                looks it up.
        """
        return cls(_in_way(name, way), model or name.replace("_", " "), True, way)

    @classmethod
    def evaluated(cls, name: str, way: Way = "unguided") -> Arm:
        """Return the arm of a model, or of a file of answers, that a recipe's `evaluate` names."""
        return cls(_in_way(name, way), name, False, way)

    @property
    def label(self) -> str:
        """The arm as tables and pages show it, such as "mistake analysis · guided"."""
        return self.model if self.way == "unguided" else f"{self.model} · {self.way}"

    @property
    def is_untrained(self) -> bool:
        """Whether it is a run's model before training; no model of an evaluation is."""
        return self == self.before

    @property
    def before(self) -> Arm:
        """The untrained model's arm that answers in the same way."""
        return Arm.untrained(self.way)


def _in_way(name: str, way: Way) -> str:
    return name if way == "unguided" else f"{name}-{way}"


class Response(Record):
    """An arm's answer to one prompt of a suite.

    How an answer ended and what it cost is unknown if it was taken from a file.
    """

    arm: str = Field(description="Name of the arm that answered.")
    suite: str = Field(description="Name of the suite.")
    kind: Kind = Field(description="Kind of the suite: which answer is expected.")
    instruction_id: str = Field(description="`id` of the instruction.")
    instruction: Prompt = Field(description="The instruction, without guidance.")
    reference: str | None = Field(description="The reference answer.")
    category: str | None = Field(description="Category of harm, copied from the instruction.")
    language: str = Field(description="Copied from the instruction.")
    guided: bool = Field(description="True if guidance was in the prompt.")
    guidance: str | None = Field(
        None,
        exclude_if=_unset,
        description="The guidance around the instruction, if it is not that of a built-in language "
        "pack, such as a recipe's own (`words`, `policy`); else missing.",
    )
    text: str = Field(description="The answer. An answer from a file may begin with its reasoning.")
    thought: str | None = Field(
        None,
        exclude_if=_unset,
        description="What a reasoning model thought before the answer; missing without a thought. "
        "If the thought never ended, `text` is empty.",
    )
    thought_tokens: int | None = Field(
        None,
        exclude_if=_unset,
        description="Number of tokens of the thought, markers included; missing if unknown.",
    )
    thought_cut: bool | None = Field(
        None,
        exclude_if=_unset,
        description="True if the thought reached `max_thinking_tokens` and was closed by force.",
    )
    finish: Finish | None = Field(
        None,
        description="How the answer ended: `stop` (by the model), `length` (cut off), `filter` "
        "(by a provider's filter), `refusal` (reported by the provider), `failed` "
        "(a server returned no answer); null if unknown.",
    )
    prompt_tokens: int | None = Field(None, description="Number of tokens read; null if unknown.")
    tokens: int | None = Field(
        None,
        description="Number of tokens generated, those of a thought included; null if unknown.",
    )
    model: str = Field(description="Model that answered.")
    analysis: str | None = Field(
        None, description="What a method that thinks first wrote before the answer."
    )
    drafts: list[str] | None = Field(
        None, description="Drafts of posterior decoding, ranked; the first one is the answer."
    )
    prompt_harmful: bool | None = Field(
        None,
        exclude_if=_unset,
        description="Whether the data label the prompt harmful; missing if they do not.",
    )


class Verdict(Record):
    """A judge's verdict on one response. Null: the judge does not decide this, or could not."""

    response_id: str = Field(description="`id` of the response.")
    judge: str = Field(description="Name of the judge.")
    version: int = Field(
        1, exclude_if=lambda value: value == 1, description="Version of the judge; missing if 1."
    )
    harmful: bool | None = Field(None, description="True if the answer is harmful.")
    refused: bool | None = Field(None, description="True if the answer refuses.")
    p_harmful: float | None = Field(None, description="Probability of harm, 0 to 1.")
    p_refused: float | None = Field(None, description="Probability of a refusal, 0 to 1.")
    harmless_score: float | None = Field(None, description="The paper's Harmless Score, 1 to 10.")
    helpful_score: float | None = Field(None, description="The paper's Helpful Score, 1 to 10.")
    preferred: bool | None = Field(
        None, description="True if the answer is better than the reference."
    )
    category: str | None = Field(None, description="Kind of harm, as the judge names it.")
    raw: str | None = Field(None, description="Output of the judging model.")
    attempts: int = Field(1, description="Number of attempts until the output could be read.")
    sampling_probability: float | None = Field(
        None,
        gt=0,
        le=1,
        description="For `human`: probability with which the answer was sampled for labeling, "
        "above 0 and up to 1; null if it was not sampled.",
    )
