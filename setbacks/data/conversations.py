"""Conversations: lists of messages, in the shapes that chat data has, read by role.

OpenAI and TRL write ``[{"role": "user", "content": ...}]``, ShareGPT ``[{"from": "human",
"value": ...}]``, and CSV holds either as text. An instruction is one user turn so far, with at most
one answer; other conversations are rejected, and other parts are counted by the reader.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from itertools import dropwhile
from typing import Any, NamedTuple

# The columns that hold whole conversations in most public data.
NAMES = ("messages", "conversations", "conversation")

ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
# Other roles that conversations have; they are not supported yet.
OTHERS = {"tool", "function", "function_call", "observation"}
ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value", "text", "parts")
# A conversation written as text begins with an object and names a role, in the notation of JSON,
# Python, NumPy or Java.
OBJECT = re.compile(r"\s*+(?:array\()?[\[\s]*+\{")
NAMED_ROLE = re.compile(
    r"[{,]\s*\W{0,3}(?:role|from)\W{0,3}\s*[:=]\s*\W{0,3}"
    rf"(?:{'|'.join([*ROLES, *OTHERS])})\b",
    re.IGNORECASE,
)


class Turn(NamedTuple):
    """One message; its text is None if it has none, such as a call of a tool."""

    role: str
    text: str | None


def conversation(value: object) -> list[Turn] | None:
    """Return the turns of a conversation, which may be written as text; None for other values.

    Raises:
        ValueError: it is a conversation, but cannot be read.
    """
    messages = _messages(value)
    if messages is None:
        return None
    return [_turn(number, message) for number, message in enumerate(messages)]


def is_one(value: object) -> bool:
    """Return whether a value is a conversation, readable or not."""
    try:
        return _messages(value) is not None
    except ValueError:
        return True


def instruction(turns: Sequence[Turn]) -> str | None:
    """Return the user's text in a conversation of one user turn and at most one answer.

    Raises:
        ValueError: the conversation has another form.
    """
    spoken = _after_system(turns)
    _check_form(spoken)
    if spoken[0].role != "user":
        raise ValueError("a conversation without a user turn has no instruction")
    return spoken[0].text


def reply(turns: Sequence[Turn]) -> str | None:
    """Return the assistant's turn of such a conversation; None if there is none.

    Raises:
        ValueError: the conversation has another form.
    """
    spoken = _after_system(turns)
    _check_form(spoken)
    return spoken[-1].text if spoken[-1].role == "assistant" else None


def has_system_turn(turns: Sequence[Turn]) -> bool:
    """Return whether a conversation has a system turn that is not empty."""
    return any(turn.role == "system" and (turn.text or "").strip() for turn in turns)


def place_of(messages: Sequence[Any], place: int, role: str) -> int:
    """Return the place in a list of messages that "conversations.0" means, from 0.

    One path fits all rows even if only some begin with a system turn: the turn at the place counts,
    or the next one if the list begins with a system turn.

    Args:
        messages: a list of messages.
        place: the valid index in the path; a negative one counts from the end.
        role: the expected role, "user" or "assistant".

    Raises:
        ValueError: the turn has another role.
    """
    roles = [role_of(message) for message in messages]
    shifted = place + 1 if place >= 0 and roles[0] == "system" else place
    for candidate in (place, shifted):
        if candidate < len(roles) and roles[candidate] == role:
            return candidate % len(roles)
    raise ValueError(f"message {place} has the role {roles[place]}, not {role}")


def roles_before(messages: Sequence[Any], place: int) -> list[str | None]:
    """Return the roles of the messages before a place that are not empty."""
    return [
        role_of(message)
        for message in messages[:place]
        if isinstance(message, dict) and any(message.get(key) for key in CONTENT_KEYS)
    ]


def is_message(value: object) -> bool:
    """Return whether a value is one message: it has a role and a content."""
    return (
        isinstance(value, dict)
        and role_of(value) in {*ROLES, *OTHERS}
        and any(key in value for key in CONTENT_KEYS)
    )


def role_of(message: Any) -> str | None:
    """Return the role of a message under its standard name; other roles keep their names."""
    if not isinstance(message, dict):
        return None
    role = next((message[key] for key in ROLE_KEYS if isinstance(message.get(key), str)), None)
    return role and ROLES.get(role.strip().casefold(), role.strip().casefold())


def unwritten(text: str) -> Any:
    """Return the list or object that a text spells in JSON or Python; otherwise the text."""
    if text.lstrip()[:1] in ("[", "{"):
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(text.strip())
                if "\\" in text:  # half a character, such as "\\ud800", cannot be written as UTF-8
                    json.dumps(value, ensure_ascii=False, default=str).encode()
                return value
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
    return text


def _messages(value: object) -> list[Any] | None:
    """Return the messages in a value, of any role; None if there are none."""
    if isinstance(value, str):
        if not (OBJECT.match(value) and NAMED_ROLE.search(value)):
            return None
        value = _written(value)
    if isinstance(value, list):
        if value and isinstance(value[0], list) and _messages(value[0]):
            raise ValueError("a list of conversations, but one is expected")
        return value if value and is_message(value[0]) else None
    if not isinstance(value, dict):
        return None
    if is_message(value):
        return [value]
    columns = {key: held for key, held in value.items() if held and isinstance(held, list)}
    if any(key in columns for key in ROLE_KEYS):  # a list in older releases of `datasets`
        if len({*map(len, columns.values())}) > 1:
            raise ValueError("a conversation whose lists of roles and texts differ in length")
        rows = zip(*columns.values(), strict=True)
        return _messages([dict(zip(columns, row, strict=True)) for row in rows])
    return next((inner for key in NAMES if (inner := _messages(value.get(key)))), None)


def _written(text: str) -> Any:
    """Return the value of a text that looks like messages; None if it only begins with messages."""
    value = unwritten(text)
    if not isinstance(value, str):
        return value
    try:
        _, end = json.JSONDecoder().raw_decode(text.strip())
    except ValueError:
        end = len(text)
    if end < len(text.strip()):
        return None  # a list of messages, and then a question about it
    raise ValueError("a list of messages written as text, which cannot be read")


def _turn(number: int, message: Any) -> Turn:
    role = role_of(message)
    content = [message[key] for key in CONTENT_KEYS if key in message] if role else []
    if role is None or not content:
        raise ValueError(f"message {number} has no role or no content")
    if role not in ROLES.values():
        raise ValueError(f'message {number} has the role "{role}", which is not supported yet')
    return Turn(role, _text(number, content[0]))


def _text(number: int, content: Any) -> str | None:
    """Return the text of a message; its content may have several parts."""
    if content is None or isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"message {number} has content other than text, which is not supported yet"
        )
    return "".join(map(str, texts))


def _after_system(turns: Sequence[Turn]) -> Sequence[Turn]:
    return list(dropwhile(lambda turn: turn.role == "system", turns))


def _check_form(spoken: Sequence[Turn]) -> None:
    roles = [turn.role for turn in spoken]
    if roles in (["user"], ["assistant"], ["user", "assistant"]):
        return
    if "system" in roles:
        raise ValueError("a conversation with a system turn in the middle is not supported yet")
    if roles.count("user") > 1:
        raise ValueError(
            f"a conversation of {roles.count('user')} user turns is not supported yet; use one "
            "user turn and one answer"
        )
    raise ValueError(f"a conversation of the turns {', '.join(roles) or 'none'} is not supported")
