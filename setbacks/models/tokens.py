"""From text to token ids and back, with nothing changed on the way.

A chat template marks turns with special tokens. Only the template's words may become such tokens:
a user who writes one would end the turn and start another. So text that spells a special token
stays text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from setbacks.text import encodable

MARKER = re.compile(r"[<\[{][^<>\[\]{}]+[>\]}]")  # how control tokens are spelled
_OPEN = re.compile(r"[<\[{][^<>\[\]{}\s]*$")  # where one may begin, or
_CLOSE = re.compile(r"[^<>\[\]{}\s]*[>\]}]")  # end


class Part(NamedTuple):
    """A part of a rendered conversation: what the template writes, or the text of a message."""

    text: str
    is_message: bool


def plain(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text that follows another, in which nothing is a special token.

    A lone surrogate, which JSON can hold and no tokenizer can, becomes a question mark.
    """
    if not text:
        return []
    text = encodable(text)
    ids = inner_ids(tokenizer, text, split_special_tokens=True)
    controls = control_tokens(tokenizer)
    spelled = controls.ids.intersection(ids)
    if not spelled or len(text) == 1:
        return ids
    # The tokenizer does not split tokens that it does not call special: cut them here.
    names = [controls.names[token] for token in spelled]
    inside = "|".join(f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names)
    parts = [part for part in re.split(inside, text) if part]
    pieces: Sequence[str] = (
        parts if len(parts) > 1 else text
    )  # one character at a time, if it is spelled differently
    return [token for piece in pieces for token in plain(tokenizer, piece)]


def part_ids(tokenizer: Any, parts: Sequence[Part], *, inner: bool = False) -> list[int]:
    """Return the ids of a rendered conversation, as `apply_chat_template` gives them.

    If a message spells a control token, alone or with what the template writes around it, the parts
    are tokenized separately.

    Args:
        tokenizer: a transformers tokenizer.
        parts: of the conversation.
        inner: whether other text comes before them.
    """
    if not any(_spells_control(tokenizer, text) for text in _messages_within(parts)):
        parts = [Part("".join(part.text for part in parts), False)]
    ids: list[int] = []
    for part in parts:
        if part.is_message:
            ids += plain(tokenizer, part.text)
        else:
            ids += (inner_ids if inner else raw_ids)(tokenizer, part.text)
        inner = True
    return ids


def _messages_within(parts: Sequence[Part]) -> Iterator[str]:
    """Yield the text of each message, with the template's signs that may make a token of it."""
    for index, part in enumerate(parts):
        if part.is_message:
            before = _OPEN.search(parts[index - 1].text[-32:]) if index else None
            after = _CLOSE.match(parts[index + 1].text) if index + 1 < len(parts) else None
            yield "".join(
                [before.group() if before else "", part.text, after.group() if after else ""]
            )


def raw_ids(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """Return the ids of a text as the tokenizer gives them, without added special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, **options)["input_ids"]
    return ids


def inner_ids(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """Return the ids of a text that follows another.

    SentencePiece puts a space before the first word of its input, so the text is tokenized after a
    character that does not merge with it.
    """
    adds_space = raw_ids(tokenizer, "\nx")[len(raw_ids(tokenizer, "\n")) :] != raw_ids(
        tokenizer, "x"
    )
    for other in ("\n", ".", "x") if adds_space else ():
        before = raw_ids(tokenizer, other)
        ids = raw_ids(tokenizer, other + text, **options)
        if ids[: len(before)] == before:
            return ids[len(before) :]
    return raw_ids(tokenizer, text, **options)


def message_part(text: str) -> Part:
    """Return the text of a message as a part of a conversation."""
    return Part(encodable(text), True)


class Controls(NamedTuple):
    """The tokens that text must not become: they control a model, and are not words."""

    names: dict[int, str]  # how each is spelled
    ids: frozenset[int]
    spelled: re.Pattern[str]  # any of them, in folded text


def _spells_control(tokenizer: Any, text: str) -> bool:
    controls = control_tokens(tokenizer)
    # Most texts have nothing like it and need not be tokenized.
    similar = controls.spelled.search(_folded(text))
    return bool(similar) and not controls.ids.isdisjoint(raw_ids(tokenizer, text))


def _folded(text: str) -> str:
    """Return a text without the differences that a tokenizer's normalizer may remove."""
    return unicodedata.normalize("NFKC", text).casefold()


def control_tokens(tokenizer: Any) -> Controls:
    """Return the control tokens of a tokenizer, as it is now."""
    return _controls_of(tokenizer, state_of(tokenizer))


@lru_cache(maxsize=16)
def _controls_of(tokenizer: Any, state: str) -> Controls:
    """Find the special tokens, and added tokens that are not flagged as special but look like them.

    The second kind includes `<think>`, which Qwen3 does not flag as special. It excludes added
    tokens that are used as words, such as Gemma's line breaks and HTML tags.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    template = str(tokenizer.chat_template)

    def looks_like_control(name: str) -> bool:
        word = backend is not None and backend.model.token_to_id(name) is not None
        return bool(MARKER.fullmatch(name)) and (name in template or not word)

    added = tokenizer.added_tokens_decoder  # a property that lists them on each access
    names = {
        token: added[token].content if token in added else tokenizer.convert_ids_to_tokens(token)
        for token in tokenizer.all_special_ids
    }
    for token, one in added.items():
        if one.special or looks_like_control(one.content):
            names[token] = one.content  # the form in the vocabulary may be a normalized one
    spelled = "|".join(map(re.escape, sorted(map(_folded, names.values()))))
    return Controls(names, frozenset(names), re.compile(spelled or "(?!)"))


def state_of(tokenizer: Any) -> str:
    """Return what a tokenizer's renderings depend on and can be set after loading.

    It is asked for several times for each prompt. Its number of tokens is not part of it: nothing
    adds tokens to a tokenizer in use, and to count thousands of added ones takes longer than to
    tokenize a prompt.
    """
    return f"{tokenizer.chat_template}\0{tokenizer.special_tokens_map}"


def controls_in(tokenizer: Any, text: str) -> list[int]:
    """Return the control tokens of a text, in order."""
    controls = control_tokens(tokenizer).ids
    return [token for token in raw_ids(tokenizer, text) if token in controls]


def written(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int], prefill: str) -> str:
    """Return the text of an answer: its prefill, and what a model generated after it.

    It is decoded together with its prompt: SentencePiece drops the space before the first word of
    what it decodes.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: the ids that the model was given, the prefill included.
        tokens: what it generated.
        prefill: the given beginning of the answer.
    """
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    if prefill:
        before = tokenizer.decode(prompt, skip_special_tokens=True)
        whole = tokenizer.decode([*prompt, *tokens], skip_special_tokens=True)
        if whole.startswith(before):
            text = whole[len(before) :]
    return (prefill + text).strip()
