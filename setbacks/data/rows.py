"""From records to rows: the mapping of fields, and the value of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from setbacks.data import conversations
from setbacks.data.conversations import (
    OBJECT,
    conversation,
    instruction,
    is_message,
    reply,
    unwritten,
)
from setbacks.data.labels import is_absent, probability, truth
from setbacks.data.source import USUAL, Record, Row, Source, bad, plain, show
from setbacks.errors import nearest
from setbacks.notices import notice

# Our fields that may come from a conversation, and the role of each.
ROLES = {"text": "user", "answer": "assistant", "response": "assistant"}
# Other parts of a conversation: they are not used, so they are counted.
SYSTEM = "the system turn"
EARLIER = "earlier turns"
REPLY = "the assistant's turn"
LABELS = {"harmful", "refused"}
PROBABILITIES = {"p_harmful", "p_refused"}
NO_ANSWER = {"", "nan", "NaN"}  # a missing answer, as text


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

    if fields["text"] in (None, "text"):  # "text" is a formatted copy of a conversation
        fields["text"] = chat(*conversations.NAMES) or fields["text"] or chat("chosen")
    if "response" in needs:
        fields["response"] = fields["response"] or chat("completion", fields["text"])
    else:
        fields["answer"] = fields["answer"] or chat("completion", "chosen", fields["text"])
        fields["response"] = fields["response"] or chat("rejected")
    return {ours: name for ours, name in fields.items() if name is not None}


def _holds_conversations(records: Iterable[Record], name: str) -> bool:
    values = (record.value.get(name) for record in records)
    first = next((value for value in values if not is_absent(value)), None)
    return conversations.is_one(first)


def check_fields(
    place: str, records: Iterable[Record], fields: Mapping[str, str], needs: Iterable[str]
) -> None:
    """Check that the data has the fields of a mapping, and the mapping those that are needed.

    Raises:
        InputError: a field is missing.
    """
    names = columns(records)
    for ours, path in fields.items():
        check_path(place, names, plain(path), f"fields: {ours}")
    for ours in needs:
        if ours in ("text", "response") and ours not in fields and "response_id" in names:
            raise bad(
                f"{place}: has response_id but no texts of the answers; import it with "
                "`setbacks review import RUN FILE --as NAME`, then export it with "
                "`setbacks review export RUN FILE --format labels`"
            )
        if ours not in fields:
            raise bad(
                f"{place}: no known field for {ours}; set fields: {{{ours}: NAME}}; it has "
                f"{', '.join(map(show, names))} ({_hint(names)})"
            )


def _hint(names: Iterable[str]) -> str:
    """Return the likely cause if no field is recognized."""
    if any(";" in name or "\t" in name for name in names):
        return "columns must have a single separator: commas, semicolons or tabs"
    return "a CSV file without a header line needs header: false"


def check_path(place: str, names: Sequence[str], path: str, key: str) -> None:
    """Check that the data has the field that a path begins with.

    Args:
        place: of the data, for messages.
        names: of its fields.
        path: of one of its values.
        key: of the recipe that has the path.

    Raises:
        InputError: the data has no such field.
    """
    head = path.partition(".")[0]
    if path not in names and head not in names:
        have = ", ".join(map(show, names))
        raise bad(f'{place} has no field "{head}" ({key}).{nearest(head, names)} It has {have}')


def dig(
    value: Any, path: str, step: Callable[[list[Any], int], Any] = lambda items, at: items[at]
) -> Any:
    """Follow a dotted path; None if it does not exist. A name with a dot in it takes precedence.

    Args:
        value: an object or a list, which may be written as text.
        path: names, and indices in lists.
        step: returns an item of a list by a valid index.
    """
    if isinstance(value, dict) and path in value:
        return value[path]
    if isinstance(value, str):
        value = unwritten(value)
    head, dot, rest = path.partition(".")
    if isinstance(value, dict):
        inner = value.get(head)
    elif isinstance(value, list) and re.fullmatch(r"-?\d{1,9}", head):
        inner = step(value, int(head)) if -len(value) <= int(head) < len(value) else None
    else:
        return None
    return dig(inner, rest, step) if dot else inner


class Reader:
    """Turns a source's records into rows, and counts the parts that are not used.

    Args:
        place: of the data, for messages.
        fields: our field -> theirs.
        source: the recipe's section.
        name: of the source, for rows that have no source.
        needs: our fields that every row must have.
        blank: whether a missing response counts as an empty one.
    """

    def __init__(
        self,
        place: str,
        fields: Mapping[str, str],
        source: Source,
        name: str,
        needs: Sequence[str],
        blank: bool,
    ) -> None:
        self.place, self.fields, self.source, self.name = place, fields, source, name
        self.needs, self.blank = needs, blank
        self.paths = {ours: plain(path) for ours, path in fields.items()}
        self.extract = {ours: re.compile(pattern) for ours, pattern in source.extract.items()}
        replies = {fields[ours] for ours in ("answer", "response") if ours in fields}
        self.reply_is_read = not replies or fields["text"] in replies
        self.unused: Counter[str] = Counter()

    def rows(self, records: Iterable[Record]) -> list[Row]:
        """Return a row for each record.

        Raises:
            InputError: a record is invalid.
        """
        rows = [self._row(record) for record in records]
        for what, count in self.unused.items():
            notice(
                f"{self.place}: left out {what} in {count} of {len(rows)} rows: only one user "
                "turn is supported"
            )
        return rows

    def _row(self, record: Record) -> Row:
        try:
            return self._read(record.value)
        except ValueError as error:
            raise bad(f"{self.place}, {record.at}: {error}") from None

    def _read(self, record: dict[str, Any]) -> Row:
        unused: set[str] = set()
        has = {ours: self._value(record, ours, unused) for ours in self.fields}
        text, extra = has.get("text"), has.get("input")
        if text is None or not text.strip():
            raise ValueError(f"the text (field {show(self.fields['text'])}) is missing or empty")
        if extra and extra.strip():
            text = f"{text}\n\n{extra}"
        answer = has.get("answer")
        if answer is not None and answer.strip() in NO_ANSWER:
            answer = None
        if self.blank and has.get("response") is None:
            has["response"] = ""
        for ours in self.needs:
            if has.get(ours) is None:
                raise ValueError(f"{ours} (field {show(self.fields[ours])}) is missing")
        self.unused.update(unused)
        return Row(
            text=text,
            answer=answer,
            response=has.get("response"),  # it may be empty: a model may give no answer
            harmful=has.get("harmful"),
            category=self.source.category or has.get("category"),
            language=self.source.language or has.get("language"),
            id=has.get("id") or "",
            source=has.get("source") or self.name,
            refused=has.get("refused"),
            p_harmful=has.get("p_harmful"),
            p_refused=has.get("p_refused"),
        )

    def _value(self, record: dict[str, Any], ours: str, unused: set[str]) -> Any:
        """Return a record's value of one of our fields."""
        path = self.paths[ours]
        if path in record:
            value = record[path]
        elif ours in ROLES:
            value = dig(record, path, partial(self._step, ours, unused))
        else:
            value = dig(record, path)
        if ours in self.extract and not is_absent(value):
            match = self.extract[ours].search(value) if isinstance(value, str) else None
            if match is None:
                raise ValueError(f"extract does not match the {ours} in {show(value)}")
            value = match[1]
        if ours in ROLES:
            return self._text(self._of_role(record, value, ours, unused), ours)
        if ours in LABELS:
            return truth(ours, value, opposite=path != self.fields[ours])
        if ours in PROBABILITIES:
            return probability(ours, value, opposite=path != self.fields[ours])
        return self._text(value, ours) if ours == "input" else label(value)

    def _step(self, ours: str, unused: set[str], items: list[Any], place: int) -> Any:
        """Return an item of a list; in a conversation, one with the right role."""
        if not is_message(items[0]):
            return items[place]
        try:
            place = conversations.place_of(items, place, ROLES[ours])
        except ValueError as error:
            raise ValueError(f"{ours} ({self.fields[ours]}): {error}") from None
        before = conversations.roles_before(items, place)
        if "system" in before:
            unused.add(SYSTEM)
        if len(before) - before.count("system") > (ROLES[ours] == "assistant"):
            unused.add(EARLIER)
        return items[place]

    def _of_role(self, record: dict[str, Any], value: Any, ours: str, unused: set[str]) -> Any:
        """Return the turn of a conversation that a field means; other values are unchanged."""
        if isinstance(value, str) and not OBJECT.match(value):
            return value  # the most common case
        try:
            turns = conversation(value)
            if turns is None:
                return value
            beside = record.get("system") if ours == "text" else None  # as LLaMA-Factory has it
            if conversations.has_system_turn(turns) or (isinstance(beside, str) and beside.strip()):
                unused.add(SYSTEM)
            if ours != "text":
                return reply(turns)
            if reply(turns) is not None and not self.reply_is_read:
                unused.add(REPLY)
            return instruction(turns)
        except ValueError as error:
            raise ValueError(f"{ours} ({self.fields[ours]}): {error}") from None

    def _text(self, value: Any, ours: str) -> str | None:
        if is_absent(value):
            return None
        if not isinstance(value, str):
            hint = f'; name an item, such as "{self.fields[ours]}.0"' * isinstance(value, list)
            raise ValueError(f"{ours} must be a string, found {show(value)}{hint}")
        if "\0" in value:
            raise ValueError(f"a NUL character in {ours}; remove it")
        return value


def label(value: Any) -> str | None:
    """Return a category, language or id as text; {"theft": true, "fraud": false} becomes "theft".

    Args:
        value: in the data; an object may be written as text, as in a CSV file.
    """
    if isinstance(value, str) and value.startswith("{"):
        parsed = unwritten(value)
        value = parsed if isinstance(parsed, dict) else value
    if is_absent(value):
        return None
    if isinstance(value, dict):
        value = [name for name, holds in value.items() if holds == 1]
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return str(whole(value)).replace("\0", "").strip() or None


def whole(value: Any) -> Any:
    """Return 7 for 7.0: pandas turns a column of numbers with a gap into floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
