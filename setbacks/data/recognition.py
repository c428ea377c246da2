"""Which column holds what, where a source does not say: by usual names, and by conversations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from setbacks.data import conversations
from setbacks.data.conversations import conversation, is_dialogue
from setbacks.data.labels import is_absent
from setbacks.data.source import USUAL, Record

REPLIES = ("answer", "response")
# The columns of the good and the bad replies of preference pairs.
PAIRS = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))


def columns(records: Iterable[Record]) -> list[str]:
    """Return the fields of all records, in order of appearance."""
    return list(dict.fromkeys(key for record in records for key in record.value))


def recognize(records: Sequence[Record], needs: Iterable[str]) -> dict[str, str]:
    """Return the mapping by the usual names, and by the columns that hold conversations.

    Args:
        records: all of them.
        needs: our fields that every row must have. If `response` is one of them, it is the
            assistant's turn of a conversation; otherwise that turn is a good answer.
    """
    names = columns(records)
    if names == ["0"]:
        return {"text": "0"}  # a file with one column and no header
    fields: dict[str, str | None] = {
        ours: next((name for name in usual if name in names), None) for ours, usual in USUAL.items()
    }

    def chat(*candidates: str | None) -> str | None:
        """Return the first of these columns that exists and has conversations."""
        there = (name for name in candidates if name is not None and name in names)
        return next((name for name in there if _holds_conversations(records, name)), None)

    whole = chat(*conversations.NAMES)
    replied = any(fields[ours] for ours in REPLIES) or {"chosen", "completion"} & set(names)
    if fields["text"] in (None, "text"):  # "text" is a formatted copy of a conversation
        fields["text"] = whole or fields["text"] or chat("chosen", "input")
    elif whole and not replied and _repeats(records, whole, fields["text"]):
        fields["text"] = whole  # it has more than its first user turn
    if fields["text"] in (whole, fields["input"]):  # a conversation has its input in it
        fields["input"] = None
    if "response" in needs:
        fields["response"] = fields["response"] or chat("completion", fields["text"])
    else:
        good, bad_ = _pair_of_replies(records, names)
        if isinstance(_first(records, "label"), bool):  # TRL's KTO: the completion may be a bad one
            fields["response"] = fields["response"] or chat("completion")
        else:
            fields["answer"] = fields["answer"] or chat("completion")
        fields["answer"] = fields["answer"] or chat("chosen") or good
        fields["response"] = fields["response"] or chat("rejected") or bad_
        if not fields["answer"]:
            # A reply with a label of harm or refusal may be a bad one, too.
            labeled = (fields["harmful"] or fields["refused"]) and not fields["response"]
            fields["response" if labeled else "answer"] = chat(fields["text"])
    if fields["system"] and not _is_prompt(_first(records, fields["system"])):
        fields["system"] = None
    if fields["history"] and not _is_history(_first(records, fields["history"])):
        fields["history"] = None
    return {ours: name for ours, name in fields.items() if name is not None}


def _first(records: Iterable[Record], name: str) -> Any:
    """Return the first value of a column that is not missing or empty; None if there is none."""
    values = (record.value.get(name) for record in records)
    return next((value for value in values if not is_absent(value) and value not in ("", [])), None)


def _holds_conversations(records: Sequence[Record], name: str) -> bool:
    return conversations.is_one(_first(records, name)) or holds_dialogues(records, name)


def _repeats(records: Sequence[Record], whole: str, text: str) -> bool:
    """Return whether the first conversation in a column has another column's text as a turn."""
    first = next((record.value for record in records if record.value.get(whole)), {})
    try:
        turns = conversation(first.get(whole), set()) or []
    except ValueError:
        return False
    prompt = first.get(text)
    return isinstance(prompt, str) and prompt.strip() in [turn.content.strip() for turn in turns]


def _pair_of_replies(
    records: Sequence[Record], names: Sequence[str]
) -> tuple[str | None, str | None]:
    """Return the columns that hold the good and the bad replies of preference pairs."""
    for good, bad_ in PAIRS:
        values = [_first(records, name) for name in (good, bad_) if name in names]
        if len(values) == 2 and all(isinstance(v, str) or conversations.is_one(v) for v in values):
            return good, bad_
    return None, None


def _is_prompt(value: Any) -> bool:
    """Return whether a value of a column "system" is a prompt, and not the name of a system."""
    return isinstance(value, str) and not re.fullmatch(r"[\w.:/@+-]*", value, re.ASCII)


def _is_history(value: Any) -> bool:
    try:
        return bool(conversations.history(value, set()))
    except ValueError:
        return conversations.is_one(value)


def holds_dialogues(records: Sequence[Record], name: str) -> bool:
    """Return whether most texts of a column are dialogues, as in HH-RLHF.

    A few prompts of a set may imitate one.
    """
    if not any(is_dialogue(record.value.get(name)) for record in records[:100]):
        return False
    values = [value for record in records if isinstance(value := record.value.get(name), str)]
    return sum(map(is_dialogue, values)) > len(values) / 2
