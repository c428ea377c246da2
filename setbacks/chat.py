"""From a conversation to token ids, such that the text in it stays text.

A chat template marks turns with special tokens. When the whole rendered string is tokenized, a user
who writes such a marker ends the turn and starts another. Here only the template's own words may
become special tokens: the contents are tokenized apart, with special tokens split like other text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from setbacks.errors import SetbacksError
from setbacks.prompts import fill, prompts
from setbacks.records import Message

_MARK = "\ue000{}\ue001"  # private-use characters: no template writes them


def encode(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    prefill: str = "",
    template: str = "own",
    language: str = "en",
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Return the ids of a prompt that ends where the assistant begins to speak.

    Args:
        tokenizer: a transformers tokenizer.
        messages: the turns so far.
        prefill: how the assistant's turn begins, where it is begun for the model.
        template: "own" for the tokenizer's chat template, "alpaca" for the paper's.
        language: which Alpaca template.
        variables: what else the tokenizer's own template is told, as `apply_chat_template` takes
            it; among them may be another `chat_template`.

    Raises:
        SetbacksError: the tokenizer has no chat template, or one that changes its contents.
    """
    contents = [message.content for message in messages]
    roles: list[str] = [message.role for message in messages]
    frame = _frame(tokenizer, roles, template, language, variables or {})
    ids: list[int] = []
    for index, piece in enumerate(frame):
        ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
        if index < len(contents):
            ids += plain(tokenizer, contents[index])
    return ids + plain(tokenizer, prefill)


def plain(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text in which nothing is a special token.

    A lone surrogate, which JSON can hold and no tokenizer can, becomes a replacement character.
    """
    if not text:
        return []
    text = text.encode("utf-8", "replace").decode("utf-8")
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]
    return ids


def ending(tokenizer: Any, template: str = "own") -> list[int]:
    """Return the ids with which an assistant's turn ends, as the template has it.

    The text after the last content is cut after its first end-of-sequence token: what follows that
    (often a newline) is never generated, so nothing should learn it.
    """
    eos: int = tokenizer.eos_token_id
    if template != "own":
        return [eos]
    closed = {"add_generation_prompt": False}
    tail = _pieces(tokenizer, ["user", "assistant"], closed)[-1]
    ids: list[int] = tokenizer(tail, add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    stop = next((index for index, token in enumerate(ids) if token in special), None)
    return [eos] if stop is None else ids[: stop + 1]


def _frame(
    tokenizer: Any, roles: list[str], template: str, language: str, variables: Mapping[str, Any]
) -> list[str]:
    """The template's own words around the contents: one piece more than there are turns."""
    if template == "own":
        return _pieces(tokenizer, roles, {"add_generation_prompt": True, **variables})
    if roles != ["user"]:
        raise SetbacksError("the alpaca template has room for one instruction and nothing else")
    filled = fill(prompts(language)["alpaca"], instruction=_MARK.format(0))
    bos = tokenizer.bos_token or ""
    return (bos + filled).split(_MARK.format(0))


def _pieces(tokenizer: Any, roles: list[str], variables: Mapping[str, Any]) -> list[str]:
    from jinja2 import TemplateError

    if not (tokenizer.chat_template or variables.get("chat_template")):
        raise SetbacksError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template; set "
            "model.chat_template: alpaca in the recipe"
        )
    marks = [_MARK.format(index) for index in range(len(roles))]
    # Templates of models that see images take a list of parts, and lose or refuse a plain string.
    for shape in (str, lambda mark: [{"type": "text", "text": mark}]):
        turns = [
            {"role": role, "content": shape(mark)} for role, mark in zip(roles, marks, strict=True)
        ]
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, **variables)
        except (TemplateError, TypeError):
            continue
        if pieces := _cut(text, marks):
            return pieces
    raise SetbacksError(
        f"{tokenizer.name_or_path}: its chat template changes or reorders the text of "
        "messages, so special tokens in data could not be kept harmless; set "
        "model.chat_template: alpaca in the recipe"
    )


def _cut(text: str, marks: Sequence[str]) -> list[str]:
    """Cut a text at marks; nothing where one of them is missing or out of order."""
    pieces = []
    for mark in marks:
        piece, found, text = text.partition(mark)
        if not found:
            return []
        pieces.append(piece)
    return [*pieces, text]
