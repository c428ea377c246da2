"""Conversations: the turns of a chat, in the shapes that chat data has.

OpenAI and TRL write ``[{"role": "user", "content": ...}]``, ShareGPT ``[{"from": "human",
"value": ...}]``, LLaMA-Factory's `history` is a list of pairs, and HH-RLHF writes a dialogue as one
text. CSV holds any of them as text. What a turn has beside its text and its calls of tools is
not used, so it is reported to the reader, which counts it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

from setbacks.data.labels import is_absent
from setbacks.data.source import show
from setbacks.messages import Function, Message, Prompt, ToolCall, as_data, turns_of

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
    "ai": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
# Roles of turns whose text is a call of a tool, or several, in JSON.
CALLERS = {"function_call", "tool_call"}
ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value", "text", "parts")
CALL_KEYS = {"tool_calls", "function_call"}
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
# Parts of a turn that are not used.
THOUGHTS = "the assistant's thoughts"
SPEAKERS = "the names of speakers"
MEDIA = re.compile("image|audio|video|file")  # types of content that is not text
# A conversation written as text begins with an object and names a role, in the notation of JSON,
# Python, NumPy or Java.
OBJECT = re.compile(r"\s*+(?:array\()?[\[\s]*+\{")
NAMED_ROLE = re.compile(
    rf"[{{,]\s*\W{{0,3}}(?:role|from)\W{{0,3}}\s*[:=]\s*\W{{0,3}}(?:{'|'.join(ROLES)})\b",
    re.IGNORECASE,
)
# A dialogue as in HH-RLHF: "\n\nHuman: <a>\n\nAssistant: <b>".
SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def conversation(value: object, unused: set[str]) -> list[Message] | None:
    """Return the turns of a conversation, which may be written as text; None for other values.

    Empty system turns are dropped, and so is a last turn of the assistant without content: there is
    no reply. Other turns without content are errors.

    Args:
        value: in the data.
        unused: takes the names of the parts that are not used.

    Raises:
        ValueError: it is a conversation, but cannot be read.
    """
    messages = _messages(value)
    if messages is None:
        return None
    turns = []
    for number, message in enumerate(messages):
        turn = _turn(number, message, unused)
        if turn.content.strip() or turn.tool_calls or turn.role == "tool":
            turns.append(turn)
        elif turn.role == "assistant" and number == len(messages) - 1:
            if _content(message) is not None:
                turns.append(turn)
        elif turn.role != "system":
            raise ValueError(f"message {number} ({turn.role}) is empty")
    return turns


def history(value: object, unused: set[str]) -> list[Message]:
    """Return the turns of earlier rounds: pairs of a user's and an assistant's text, or messages.

    Args:
        value: in the data; it may be written as text.
        unused: as in `conversation`.

    Raises:
        ValueError: it has another form.
    """
    if isinstance(value, str):
        value = unwritten(value)
    if is_absent(value) or value in ("", []):
        return []
    turns = conversation(value, unused)
    if turns is not None:
        return turns
    if not isinstance(value, list) or not all(map(_is_pair, value)):
        raise ValueError(
            "must be a list of [user, assistant] pairs of texts, or of messages; found "
            f"{show(value)}"
        )
    return [
        Message(role=role, content=text)
        for user, assistant in value
        for role, text in (("user", user), ("assistant", assistant))
    ]


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(text, str) and text.strip() for text in value)
    )


def is_one(value: object) -> bool:
    """Return whether a value is a conversation, readable or not."""
    try:
        return _messages(value) is not None
    except ValueError:
        return True


def is_dialogue(value: object) -> bool:
    """Return whether a value has the form of HH-RLHF's dialogues.

    Such a text could be a prompt that imitates them, so the reader asks this of a whole column.
    """
    return isinstance(value, str) and value.startswith("\n\nHuman:") and "\n\nAssistant:" in value


def dialogue(text: str) -> list[Message]:
    """Return the turns of a dialogue of HH-RLHF, without the spaces around each.

    A speaker's name that comes twice in a row does not begin another turn.

    Raises:
        ValueError: a turn before the last one is empty.
    """
    parts = SPEAKER.split(text)[1:]
    turns = [
        Message(
            role="user" if speaker == "Human" else "assistant",
            content="\n\n".join(said for _, said in spoken).strip(),
        )
        for speaker, spoken in groupby(
            zip(parts[::2], map(str.strip, parts[1::2]), strict=True), key=lambda part: part[0]
        )
    ]
    for number, turn in enumerate(turns):
        if not turn.content and (turn.role == "user" or number < len(turns) - 1):
            raise ValueError(f"turn {number} of the dialogue ({turn.role}) is empty")
    return turns


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
    """Return whether a value is one message: it has a known role, and content or calls of tools."""
    return _role_name(value) in ROLES and _is_spoken(value)


def role_of(message: Any) -> str | None:
    """Return the role of a message under its standard name; other roles keep their names."""
    name = _role_name(message)
    return name and ROLES.get(name, name)


def unwritten(text: str) -> Any:
    """Return the list or object that a text spells in JSON or Python; otherwise the text."""
    if text.lstrip()[:1] in ("[", "{"):
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(text.strip())
                if "\\" in text:
                    _reject_half_characters(value)
                return value
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
    return text


def prompt_as_data(prompt: Prompt) -> str | list[dict[str, Any]]:
    """Return a prompt as a value of our files, which is read again as the same prompt.

    A text that would be taken for a conversation becomes a turn of one.
    """
    if isinstance(prompt, str) and _looks_spoken(prompt):
        return as_data(tuple(turns_of(prompt)))
    return as_data(prompt)


def reply_as_data(text: str) -> str | list[dict[str, Any]]:
    """Return an answer as a value of our files, like `prompt_as_data`."""
    if _looks_spoken(text):
        return as_data((Message(role="assistant", content=text),))
    return text


def _looks_spoken(text: str) -> bool:
    return OBJECT.match(text) is not None or is_dialogue(text)


def _reject_half_characters(value: Any) -> None:
    r"""Raise a ValueError for half a character, such as "\ud800": UTF-8 cannot encode it."""
    json.dumps(value, ensure_ascii=False, default=str).encode()


def _role_name(message: Any) -> str | None:
    if not isinstance(message, dict):
        return None
    for key in ROLE_KEYS:
        if isinstance(role := message.get(key), str):
            return role if role in ROLES else role.strip().casefold() or None
    return None


def _is_spoken(message: Any) -> bool:
    """Return whether a message has content, or calls of tools in place of it."""
    return "content" in message or not message.keys().isdisjoint((*CONTENT_KEYS, *CALL_KEYS))


def _begins(message: Any) -> bool:
    """Return whether a list that begins with this value is a conversation, readable or not."""
    name = _role_name(message)
    return name is not None and (name in ROLES or _is_spoken(message))


def _messages(value: object) -> list[Any] | None:
    """Return the messages in a value, of any role; None if there are none."""
    if isinstance(value, str):
        if not (OBJECT.match(value) and NAMED_ROLE.search(value)):
            return None
        value = _written(value)
    if isinstance(value, list):
        if value and isinstance(value[0], list) and _messages(value[0]):
            raise ValueError("a list of conversations, but one is expected")
        return value if value and _begins(value[0]) else None
    if not isinstance(value, dict):
        return None
    if is_message(value):
        return [value]
    if any(value.get(key) and isinstance(value[key], list) for key in ROLE_KEYS):
        return _messages(_as_objects(value))
    return next((inner for key in NAMES if (inner := _messages(value.get(key)))), None)


def _as_objects(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the objects in an object of lists, which older releases of `datasets` write."""
    lists = {key: held for key, held in columns.items() if held and isinstance(held, list)}
    if len({*map(len, lists.values())}) > 1:
        raise ValueError("a conversation whose lists of roles and texts differ in length")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


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


