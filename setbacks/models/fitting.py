"""Conversations that a chat template refuses, in the form that the model's makers give them.

Some templates have no system role, some want the roles to alternate, and some know no tools. The
fewest changes that the template needs are made, and the user is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from setbacks.errors import InputError
from setbacks.messages import Message, transcript, with_calls
from setbacks.models.rendering import Layout, Turn, layout, marked


class Fitted(NamedTuple):
    """A conversation as a template takes it.

    `turns` are what the template sees, `texts` what belongs into the slots of `layout`, and `notes`
    what a user should know.
    """

    turns: list[Turn]
    texts: dict[str, str]
    layout: Layout
    notes: tuple[str, ...]


def fitted(
    tokenizer: Any, messages: Sequence[Message], variables: Mapping[str, Any] | None = None
) -> Fitted:
    """Return a conversation as a template takes it: as it is, or changed.

    Args:
        tokenizer: a transformers tokenizer.
        messages: of the conversation.
        variables: of the template.

    Raises:
        InputError: the template does not take it, whatever is changed; this says how it takes the
            conversation as it is.
    """
    refusal: InputError | None = None
    source = (variables or {}).get("chat_template") or tokenizer.chat_template
    in_words = "tool_calls" not in str(source)  # else the model knows calls in a form of its own
    for changes in _SETS:
        if not in_words and any(change.in_words for change in changes):
            continue
        changed = list(messages)
        for change in changes:
            before, changed = changed, change.make(changed)
            if changed == before:
                break  # fewer changes give the same
        else:
            turns, texts = marked(changed)
            try:
                found = layout(tokenizer, turns, variables)
            except InputError as error:
                refusal = refusal or error
                continue
            notes = [change.note for change in changes]
            if found.leaves_out:
                notes.append("leaves out the text that an assistant's turn has beside a call")
            return Fitted(turns, texts, found, tuple(notes))
    raise refusal or AssertionError("a conversation without changes was tried")


def _system_in_user(messages: Sequence[Message]) -> list[Message]:
    """Put system texts before the text of the next user turn, as Gemma's makers do."""
    changed, waiting = [], list[str]()
    for message in messages:
        if message.role == "system":
            waiting.append(message.content)
        elif message.role == "user" and waiting:
            content = "\n\n".join([*waiting, message.content])
            changed.append(message.model_copy(update={"content": content}))
            waiting = []
        else:
            changed.append(message)
    return list(messages) if waiting else changed


def _joined(messages: Sequence[Message]) -> list[Message]:
    """Join consecutive turns of one role, as Mistral's makers do."""
    changed: list[Message] = []
    for message in messages:
        last = changed[-1] if changed else None
        if last is None or last.role != message.role or message.role == "tool":
            changed.append(message)
            continue
        content = "\n\n".join(filter(None, [last.content, message.content]))
        calls = (*(last.tool_calls or ()), *(message.tool_calls or ())) or None
        changed[-1] = last.model_copy(update={"content": content, "tool_calls": calls})
    return changed


def _linked_calls(messages: Sequence[Message]) -> list[Message]:
    """Give each call an id of nine characters, and each result the id and name of its call.

    Mistral's models know such ids only, and vLLM shortens others too.
    """
    changed, waiting, ids = [], list[tuple[str, str]](), dict[str, tuple[str, str]]()
    given: set[str] = set()  # logs may use an id again in a later turn
    for message in messages:
        update: dict[str, Any] = {}
        if message.tool_calls:
            calls = []
            for call in message.tool_calls:
                short = "".join(filter(str.isalnum, call.id or ""))[-9:]
                if len(short) < 9 or short in given:
                    short = f"call{len(given):05}"
                given.add(short)
                waiting.append((short, call.function.name))
                ids[call.id or short] = waiting[-1]
                calls.append(call.model_copy(update={"id": short}))
            update["tool_calls"] = tuple(calls)
        elif message.role == "tool" and waiting:
            link = ids.get(message.tool_call_id or "", waiting[0])
            waiting = [other for other in waiting if other != link]
            update = {"tool_call_id": link[0], "name": message.name or link[1]}
        changed.append(message.model_copy(update=update) if update else message)
    return changed


def _calls_in_words(messages: Sequence[Message]) -> list[Message]:
    """Write calls of tools into the text of their turn."""
    return [
        message.model_copy(update={"content": with_calls(message), "tool_calls": None})
        if message.tool_calls
        else message
        for message in messages
    ]


def _results_in_words(messages: Sequence[Message]) -> list[Message]:
    """Have the user report what tools return."""
    return [
        Message(role="user", content=transcript((message,))) if message.role == "tool" else message
        for message in messages
    ]


class _Change(NamedTuple):
    """A change of a conversation, and what is said of it after "its chat template".

    `in_words` is whether it takes the place of a form that the model does not know.
    """

    make: Callable[[Sequence[Message]], list[Message]]
    note: str
    in_words: bool = False


_CHANGES = (
    _Change(
        _system_in_user,
        "takes no such system turn; its text goes before that of the next user turn",
    ),
    _Change(_calls_in_words, "knows no calls of tools; they are written as text", in_words=True),
    _Change(
        _results_in_words,
        "knows no results of tools; they are written as user turns",
        in_words=True,
    ),
    _Change(
        _joined,
        "wants turns to alternate; consecutive turns of one role are joined, with a blank line "
        "between them",
    ),
    _Change(
        _linked_calls,
        "needs ids of nine characters, or a name with each result; calls of tools get them",
    ),
)
# What to try, in order: the model's own forms before words, and few changes before many.
_SETS = sorted(
    (changes for size in range(len(_CHANGES) + 1) for changes in combinations(_CHANGES, size)),
    key=lambda changes: (sum(change.in_words for change in changes), len(changes)),
)
