"""From records to rows: the mapping of fields, and the value of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from setbacks.data import conversations
from setbacks.data.assembly import assembled, common, parted, with_input
from setbacks.data.conversations import (
    OBJECT,
    SPEAKERS,
    THOUGHTS,
    conversation,
    dialogue,
    is_dialogue,
    is_message,
    unwritten,
)
from setbacks.data.labels import is_absent, probability, truth
from setbacks.data.recognition import REPLIES, columns, holds_dialogues
from setbacks.data.source import Record, Row, Source, bad, plain, show
from setbacks.errors import nearest
from setbacks.messages import Message, turns_of
from setbacks.notices import notice

# Our fields that may come from a conversation, and the role of each.
ROLES = {"text": "user", "answer": "assistant", "response": "assistant"}
# Parts of conversations that are not used, and why: they are counted.
SYSTEM = "the system turn"
EARLIER = "earlier turns"
REPLY = "the assistant's last turn"
CALLS = "the calls of tools in the last turn"
SYSTEM_COLUMN = 'the column "system"'
UNUSED = {
    SYSTEM: "the fields name a single turn",
    EARLIER: "the fields name a single turn",
    REPLY: "no field takes it",
    CALLS: "an answer is text",
    SYSTEM_COLUMN: "no field takes it",
    THOUGHTS: "an answer is judged and learned without them",
    SPEAKERS: "only tools have names",
}
# Columns beside a conversation that are not used.
BESIDE = {
    "tools": "definitions of tools are not supported",
    "functions": "definitions of tools are not supported",
    "images": "only text is supported",
    "videos": "only text is supported",
    "audios": "only text is supported",
}
LABELS = {"harmful", "refused"}
PROBABILITIES = {"p_harmful", "p_refused"}
NO_ANSWER = {"", "nan", "NaN"}  # a missing answer, as text


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
            have = f"it has {', '.join(map(show, names))}{_hint(place, names)}" if names else ""
            raise bad(
                f"{place}: no known field for {ours}; set fields: {{{ours}: NAME}}, or --fields "
                f"{ours}=NAME on a command line; {have or 'it has none'}"
            )


def _hint(place: str, names: Iterable[str]) -> str:
    """Return the likely cause if no field of a CSV file is recognized."""
    if not place.lower().removesuffix(".gz").endswith(".csv"):
        return ""
    if any(";" in name or "\t" in name for name in names):
        return " (columns must have a single separator: commas, semicolons or tabs)"
    return " (a CSV file without a header line needs header: false)"


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
        self.replies = [ours for ours in REPLIES if ours in fields]
        self.shared = [ours for ours in self.replies if self.paths[ours] == self.paths["text"]]
        # A conversation that is both the text and the reply is read once.
        self.again = [ours for ours in self.shared if ours not in self.extract]
        self.once = [ours for ours in fields if ours not in self.again]
        self.dialogues: set[str] = set()
        self.unused: Counter[str] = Counter()
        self.apart: list[str] = []  # places of pairs whose replies follow different turns

    def rows(self, records: Sequence[Record]) -> list[Row]:
        """Return a row for each record that can be used; report the others.

        Raises:
            InputError: a record is invalid, or none can be used.
        """
        self.look_at(records)
        rows = [row for record in records if (row := self.row(record)) is not None]
        self.report(len(records))
        return rows

    def look_at(self, records: Sequence[Record]) -> None:
        """Learn from the records, or from the first ones, which columns hold dialogues."""
        self.dialogues = {
            ours
            for ours in ROLES.keys() & self.fields.keys() - self.extract.keys()
            if holds_dialogues(records, self.paths[ours])
        }

    def report(self, total: int) -> None:
        """Give notices of the parts that are not used.

        Args:
            total: the number of records.

        Raises:
            InputError: no record can be used.
        """
        for what, count in self.unused.items():
            why = UNUSED.get(what) or BESIDE[what]
            what = f'the column "{what}"' if what in BESIDE else what
            notice(f"{self.place}: left out {what} in {count} of {total} rows: {why}")
        if self.apart:
            self._report_apart(total)

    def _report_apart(self, total: int) -> None:
        replies = " and ".join(show(self.fields[ours]) for ours in self.replies)
        why = (
            f"the turns before the last differ between {replies}, so they answer different prompts"
        )
        if len(self.apart) == total:
            raise bad(f"{self.place}, {self.apart[0]}: {why}; this is so in all rows")
        notice(
            f"{self.place}: left out {len(self.apart)} of {total} rows: {why}; the first is "
            f"{self.apart[0]}"
        )

    def row(self, record: Record) -> Row | None:
        """Return the row of one record; None if its replies answer different prompts.

        Raises:
            InputError: the record is invalid.
        """
        try:
            return self._read(record)
        except ValueError as error:
            raise bad(f"{self.place}, {record.at}: {error}") from None

    def _read(self, record: Record) -> Row | None:
        unused: set[str] = set()
        has = {ours: self._value(record.value, ours, unused) for ours in self.once}
        for ours in self.again:
            turns = has["text"]
            has[ours] = turns if type(turns) is list else self._value(record.value, ours, unused)
        text, extra = has.get("text"), has.get("input")
        if text is None or (isinstance(text, str) and not text.strip()):
            raise ValueError(f"the text (field {show(self.fields['text'])}) is missing or empty")
        if has.get("system") or list in map(type, has.values()):  # turns of a conversation
            if not self._converse(has, record.value, unused):
                self.apart.append(record.at)
                return None
        else:
            has["text"] = with_input(text, extra) if extra else text
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
            text=has["text"],
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
            kind=has.get("kind"),
        )

    def _converse(self, has: dict[str, Any], record: dict[str, Any], unused: set[str]) -> bool:
        """Replace the turns in a record's values by the prompt and by the texts of the replies.

        Returns:
            False if the replies follow different turns: a pair of no use.
        """
        prompt, last = parted(turns_of(has["text"]))
        if last and (last.content or last.tool_calls) and not self.shared:
            unused.add(REPLY)
        befores = []
        for ours in self.replies:
            before: Sequence[Message] = ()
            if isinstance(has[ours], list):
                before, reply = parted(has[ours])
                if reply is None and ours not in self.shared:
                    raise ValueError(self._at(ours, "the last turn must be the assistant's"))
                has[ours] = _said(reply, unused)
            if has[ours] is not None and ours not in self.shared:
                befores.append(before)
        whole = common(prompt, befores)
        if whole is None and self.shared:
            return False
        if whole is None:
            where = " or ".join(self._at(ours) for ours in self.replies)
            raise ValueError(
                f"{where}: the turns before the last are not those of {self._at('text')}"
            )
        unused.update(column for column in BESIDE if _is_held(record.get(column)))
        if "system" not in self.fields and _is_held(record.get("system")):
            unused.add(SYSTEM_COLUMN)
        try:
            has["text"] = assembled(
                whole, has.get("history") or (), has.get("system"), has.get("input")
            )
        except ValueError as error:
            raise ValueError(self._at("text", str(error))) from None
        return True

    def _at(self, ours: str, what: str = "") -> str:
        """Return one of our fields with its name in the data, and what is wrong there."""
        return f"{ours} ({self.fields[ours]})" + (f": {what}" if what else "")

    def _value(self, record: dict[str, Any], ours: str, unused: set[str]) -> Any:
        """Return a record's value of one of our fields; turns for a conversation."""
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
            return self._spoken(value, ours, unused)
        if ours in LABELS:
            return truth(ours, value, opposite=path != self.fields[ours])
        if ours in PROBABILITIES:
            return probability(ours, value, opposite=path != self.fields[ours])
        if ours == "history":
            return self._turns(conversations.history, value, ours, unused)
        return self._text(value, ours) if ours in ("input", "system") else label(value)

    def _step(self, ours: str, unused: set[str], items: list[Any], place: int) -> Any:
        """Return an item of a list; in a conversation, one with the right role."""
        if not is_message(items[0]):
            return items[place]
        try:
            place = conversations.place_of(items, place, ROLES[ours])
        except ValueError as error:
            raise ValueError(self._at(ours, str(error))) from None
        before = conversations.roles_before(items, place)
        if "system" in before:
            unused.add(SYSTEM)
        if len(before) - before.count("system") > (ROLES[ours] == "assistant"):
            unused.add(EARLIER)
        return items[place]

    def _spoken(self, value: Any, ours: str, unused: set[str]) -> Any:
        """Return the text in a value, or the turns of a conversation; None for a missing one."""
        if isinstance(value, str) and ours in self.dialogues:
            if not is_dialogue(value):
                raise ValueError(
                    self._at(
                        ours,
                        'no dialogue of "\\n\\nHuman:" and "\\n\\nAssistant:" turns, '
                        "as in most rows",
                    )
                )
            turns = self._turns(lambda text, _: dialogue(text), value, ours, unused)
            self._text(value, ours)
            return turns
        if isinstance(value, str) and not OBJECT.match(value):
            return self._text(value, ours)  # the most common case
        turns = self._turns(conversation, value, ours, unused)
        return self._text(value, ours) if turns is None else turns or None

    def _turns(
        self,
        read: Callable[[Any, set[str]], list[Message] | None],
        value: Any,
        ours: str,
        unused: set[str],
    ) -> list[Message] | None:
        try:
            return read(value, unused)
        except ValueError as error:
            raise ValueError(self._at(ours, str(error))) from None

    def _text(self, value: Any, ours: str) -> str | None:
        if is_absent(value):
            return None
        if not isinstance(value, str):
            hint = f'; name an item, such as "{self.fields[ours]}.0"' * isinstance(value, list)
            raise ValueError(f"{ours} must be a string, found {show(value)}{hint}")
        if "\0" in value:
            raise ValueError(f"a NUL character in {ours}; remove it")
        return value


def _said(reply: Message | None, unused: set[str]) -> str | None:
    """Return the text of a reply; None if it only calls tools."""
    if reply is None:
        return None
    if reply.tool_calls:
        unused.add(CALLS)
    return None if reply.tool_calls and not reply.content else reply.content


def _is_held(value: Any) -> bool:
    """Return whether a column holds something, and not an empty list, maybe as text."""
    return not is_absent(value) and value != [] and str(value).strip() not in ("", "[]")


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
