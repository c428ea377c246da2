"""Thoughts while an answer is generated: where they end, and their budget.

A thought that is longer than `sampling.max_thinking_tokens` is closed by force, as Qwen's thinking
budget does: the closing marker is put into the model's mouth, and the answer follows. Each row
decides from its own tokens, so an answer does not depend on its neighbors in a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from setbacks.models.thinking import Markers
from setbacks.models.tokens import written
from setbacks.records import Completion, Request

if TYPE_CHECKING:
    import numpy as np
    import torch

    from setbacks.recipe import Sampling


class Row:
    """One answer that is being generated, token by token.

    Args:
        markers: of the model's thoughts.
        sampling: the budgets of thought and answer.
        stops: the ids that end an answer.
        context: the most tokens that fit into the model's context after the prompt.
    """

    def __init__(
        self, markers: Markers, sampling: Sampling, stops: Collection[int], context: float
    ) -> None:
        self.markers, self.stops, self.context = markers, stops, context
        self.budget, self.room = sampling.max_thinking_tokens, sampling.max_new_tokens
        self._opening = len(markers.thinking.style.opening.encode())  # no fewer than its tokens
        self.ids: list[int] = []
        self.stopped = False  # whether the model ended the answer
        self.cut: int | None = None  # where the thought was closed by force
        # Where the thought and the answer begin; None: not yet.
        self._thought: int | None = 0 if markers.thinking.opened else None
        self._answer: int | None = None
        self.forced: deque[int] = deque()  # what follows, whatever the model says

    @property
    def most(self) -> int:
        """The most tokens that the row can get in all."""
        if self.budget is None:
            return int(min(self.room, self.context))
        opening = max(self.room, self._opening)  # a thought may begin that late
        whole = opening + self.budget + len(self.markers.closing) + self.room
        return int(min(whole, self.context))

    @property
    def left(self) -> int:
        """How many more tokens there may be of the answer, or of both if they share a budget."""
        if self.budget is None:
            return self.room - len(self.ids)
        return self.room if self._answer is None else self.room - (len(self.ids) - self._answer)

    @property
    def out_of_context(self) -> bool:
        """Whether the row ended because the context is full."""
        return not self.stopped and self.left > 0

    def take(self, token: int) -> bool:
        """Take the next token, unless the row has ended; return whether it goes on."""
        if len(self.ids) >= self.most:
            return False
        if self.forced:
            self.ids.append(self.forced.popleft())
            if not self.forced:
                self._answer = len(self.ids)
            return True
        if self.stopped or self.left <= 0:
            return False
        if token in self.stops:
            self.stopped = True
            return False
        self.ids.append(token)
        if self._answer is None:
            self._look()
        return True

    def _look(self) -> None:
        """Notice the beginning or the end of a thought, or that it is too long."""
        if self._thought is None:
            begins = self.markers.begins(self.ids)
            if begins is None and len(self.ids) < max(self.room, self._opening):
                return
            if not begins:
                self._answer = 0
                return
            self._thought = len(self.ids)
        if self.markers.ends(self.ids):
            self._answer = len(self.ids)
        elif self.budget is not None and len(self.ids) - self._thought >= self.budget:
            self.cut = len(self.ids)
            self.forced.extend(self.markers.closing)

    @property
    def first_pass(self) -> int:
        """The tokens after which either the answer has begun, or the thought is too long."""
        if self.budget is None:
            return self.room
        return max(self.room, self._opening + self.budget)

    def read(self, tokens: Sequence[int], stopped: bool) -> None:
        """Take what an engine wrote, up to where a thought that is too long is closed by force.

        Args:
            tokens: without the token that ended the answer.
            stopped: whether there was one.
        """
        for token in tokens:
            self.take(token)
            if self.forced:
                while self.forced and self.take(token):
                    pass
                return
        self.stopped = stopped and self.left > 0

    @property
    def goes_on(self) -> bool:
        """Whether the answer after a thought needs another pass."""
        after = self._thought is not None and self._answer is not None
        return after and not self.stopped and self.left > 0 and len(self.ids) < self.context

    def completion(self, tokenizer: Any, prompt: list[int]) -> Completion:
        """Return the thought and the answer of a row that has ended."""
        end = 0
        if self._thought is not None:
            end = len(self.ids) if self._answer is None else self._answer
        thought, rest = self.markers.part(self.ids[: self.cut or end]) if end else ("", "")
        tail: str = tokenizer.decode(self.ids[end:], skip_special_tokens=True)
        return Completion(
            text=(rest + tail).strip() if end else written(tokenizer, prompt, self.ids, ""),
            finish="stop" if self.stopped else "length",
            prompt_tokens=len(prompt),
            tokens=len(self.ids),
            thought=thought or None,
            thought_tokens=end or None,
            thought_cut=self.cut is not None,
        )


def completion(
    tokenizer: Any, request: Request, prompt: list[int], tokens: Sequence[int], stopped: bool
) -> Completion:
    """Return an answer without a thought.

    Args:
        tokenizer: the model's tokenizer.
        request: that is answered.
        prompt: its ids.
        tokens: what the model wrote.
        stopped: whether the model ended the answer.
    """
    return Completion(
        text=written(tokenizer, prompt, tokens, request.prefill),
        finish="stop" if stopped else "length",
        prompt_tokens=len(prompt),
        tokens=len(tokens),
    )


Written = tuple[Sequence[int], bool]  # tokens, and whether the model ended the answer after them


def in_passes(
    write: Callable[[Sequence[int], list[list[int]], list[int]], list[Written]],
    prompts: Sequence[list[int]],
    rows: Sequence[Row | None],
    room: int,
) -> list[Written]:
    """Have an engine that picks its tokens itself write thoughts and answers, in two passes.

    An answer goes on from its thought in a second pass, if it did not end in the first one.

    Args:
        write: continues prompts; given their places, their ids, and the most tokens of each.
        prompts: all of them.
        rows: filled with what was written; None for an answer without a thought.
        room: the most tokens of such an answer.

    Returns:
        What was written in the first pass.
    """
    most = [row.first_pass if row else room for row in rows]
    first = write(range(len(rows)), list(prompts), most)
    rest: list[tuple[int, Row]] = []
    for place, (row, (tokens, stopped)) in enumerate(zip(rows, first, strict=True)):
        if row is not None:
            row.read(tokens, stopped)
            if row.goes_on:
                rest.append((place, row))
    if rest:
        places = [place for place, _ in rest]
        begun = [prompts[place] + row.ids for place, row in rest]
        second = write(places, begun, [row.left for _, row in rest])
        for (_, row), (tokens, stopped) in zip(rest, second, strict=True):
            row.read(tokens, stopped)
    return first


def steered(pick: Callable[..., torch.Tensor], rows: Sequence[Row | None], stop: int | None) -> Any:
    """Pick tokens as `pick` does, but close thoughts that are too long, and end full answers.

    Args:
        pick: picks the model's tokens; see `setbacks.engines.answering`.
        rows: by the index of the prompt; None for an answer without a thought.
        stop: a token that ends an answer; None if there is none, and the limits end it.
    """

    def picked(logits: torch.Tensor, at: np.ndarray, step: int) -> torch.Tensor:
        tokens = pick(logits, at, step)
        values = tokens.tolist()
        for place, index in enumerate(at):
            if (row := rows[index]) is not None:
                if row.take(values[place]):
                    values[place] = row.ids[-1]
                elif stop is not None:
                    values[place] = stop
        return tokens.new_tensor(values)

    return picked
