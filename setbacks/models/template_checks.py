"""Checks of a chat template before any work, and what a user should know about it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from setbacks.errors import InputError
from setbacks.messages import Message, with_system
from setbacks.models.chat_template import answer_opening, encode, ending, turn_end
from setbacks.models.rendering import (
    ANSWER,
    USER,
    Form,
    Turn,
    layout,
    optional_pieces,
    render,
    template_pieces,
)
from setbacks.models.thinking import thinking_of

if TYPE_CHECKING:
    from setbacks.recipe import Engine

log = logging.getLogger(__name__)

# Text with everything that a template might change: capitals, quotes, blank lines, signs.
_TRICKY = 'Say "Ab",\n\n1 < 2 & 3.'


def check_chat(tokenizer: Any, spec: Engine, *, trains: bool = True) -> None:
    """Check that a model can take conversations and, if it is trained, learn them.

    What a user should know about its template is logged as a warning.

    Args:
        tokenizer: the model's tokenizer.
        spec: the model and its template.
        trains: whether the model is trained too.

    Raises:
        InputError: as `chat_notes`.
    """
    for note in chat_notes(tokenizer, spec, trains=trains):
        log.warning("%s: %s", spec.model, note)


def chat_notes(tokenizer: Any, spec: Engine, *, trains: bool = True) -> list[str]:
    """Check as `check_chat`, and return what a user should know about the template.

    Raises:
        InputError: there is no usable chat template, or no token ends an answer.
    """
    notes: list[str] = []
    if spec.chat_template == "own":
        variables = spec.template
        question = template_pieces(tokenizer, [USER], {**variables, "add_generation_prompt": True})
        learn = template_pieces if trains else optional_pieces
        rendered = learn(tokenizer, [USER, ANSWER], variables)
        turns = [USER] if rendered is None else [USER, ANSWER]
        _check_unchanged(tokenizer, turns, variables)
        notes += _warnings(tokenizer, question, rendered)
        notes += _notes_on_thinking(tokenizer, spec, trains, question, rendered)
    if trains:
        ending(tokenizer, spec.chat_template)
    return notes


def check_conversation(tokenizer: Any, spec: Engine, messages: Sequence[Message]) -> None:
    """Check that a model's template takes a conversation, under the recipe's system prompt.

    Raises:
        InputError: it does not.
    """
    encode(
        tokenizer,
        with_system(messages, spec.system),
        template=spec.chat_template,
        variables=spec.template,
    )


def _check_unchanged(tokenizer: Any, turns: Sequence[Turn], variables: Mapping[str, Any]) -> None:
    """Reject a template that changes texts: it may keep marks but change capitals and quotes."""
    found = layout(tokenizer, turns, variables)
    texts = {slot.key: _TRICKY for slot in found.slots}
    expected = "".join(part.text for part in found.parts(texts))
    for in_parts in (False, True):
        form = Form(in_parts)
        try:
            rendered = render(tokenizer, turns, [_TRICKY] * len(turns), variables, form)
        except InputError:
            continue
        if rendered == expected:
            return
    raise InputError(
        f"{tokenizer.name_or_path}: its chat template changes the text of messages, such as "
        "capitals, quotes or line breaks; set model.chat_template: alpaca in the recipe"
    )


def _warnings(
    tokenizer: Any, question: Sequence[str], rendered: Sequence[str] | None
) -> Iterator[str]:
    """Yield what a user should know about a template.

    Args:
        tokenizer: a transformers tokenizer.
        question: its pieces around a question, with its generation prompt.
        rendered: its pieces around a question and an answer; None if it cannot render answers.
    """
    if "strftime_now" in str(tokenizer.chat_template):
        yield (
            "its chat template writes today's date into prompts; a run that is resumed on another "
            "day uses that day's date for the rest"
        )
    if rendered is None:
        return
    if not any(turn_end(tokenizer)):
        yield (
            "its chat template writes no special token after an answer; an answer ends only where "
            f"the model generates {tokenizer.eos_token or 'a stop token of its generation config'}"
        )


def _notes_on_thinking(
    tokenizer: Any,
    spec: Engine,
    trains: bool,
    question: Sequence[str],
    rendered: Sequence[str] | None,
) -> Iterator[str]:
    """Yield whether a model thinks before it answers, and where prompts end otherwise.

    Args:
        tokenizer: a transformers tokenizer.
        spec: the model and its template.
        trains: whether the model is trained too.
        question: as in `_warnings`.
        rendered: as in `_warnings`.
    """
    source = str(tokenizer.chat_template)
    if unused := [name for name in spec.template if not re.search(rf"\b{name}\b", source)]:
        yield f"its chat template does not use {', '.join(unused)} (model.template)"
    if thinking := thinking_of(tokenizer, spec):
        learned = "; training teaches answers after an empty thought, except with train.thoughts"
        yield (
            f"it can think before it answers, from {thinking.style.opening.strip()} to "
            f"{thinking.style.end}{learned if trains else ''}"
        )
    elif rendered is not None:
        opening, _ = answer_opening(question[-1], rendered[1])
        shared = len(commonprefix([opening, question[-1]]))
        if more := opening[shared:].strip():
            yield (
                f"its chat template writes {more!r} before an answer, but its generation prompt "
                "does not; prompts here end with it"
            )
        elif more := question[-1][shared:].strip():
            yield (
                f"its generation prompt ends with {more!r}, but its rendering of an answer does "
                "not; prompts here omit it"
            )
