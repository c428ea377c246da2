"""Conversations: the turns before an answer, as a model reads them and as people do.

A `Prompt` is what an answer replies to: a string, which is short for one user turn, or the turns of
a conversation, as in Inspect's `Sample.input` (https://inspect.aisi.org.uk/datasets.html). Turns
have the form of OpenAI's chat messages. `Request` asks an engine for the next turn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

Role = Literal["system", "user", "assistant", "tool"]
Finish = Literal["stop", "length", "filter", "refusal", "failed"]


def _unset(value: object) -> bool:
    return value is None


class Function(BaseModel):
    """What an assistant calls: a function's name and its arguments, as JSON text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    arguments: str = "{}"

    @field_validator("arguments", mode="before")
    @classmethod
    def _as_json(cls, value: Any) -> Any:
        return value if isinstance(value, str) else json.dumps(value or {}, ensure_ascii=False)


class ToolCall(BaseModel):
    """A call of a tool, in OpenAI's form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str | None = Field(None, exclude_if=_unset)
    type: Literal["function"] = "function"
    function: Function


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role = Field(description="Who speaks.")
    content: str = Field("", description="The text; empty for a turn that only calls tools.")
    name: str | None = Field(
        None, exclude_if=_unset, description="Name of the tool that a `tool` turn is from."
    )
    tool_calls: tuple[ToolCall, ...] | None = Field(
        None, exclude_if=_unset, description="Calls of tools, in OpenAI's form."
    )
    tool_call_id: str | None = Field(
        None, exclude_if=_unset, description="`id` of the call that a `tool` turn answers."
    )


Prompt = str | tuple[Message, ...]


def prompt_of(messages: Iterable[Message]) -> Prompt:
    """Return turns as a prompt: a single user turn as a string."""
    turns = tuple(messages)
    if len(turns) == 1 and turns[0].role == "user":
        return turns[0].content
    return turns


def turns_of(prompt: Prompt) -> list[Message]:
    """Return the turns of a prompt."""
    return [Message(role="user", content=prompt)] if isinstance(prompt, str) else list(prompt)


def transcript(prompt: Prompt) -> str:
    """Return a prompt as plain text, for people and for a model that is asked about it.

    A single user turn is its text. In a conversation each turn begins with its role, and its other
    lines are indented, so that no text can pass for another turn.
    """
    if isinstance(prompt, str):
        return prompt
    return "\n".join(_spoken(turn) for turn in prompt)


def _spoken(turn: Message) -> str:
    label = turn.role.capitalize() + (f" {' '.join(turn.name.split())}" if turn.name else "")
    return f"{label}: " + "\n  ".join(with_calls(turn).splitlines())


def with_calls(turn: Message) -> str:
    """Return the text of a turn, and a line for each call of a tool."""
    lines = [turn.content] if turn.content else []
    lines += [f"[calls {c.function.name}({c.function.arguments})]" for c in turn.tool_calls or ()]
    return "\n".join(lines)


def as_data(prompt: Prompt) -> str | list[dict[str, Any]]:
    """Return a prompt as plain data: a string, or a list of messages."""
    if isinstance(prompt, str):
        return prompt
    return [turn.model_dump(mode="json") for turn in prompt]


def in_brief(prompt: Prompt, most: int = 90) -> str:
    """Return a prompt in a few words, for a list: its last user turn and the number of turns.

    Args:
        prompt: any prompt.
        most: characters of the text; a longer one ends in "…".
    """
    text = last_question(prompt)
    start = text if len(text) <= most else text[: most - 1].rstrip() + "…"
    return start if isinstance(prompt, str) else f"{start} ({len(prompt)} turns)"


def texts_of(prompt: Prompt) -> str:
    """Return the texts of all turns without their roles, for comparing words."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(turn.content for turn in prompt)


def last_user_text(prompt: Prompt) -> str:
    """Return the text of the last user turn; "" if there is none."""
    if isinstance(prompt, str):
        return prompt
    return next((turn.content for turn in reversed(prompt) if turn.role == "user"), "")


def last_question(prompt: Prompt) -> str:
    """Return the text of the last user turn as one line, for messages and lists."""
    return " ".join(last_user_text(prompt).split())


def reworded(prompt: Prompt, change: Callable[[str], str]) -> Prompt:
    """Return a prompt with its last user turn in other words; the other turns stay as they are.

    Args:
        prompt: with a user turn.
        change: returns the new text of that turn.
    """
    if isinstance(prompt, str):
        return change(prompt)
    place = max(index for index, turn in enumerate(prompt) if turn.role == "user")
    turn = prompt[place].model_copy(update={"content": change(prompt[place].content)})
    return (*prompt[:place], turn, *prompt[place + 1 :])


def with_system(turns: Sequence[Message], system: str | None) -> list[Message]:
    """Return turns under a system prompt.

    A system turn at the beginning keeps its text, after the system prompt and a blank line.
    """
    if not system:
        return list(turns)
    if turns and turns[0].role == "system":
        both = f"{system}\n\n{turns[0].content}"
        return [turns[0].model_copy(update={"content": both}), *turns[1:]]
    return [Message(role="system", content=system), *turns]


@dataclass(frozen=True)
class Request:
    """One thing to generate.

    Args:
        prompt: what the user says, or the turns of a conversation.
        seed: where this request's random draws start; derived from its content, so that a draw does
            not depend on what else is in the batch.
        prefill: how the answer begins, when it is begun for the model; part of the text returned.
        reply: an assistant's turn that follows the prompt, where the model is to read a
            conversation and not to answer it, as guard models do.
        template: further variables of the chat template, by name.
    """

    prompt: Prompt
    seed: int
    prefill: str = ""
    reply: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def size(self) -> int:
        """Its length in characters."""
        words = self.prompt if isinstance(self.prompt, str) else transcript(self.prompt)
        return len(words) + len(self.prefill) + len(self.reply or "")

    @property
    def turns(self) -> list[Message]:
        """The turns that the model reads."""
        turns = turns_of(self.prompt)
        if self.reply is not None:
            turns.append(Message(role="assistant", content=self.reply))
        return turns


class Completion(NamedTuple):
    """What was generated: the text (prefill included), why it ended, and what it cost.

    `finish` is "filter" where a provider's filter ended it or blocked the prompt, "refusal" where
    the provider says that the model refused, and "failed" where there was no answer after all
    tries; the text may then be empty. `thought` is what a reasoning model wrote before the text;
    if it never ended, the text is empty. `tokens` counts both, and `thought_tokens` the thought
    with its markers. `thought_cut` is whether the thought was too long and was closed by force.
    """

    text: str
    finish: Finish
    prompt_tokens: int
    tokens: int
    thought: str | None = None
    thought_tokens: int | None = None
    thought_cut: bool = False
