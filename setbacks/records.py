"""What flows through a run: one frozen record a line of a journal, and an engine's requests.

Every record has an ``id`` made of the content that it came from, never of the order in which it was
made, and names the records that it came from. `v` is the version of the schema: it grows when a
field changes its meaning, so that an old folder can be told from a new one.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

Kind = Literal["harmful", "hijacking", "safe", "helpful"]
Outcome = Literal["mistake", "refusal", "empty", "duplicate", "harmless"]
# What checks say of a text that the model wrote for its own training; only "kept" is learned.
Checked = Literal["kept", "empty", "unfinished", "degenerate", "harmful", "refusal", "compliance"]
# Why a response ended: by itself, at the length limit, by a provider's filter, since the provider
# says that the model refused, or because a server never gave one.
Finish = Literal["stop", "length", "filter", "refusal", "failed"]


def digest(*parts: object) -> str:
    """Return 16 hex digits that name this content: the same for the same parts, everywhere.

    Args:
        parts: strings, numbers, booleans or None; their order counts.
    """
    return hashlib.blake2b(
        "\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=8
    ).hexdigest()


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


class Record(BaseModel):
    """What all records share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    v: int = Field(SCHEMA_VERSION, le=SCHEMA_VERSION)


class Instruction(NamedTuple):
    """X: what a user asks, and what is known of it; `answer` is a good answer to it.

    `harmful` is whether the data call the instruction itself harmful, where they say so. It comes
    from a source and rests in no journal: a million of them are held in memory.
    """

    id: str
    text: str
    answer: str | None = None
    category: str | None = None
    language: str = "en"
    source: str = ""
    harmful: bool | None = None


class Mistake(Record):
    """Y, or the failed attempt at one: a response that guided induction drew from the model.

    Only those with outcome "mistake" are used; the others are kept so that they can be counted.
    """

    instruction_id: str
    instruction: str
    response: str
    outcome: Outcome
    attempt: int
    hint: str | None
    category: str | None
    language: str
    source: str
    model: str | None


class Analysis(Record):
    """T: one candidate analysis of a response, with the quality checks that it passed or failed."""

    response_id: str
    instruction: str
    response: str
    harmful: bool
    text: str
    candidate: int
    checks: dict[str, bool]
    score: float
    category: str | None
    language: str
    analyst: str

    @property
    def passed(self) -> bool:
        """Whether every quality check passed."""
        return all(self.checks.values())


class Reading(Record):
    """What the model itself says of a response under the neutral question.

    `p_harmful` is how likely it is to say "harmful" and not "harmless", in [0, 1]; `harmful` is
    what the response is held to be; `text` is the analysis that the trained model writes.
    """

    response_id: str
    harmful: bool
    p_harmful: float
    text: str | None = None


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class Example(Record):
    """What the model is trained on: the loss is on `completion` alone.

    `verdict` is the beginning of a completion that says harmful or harmless, where it is to weigh
    more than the rest. A preference pair has a `rejected` completion beside the chosen one.
    """

    kind: str
    prompt: list[Message]
    completion: str
    parents: list[str]
    verdict: str | None = None
    rejected: str | None = None


class Revision(Record):
    """A mistake that the model rewrote after reading its own critique (Critique-Revise)."""

    analysis_id: str
    instruction: str
    response: str
    text: str
    passed: bool
    model: str


class Correction(Record):
    """What the model answered with the analysis of its own mistake in view.

    `text` is what it wrote; `answer` is what is learned of it: up to its last whole sentence.
    """

    analysis_id: str
    instruction: str
    response: str
    text: str
    answer: str
    outcome: Checked
    sample: int
    model: str


class OwnAnswer(Record):
    """What the untrained model answered to a benign prompt; `text` and `answer` as above."""

    instruction_id: str
    instruction: str
    text: str
    answer: str
    outcome: Checked
    language: str
    source: str
    model: str


class Choice(Record):
    """Drafts of an answer, ranked by how harmful the model itself finds them, the least first."""

    instruction: str
    drafts: list[str]
    p_harmful: list[float]
    model: str


class Response(Record):
    """What an arm answered to one prompt of a suite.

    Of an answer that was there already, how it ended and what it cost are not known. `analysis` is
    what was written before the answer, by a method that thinks first; `drafts` are those that
    posterior decoding had to choose from, as it ranked them. `prompt_harmful` is what the data say
    of the instruction; it is written only where they say something.
    """

    arm: str
    suite: str
    kind: Kind
    instruction_id: str
    instruction: str
    reference: str | None
    category: str | None
    language: str
    guided: bool
    text: str
    finish: Finish | None = None
    prompt_tokens: int | None = None
    tokens: int | None = None
    model: str
    analysis: str | None = None
    drafts: list[str] | None = None
    prompt_harmful: bool | None = Field(None, exclude_if=lambda value: value is None)


class Verdict(Record):
    """What a judge says of one response. None means: this judge does not say, or could not.

    Probabilities are in [0, 1]; scores are the paper's 1-10 (Harmless Score, Helpful Score).
    `preferred` is whether it is better than the reference answer; `category` the kind of harm.
    `sampling_probability` is that with which the response was drawn to be labelled by people.
    """

    response_id: str
    judge: str
    harmful: bool | None = None
    refused: bool | None = None
    p_harmful: float | None = None
    p_refused: float | None = None
    harmless_score: float | None = None
    helpful_score: float | None = None
    preferred: bool | None = None
    category: str | None = None
    raw: str | None = None
    attempts: int = 1
    sampling_probability: float | None = Field(None, gt=0, le=1)


@dataclass(frozen=True)
class Request:
    """One thing to generate.

    Args:
        prompt: what the user says.
        seed: where this request's random draws start; made of its content, so that a draw does
            not depend on what else is in the batch.
        prefill: how the answer begins, when it is begun for the model; part of the text returned.
        reply: an assistant's turn that follows the prompt, where the model is to read a
            conversation and not to answer it, as guard models do.
        template: what the model's chat template is told besides, by name.
    """

    prompt: str
    seed: int
    prefill: str = ""
    reply: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def size(self) -> int:
        """Its length in characters."""
        return len(self.prompt) + len(self.prefill) + len(self.reply or "")


class Completion(NamedTuple):
    """What was generated: the text (prefill included), why it ended, and what it cost.

    `finish` is "filter" where a provider's filter ended it or blocked the prompt, "refusal" where
    the provider says that the model refused, and "failed" where there was no answer after all
    tries; the text may then be empty.
    """

    text: str
    finish: Finish
    prompt_tokens: int
    tokens: int
