"""A setback: what a deployed model did wrong, as a row of data that a run learns from.

Harvested logs and traffic that is played write the same rows, and drop repeats in the same way.
"""

from __future__ import annotations

from typing import Any

from setbacks.data.conversations import prompt_as_data, reply_as_data
from setbacks.data.near import NearPrompts, user_text
from setbacks.messages import Prompt
from setbacks.records import Response, Setback, Verdict

NEAR = 0.8  # share of the word 3-grams of two prompts from which one repeats the other


class Conversations:
    """Conversations in which one that repeats an earlier one, or nearly, is found.

    All that the user says is compared. One turn in common, such as a greeting, means nothing.
    """

    def __init__(self) -> None:
        self._prompts = NearPrompts(NEAR)

    def add(self, prompt: Prompt) -> None:
        """Add a conversation."""
        self._prompts.add(user_text(prompt))

    def repeats(self, prompt: Prompt) -> bool:
        """Return whether a conversation repeats one that was added."""
        return self._prompts.find(user_text(prompt)) is not None

    def add_new(self, prompt: Prompt) -> bool:
        """Add a conversation unless it repeats one; return whether it was added."""
        new = not self.repeats(prompt)
        if new:
            self.add(prompt)
        return new


def row_of(
    response: Response,
    verdict: Verdict,
    kind: Setback,
    *,
    category: str | None,
    source: str,
    times: int = 1,
) -> dict[str, Any]:
    """Return a setback as a row that `induce.existing` reads.

    Args:
        response: the prompt and the answer that failed.
        verdict: the judge's.
        kind: what is wrong with the answer.
        category: of the prompt.
        source: where it was logged.
        times: number of exact copies.
    """
    return {
        "text": prompt_as_data(response.instruction),
        "response": reply_as_data(response.text),
        "harmful": kind == "harmful",
        "refused": kind == "refusal",
        "kind": kind,
        "p_harmful": verdict.p_harmful,
        "p_refused": verdict.p_refused,
        "language": response.language,
        "category": category,
        "source": source,
        "id": response.instruction_id,
        "times": times,
    }
