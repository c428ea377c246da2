"""What an engine is asked, and what it gives back. `setbacks.records` has these names, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from setbacks.messages import Message, Prompt, transcript, turns_of

Finish = Literal["stop", "length", "filter", "refusal", "failed"]


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
