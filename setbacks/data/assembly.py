"""From the turns that a record holds to a prompt and the replies to it.

The last turn decides: a conversation that ends with the assistant's turn holds a reply, and the
turns before it are its prompt; one that ends with a user's or a tool's turn is a prompt. A reply
beside its prompt may repeat the prompt's turns, as in preference pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import dropwhile

from setbacks.messages import Message, Prompt, prompt_of, reworded, with_system


def common(prompt: Sequence[Message], befores: Iterable[Sequence[Message]]) -> list[Message] | None:
    """Return the prompt that all replies follow; None if they follow different ones.

    A system turn at the beginning may be missing from some of them, and spaces may differ.

    Args:
        prompt: the turns of the text.
        befores: for each reply, the turns before it: none, those of the whole conversation, or, as
            in a completion that begins with calls of tools, those that continue the prompt.
    """
    wholes = []
    for before in befores:
        if not any(turn.role == "user" for turn in before):
            wholes.append([*prompt, *before])
        elif _spoken(before) == _spoken(prompt):
            wholes.append(list(before))
        else:
            return None
    longest = max([list(prompt), *wholes], key=len)
    return longest if all(_spoken(whole) == _spoken(longest) for whole in wholes) else None


def _spoken(turns: Sequence[Message]) -> list[tuple[object, ...]]:
    """Return turns in a form that is equal for copies of them, without system turns before them."""
    spoken = dropwhile(lambda turn: turn.role == "system", turns)
    return [(turn.role, turn.content.strip(), turn.tool_calls) for turn in spoken]


def assembled(
    turns: Sequence[Message], earlier: Sequence[Message], system: str | None, extra: str | None
) -> Prompt:
    """Return a prompt of turns and of what other fields have beside them.

    Args:
        turns: what comes before the reply.
        earlier: turns of earlier rounds.
        system: a system prompt; it counts once if the turns begin with it.
        extra: what the instruction is about; it is added to the last user turn.

    Raises:
        ValueError: there is no user turn, or the last turn is of the wrong role.
    """
    turns = [*earlier, *turns]
    if not any(turn.role == "user" for turn in turns):
        raise ValueError("a conversation without a user turn has no instruction")
    if (last := turns[-1].role) not in ("user", "tool"):
        raise ValueError(
            f"the last turn, or the last one before the reply, has the role {last}; it must be "
            "user or tool"
        )
    if system and system.strip() and turns[0] != Message(role="system", content=system):
        turns = with_system(turns, system)
    prompt = prompt_of(turns)
    return reworded(prompt, lambda text: with_input(text, extra))


def with_input(text: str, extra: str | None) -> str:
    """Return an instruction with what it is about below it."""
    return f"{text}\n\n{extra}" if extra and extra.strip() else text


def parted(turns: Sequence[Message]) -> tuple[Sequence[Message], Message | None]:
    """Return the turns before the assistant's last one, and that one; None if another is last."""
    if turns and turns[-1].role == "assistant":
        return turns[:-1], turns[-1]
    return turns, None