def _turn(number: int, message: Any, unused: set[str]) -> Message:
    name = _role_name(message)
    role = name and ROLES.get(name, name)
    if role is None or not _is_spoken(message):
        raise ValueError(f"message {number} has no role or no content")
    if role not in ROLES.values():
        raise ValueError(
            f"message {number} has the unknown role {show(role)}; use system, user, assistant or "
            "tool"
        )
    content = _text(number, message, role, unused)
    if "\0" in content:
        raise ValueError(f"message {number} has a NUL character; remove it")
    if role == "assistant":
        return _reply(number, message, content, name in CALLERS, unused)
    if role == "tool":
        more = {key: _name(message.get(key)) for key in ("name", "tool_call_id")}
        return Message(role="tool", content=content, **more)
    if len(message) > 2 and _name(message.get("name")):
        unused.add(SPEAKERS)
    return _system(content) if role == "system" else Message(role="user", content=content)


def _reply(
    number: int, message: dict[str, Any], content: str, is_call: bool, unused: set[str]
) -> Message:
    """Return a turn of the assistant; a call's content is a call of a tool, or several."""
    calls = message.get("tool_calls") or message.get("function_call")
    if is_call and not calls:
        calls, content = content, ""
    if len(message) > 2:
        if _name(message.get("name")):
            unused.add(SPEAKERS)
        if any(_name(message.get(key)) for key in THOUGHT_KEYS):
            unused.add(THOUGHTS)
    if calls is None:
        return Message(role="assistant", content=content)
    return Message(role="assistant", content=content, tool_calls=_calls(number, calls) or None)


