"""Conversations as Inspect has them, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
)
from inspect_ai.tool import ToolCall as InspectCall

from setbacks.messages import Function, Message, Prompt, ToolCall, prompt_of


def as_input(prompt: Prompt) -> str | list[ChatMessage]:
    """Return a prompt as the input of a sample."""
    return prompt if isinstance(prompt, str) else chat_messages(prompt)


def from_input(value: str | Sequence[ChatMessage]) -> Prompt:
    """Return the prompt in the input of a sample."""
    return value if isinstance(value, str) else prompt_of(map(_turn, value))


def chat_messages(turns: Iterable[Message]) -> list[ChatMessage]:
    """Return turns as Inspect's messages."""
    return [_message(turn) for turn in turns]


def _message(turn: Message) -> ChatMessage:
    if turn.role == "system":
        return ChatMessageSystem(content=turn.content)
    if turn.role == "user":
        return ChatMessageUser(content=turn.content)
    if turn.role == "tool":
        return ChatMessageTool(
            content=turn.content, function=turn.name, tool_call_id=turn.tool_call_id
        )
    calls = [_call(call, f"call_{n}") for n, call in enumerate(turn.tool_calls or ())]
    return ChatMessageAssistant(content=turn.content, tool_calls=calls or None)


def _call(call: ToolCall, number: str) -> InspectCall:
    try:
        arguments = json.loads(call.function.arguments)
    except ValueError:
        arguments = None
    return InspectCall(
        id=call.id or number,
        function=call.function.name,
        arguments=arguments if isinstance(arguments, dict) else {},
        parse_error=None if isinstance(arguments, dict) else "the arguments are not a JSON object",
    )


def _turn(message: ChatMessage) -> Message:
    more: dict[str, object] = {}
    if isinstance(message, ChatMessageTool):
        more = {"name": message.function, "tool_call_id": message.tool_call_id}
    elif isinstance(message, ChatMessageAssistant) and message.tool_calls:
        more["tool_calls"] = tuple(
            ToolCall(id=call.id, function=Function(name=call.function, arguments=call.arguments))
            for call in message.tool_calls
        )
    return Message.model_validate({"role": message.role, "content": message.text, **more})
