"""Thoughts of reasoning models: the markers around them, and what a chat template does with them.

A model thinks if its chat template has the markers of one of `STYLES`, or if a recipe names a pair
in `model.thinking`. Whether it thinks now depends on the end of the template's generation prompt:

- it ends inside a thought: the model always thinks;
- it closes a thought: thinking is turned off, for example by `model.template`;
- neither: the model may open a thought, and most do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from setbacks.models.rendering import ANSWER, USER, optional_pieces
from setbacks.models.tokens import control_tokens, inner_ids

if TYPE_CHECKING:
    from setbacks.recipe import Engine

_THOUGHT = "\ue002"  # a private-use character: no template writes it


class Style(NamedTuple):
    """How models write a thought.

    Args:
        start: by which the beginning of a thought is recognized.
        end: by which its end is recognized.
        opening: all that comes before a thought; it begins with `start`.
        closing: all that comes between a thought and an answer; `end` is in it.
    """

    start: str
    end: str
    opening: str
    closing: str

    @classmethod
    def of(cls, opening: str, closing: str) -> Style:
        """Return the style of a pair of markers, with or without white space around them."""
        return cls(opening.strip(), closing.strip(), opening, closing)


# Most models; Seed; Magistral; Kimi; OpenThoughts; Command A; Gemma 4; gpt-oss (harmony).
STYLES = (
    *(
        Style.of(f"<{name}>\n", f"\n</{name}>\n\n")
        for name in ("think", "thinking", "thought", "reasoning")
    ),
    Style.of("<seed:think>", "</seed:think>"),
    Style.of("[THINK]", "[/THINK]"),
    Style.of("◁think▷", "◁/think▷"),
    Style.of("<|begin_of_thought|>\n\n", "\n\n<|end_of_thought|>\n\n"),
    Style(
        start="<|START_THINKING|>",
        end="<|END_THINKING|>",
        opening="<|START_THINKING|>",
        closing="<|END_THINKING|><|START_RESPONSE|>",
    ),
    Style.of("<|channel>thought\n", "<channel|>"),
    Style(
        start="<|channel|>",  # any channel but the final one
        end="<|channel|>final<|message|>",
        opening="<|channel|>analysis<|message|>",
        closing="<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
)


class Thinking(NamedTuple):
    """How a model thinks.

    Args:
        style: how it writes a thought.
        opened: whether its prompts end inside a thought.
        before: what it writes before a thought, after its prompt.
        between: what it writes between a thought and an answer.
    """

    style: Style
    opened: bool
    before: str
    between: str


def style_of(tokenizer: Any, spec: Engine) -> Style | None:
    """Return how a model writes thoughts; None if its chat template has no markers of a style.

    Args:
        tokenizer: the model's tokenizer.
        spec: the model; its `thinking` overrides the template.
    """
    if spec.thinking is not None:
        return Style.of(*spec.thinking)
    if spec.chat_template != "own":
        return None
    template = str(tokenizer.chat_template)
    known = (s for s in STYLES if s.opening.strip() in template and s.end in template)
    return next(known, None)


def thinking_of(
    tokenizer: Any, spec: Engine, variables: Mapping[str, Any] | None = None
) -> Thinking | None:
    """Return how a model thinks before it answers; None if it does not, or if that is turned off.

    Args:
        tokenizer: the model's tokenizer.
        spec: the model and its template.
        variables: more variables of the template.
    """
    style = style_of(tokenizer, spec)
    if style is None:
        return None
    if spec.chat_template != "own":
        return Thinking(style, False, style.opening, style.closing)
    variables = {**spec.template, **(variables or {})}
    question = optional_pieces(tokenizer, [USER], {**variables, "add_generation_prompt": True})
    if question is None:  # it cannot be asked
        return None
    prompt = question[-1]
    start, end = prompt.rfind(style.start), prompt.rfind(style.end)
    if end >= start and end >= 0:
        return None  # the template closes the thought
    # What the template writes around a thought, if it renders thoughts.
    variables["add_generation_prompt"] = False
    turns = [USER, ANSWER._replace(thought=_THOUGHT)]
    rendered = (optional_pieces(tokenizer, turns, variables) or ["", "", ""])[1]
    before, mark, between = rendered.partition(_THOUGHT)
    if mark and before.startswith(prompt) and style.end in between:
        return Thinking(style, start >= 0, before.removeprefix(prompt), between)
    opened = "" if start < 0 else prompt[start:]
    rest = style.opening.removeprefix(opened) if style.opening.startswith(opened) else ""
    return Thinking(style, start >= 0, rest, style.closing)


class Markers:
    """Where the markers of a thought are in the tokens that a model generates.

    Args:
        tokenizer: the model's tokenizer.
        thinking: how the model thinks.
    """

    def __init__(self, tokenizer: Any, thinking: Thinking) -> None:
        self.thinking, self._tokenizer = thinking, tokenizer
        self.closing = inner_ids(tokenizer, thinking.between)
        end = inner_ids(tokenizer, thinking.style.end)
        # If the marker ends with a control token, no text can spell it, and ids are compared.
        self._ids = end if end[-1] in control_tokens(tokenizer).ids else None
        self._reach = len(thinking.style.end.encode()) + 2  # tokens that can hold the marker

    def text(self, ids: list[int]) -> str:
        """Return the text of tokens, special tokens included."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def begins(self, ids: list[int]) -> bool | None:
        """Return whether the first tokens begin a thought; None if more tokens must tell."""
        text, style = self.text(ids).lstrip(), self.thinking.style
        opening = style.opening.strip()
        if text not in (opening, style.end) and any(
            marker.startswith(text) for marker in (opening, style.end)
        ):
            return None
        return text.startswith((style.start, style.end))

    def ends(self, ids: list[int]) -> bool:
        """Return whether the last token of a thought ends it."""
        if self._ids is not None:
            return ids[-len(self._ids) :] == self._ids
        return self.thinking.style.end in self.text(ids[-self._reach :])

    def part(self, ids: list[int]) -> tuple[str, str]:
        """Return the thought in the tokens before an answer, and the beginning of the answer.

        If the marker is text, the last token may hold both its end and the answer's beginning.
        """
        style, rest = self.thinking.style, ""
        if self._ids is None:
            text, _, rest = self.text(ids).partition(style.end)
        else:
            text = self.text(ids[: -len(self._ids)] if self.ends(ids) else ids)
        text = text.strip()
        if not self.thinking.opened:
            text = text.removeprefix(style.opening.strip())
        # Channels end one message and begin the next one.
        turn = self.thinking.between.partition(style.end)[0].strip()
        if turn:
            text = text.removesuffix(turn).replace(turn + style.opening, "\n\n")
        return text.strip(), rest