@lru_cache(maxsize=128)
def _system(content: str) -> Message:
    """Return a system turn: all conversations of a log have the same, maybe a long one."""
    return Message(role="system", content=content)


def _name(value: Any) -> str | None:
    """Return a name or an id as text, without NUL characters; None where there is none."""
    return None if is_absent(value) or value == "" else str(value).replace("\0", "")


def _content(message: dict[str, Any]) -> Any:
    """Return the content of a message, or the refusal that OpenAI's models give instead."""
    content = message.get("content")
    if content and isinstance(content, str):
        return content
    content = next((message[key] for key in CONTENT_KEYS if key in message), None)
    content = None if is_absent(content) else content
    refusal = message.get("refusal")
    return refusal if not content and isinstance(refusal, str) else content


def _text(number: int, message: dict[str, Any], role: str, unused: set[str]) -> str:
    """Return the text of a message; its content may have several parts."""
    content = _content(message)
    if content is None or isinstance(content, str):
        return content or ""
    try:
        parts = content if isinstance(content, list) else [content]
        return "".join(_part(number, part, unused) for part in parts)
    except ValueError:
        if role != "tool" or _is_media(content):
            raise
        return json.dumps(content, ensure_ascii=False, default=str)  # a result in JSON


def _is_media(content: Any) -> bool:
    parts = content if isinstance(content, list) else [content]
    kinds = (str(part.get("type")) for part in parts if isinstance(part, dict))
    return any(MEDIA.search(kind) for kind in kinds)


def _part(number: int, part: Any, unused: set[str]) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("thinking", "reasoning"):
        unused.add(THOUGHTS)
        return ""
    if isinstance(part, dict) and kind in (None, "text", "input_text", "output_text", "refusal"):
        text = part.get("refusal" if kind == "refusal" else "text")
        if isinstance(text, str):
            return text
    what = f"of the type {show(kind)}" if kind else f"without text, {show(part)}"
    raise ValueError(f"message {number} has content {what}; only text can be read")


def _calls(number: int, calls: Any) -> tuple[ToolCall, ...]:
    """Return the calls of tools in a message, in any of their forms."""
    if isinstance(calls, str):
        calls = unwritten(calls)
    if not calls or is_absent(calls):
        return ()
    if isinstance(calls, dict) and isinstance(calls.get("function"), list):
        calls = _as_objects(calls)
    if not isinstance(calls, list):
        calls = [calls]
    return tuple(_call(number, call) for call in calls)


def _call(number: int, call: Any) -> ToolCall:
    """Return a call; its function may be inside it, as OpenAI writes it, or be the call itself."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(
            f"message {number} calls a tool, but not as JSON with a name and arguments: "
            f"{show(call)}"
        )
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, dict):  # Parquet adds the other calls' arguments, as nulls
        arguments = {key: value for key, value in arguments.items() if value is not None}
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments or {}, ensure_ascii=False, default=str)
    _check_escapes(number, arguments)
    if "\0" in function["name"] + arguments:
        raise ValueError(f"message {number} has a NUL character; remove it")
    return ToolCall(
        id=_name(call.get("id")),
        function=Function(name=function["name"], arguments=arguments or "{}"),
    )


def _check_escapes(number: int, arguments: str) -> None:
    """Reject half a character in the arguments of a call; a chat template may decode them."""
    if "\\u" not in arguments:
        return
    try:
        _reject_half_characters(json.loads(arguments))
    except UnicodeEncodeError:
        raise ValueError(f"message {number} has half a character in a call; remove it") from None
    except ValueError:
        return  # the model that made the call wrote no JSON
