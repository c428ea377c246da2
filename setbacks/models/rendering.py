"""What a chat template writes around the texts of a conversation.

A template is shown marks in place of the texts, so it cannot change them. What it writes between
the marks are its pieces.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from setbacks.errors import InputError
from setbacks.models.tokens import Part, message_part, state_of

MARK = "\ue000{}\ue001"  # private-use characters: no template writes them


class Turn(NamedTuple):
    """What a template sees of a message: its role, and the white space at either end of its text.

    The text is replaced by a mark, so a template cannot change it. White space is kept because many
    templates trim it.
    """

    role: str
    before: str = ""
    after: str = ""
    thought: str = ""  # some templates render a thought that comes with an answer

    @classmethod
    def of(cls, role: str, text: str) -> Turn:
        """Return what a template sees of a message."""
        core = text.strip()
        before, _, after = text.partition(core) if core else (text, "", "")
        return cls(role, before, after)


USER, ANSWER = Turn("user"), Turn("assistant")


def join_parts(pieces: Sequence[str], texts: Sequence[str]) -> list[Part]:
    """Put texts between the pieces of a template."""
    parts = [Part(pieces[0], False)]
    for text, piece in zip(texts, pieces[1:], strict=True):
        parts += [message_part(text), Part(piece, False)]
    return parts


def optional_pieces(
    tokenizer: Any, turns: Sequence[Turn], variables: Mapping[str, Any] | None = None
) -> list[str] | None:
    """Return the same as `template_pieces`; None where it would raise."""
    try:
        return template_pieces(tokenizer, turns, variables)
    except InputError:
        return None


def template_pieces(
    tokenizer: Any, turns: Sequence[Turn], variables: Mapping[str, Any] | None = None
) -> list[str]:
    """Return what the template writes around the texts of turns: one piece more than turns.

    Raises:
        InputError: there is no template, or it does not write every text once and in order.
    """
    key = json.dumps(dict(variables or {}), sort_keys=True)
    return list(_pieces_of(tokenizer, state_of(tokenizer), tuple(turns), key))


@lru_cache(maxsize=256)
def _pieces_of(tokenizer: Any, state: str, turns: tuple[Turn, ...], key: str) -> tuple[str, ...]:
    """Return the same, cached: most conversations have the same turns and variables."""
    return tuple(_cut_rendering(tokenizer, turns, json.loads(key)))


def _cut_rendering(
    tokenizer: Any, turns: Sequence[Turn], variables: Mapping[str, Any]
) -> list[str]:
    _check_there(tokenizer, variables.get("chat_template") or tokenizer.chat_template)
    marks = [MARK.format(index) for index in range(len(turns))]
    texts = [turn.before + mark + turn.after for turn, mark in zip(turns, marks, strict=True)]
    refusals = []
    for in_parts in (False, True):
        try:
            rendered = render(tokenizer, turns, texts, variables, in_parts)
        except InputError as error:
            refusals.append(str(error))
        else:
            if pieces := _cut(rendered, marks):
                return pieces
    roles = ", ".join(turn.role for turn in turns)
    raise InputError(
        f"{tokenizer.name_or_path}: its chat template "
        + (
            f"refuses a conversation of {roles} ({refusals[0]})"
            if len(refusals) == 2
            else "changes or reorders the text of messages, so special tokens in data could not be "
            "neutralized"
        )
        + "; set model.chat_template: alpaca in the recipe"
    )


def _check_there(tokenizer: Any, source: Any) -> None:
    if not source:
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template; set "
            "model.chat_template: alpaca in the recipe"
        )
    if isinstance(source, dict) and "default" not in source:
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer has several chat templates "
            f"({', '.join(source)}) and none is named default; rename one to default, or set "
            "model.chat_template: alpaca in the recipe"
        )


def render(
    tokenizer: Any,
    turns: Sequence[Turn],
    texts: Sequence[str],
    variables: Mapping[str, Any],
    in_parts: bool,
) -> str:
    """Return a template's rendering of a conversation.

    Args:
        tokenizer: a transformers tokenizer.
        turns: of the conversation.
        texts: of the turns.
        variables: of the template.
        in_parts: pass each text as a list of parts. Templates of models with vision expect such a
            list, and drop or reject a plain string.

    Raises:
        InputError: the template fails.
    """
    from jinja2 import TemplateError

    conversation = [
        {
            "role": turn.role,
            "content": [{"type": "text", "text": text}] if in_parts else text,
            # Templates use one of these names; None is ignored.
            "thinking": turn.thought or None,
            "reasoning_content": turn.thought or None,
        }
        for turn, text in zip(turns, texts, strict=True)
    ]
    try:
        rendered: str = tokenizer.apply_chat_template(conversation, tokenize=False, **variables)
    except (TemplateError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise InputError(" ".join(str(error).split())[:200]) from error
    return rendered


def _cut(text: str, marks: Sequence[str]) -> list[str]:
    """Cut a text at marks; return [] if a mark is missing, repeated or out of order."""
    pieces = []
    for mark in marks:
        piece, separator, text = text.partition(mark)
        if not separator:
            return []
        pieces.append(piece)
    pieces.append(text)
    return [] if any(mark in piece for mark in marks for piece in pieces) else pieces
