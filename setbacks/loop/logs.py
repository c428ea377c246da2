"""Chat logs: every logged answer with the turns before it, read one at a time.

A conversation's last assistant turn is the answer, and the turns before it are the prompt. Chat
logs are read like any other data; the results of other tools are read as `setbacks diff` reads
them. JSON Lines are streamed; other formats are read as a whole.

A log is written while people talk, so a broken line is no reason to stop: entries that cannot be
used are left out, and counted with the place of the first one.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from setbacks.data.conversations import prompt_as_data, reply_as_data, role_of, unwritten
from setbacks.data.formats import ending, json_line, read
from setbacks.data.labels import truth
from setbacks.data.recognition import columns, recognize
from setbacks.data.rows import Reader, check_fields, check_path, dig, label
from setbacks.data.source import Record, Row, Source, bad, show
from setbacks.errors import InputError
from setbacks.loop.results import parts, reader_of
from setbacks.loop.results.item import Item
from setbacks.messages import Prompt
from setbacks.notices import notice
from setbacks.text import encodable

FIRST = 1000  # entries of a file by which its columns are recognized
# Why an entry is left out. A reason never quotes the entry: the values are people's data.
NOT_JSON = "not JSON"
NO_ANSWER = "no answer of the assistant"
UNREADABLE = "not readable as a conversation"
BAD_LABEL = "prompt_harmful is neither true nor false"
USED = {"text", "response", "input", "system", "history", "language"}  # of our fields


class Logged(NamedTuple):
    """One logged answer.

    Args:
        prompt: the turns before it.
        answer: its text.
        source: name of the log.
        language: as the log names it.
        safe: whether the request is safe; None if the log does not say so.
        cluster: what the conversations of one user or session share; None if unknown.
    """

    prompt: Prompt
    answer: str
    source: str
    language: str | None = None
    safe: bool | None = None
    cluster: str | None = None


class _LeftOut(NamedTuple):
    entries: int
    first: str


class Logs:
    """The answers of several logs; iterate over them, as often as needed.

    Args:
        sources: files of chat logs, or results of other tools as `setbacks.loop.results.read`
            takes them.
        fields: our field -> theirs, for chat logs with other names.
        cluster: their field that conversations of one user or session share; None for none.

    Raises:
        InputError: a log does not exist, or the fields are for chat logs and there are none.
    """

    def __init__(
        self,
        sources: Sequence[str],
        fields: Mapping[str, str] | None = None,
        cluster: str | None = None,
    ) -> None:
        self.sources, self.fields, self.cluster = sources, dict(fields or {}), cluster
        self._left_out: dict[tuple[str, str], _LeftOut] = {}
        paths = [parts(source)[0] for source in sources]
        if self.fields and all(map(reader_of, paths)):
            raise bad(f"{sources[0]}: not a chat log, so fields cannot be set")
        if unused := sorted(self.fields.keys() - USED):
            notice(f"fields: {', '.join(unused)} of chat logs change nothing")

    def __iter__(self) -> Iterator[Logged]:
        """Yield every answer.

        Raises:
            InputError: a log has an unknown format, or no answer at all.
        """
        self._left_out.clear()
        for source in self.sources:
            number = 0
            for number, logged in enumerate(self._read(source), 1):  # noqa: B007  counted
                yield logged
            if not number:
                raise bad(f"{source}: has no logged answer" + self._reasons(parts(source)[0]))

    def report(self) -> None:
        """Give a notice of the entries that were left out."""
        for (place, why), (entries, first) in self._left_out.items():
            number = "1 entry" if entries == 1 else f"{entries} entries"
            notice(f"{place}: left out {number}: {why}; the first is {first}")

    def _reasons(self, path: Path) -> str:
        reasons = [
            f"{why} in {entries}, the first is {first}"
            for (place, why), (entries, first) in self._left_out.items()
            if place == str(path)
        ]
        return f": {'; '.join(reasons)}" if reasons else ""

    def _leave_out(self, path: Path, why: str, at: str) -> None:
        count, first = self._left_out.get((str(path), why), _LeftOut(0, at))
        self._left_out[str(path), why] = _LeftOut(count + 1, first)

    def _read(self, source: str) -> Iterator[Logged]:
        path, name = parts(source)
        items = reader_of(path)
        if items is None:
            yield from self._chats(path)
            return
        if self.cluster:
            raise bad(f"{path}: not a chat log, so it has no field {show(self.cluster)}")
        fields = {"text": "text", "response": "response"}
        reader = _reader(path, fields)
        number = 0
        for number, item in enumerate(items(path), 1):
            if name and item.of != name:
                continue
            if logged := self._logged(path, reader, _record(number, item)):
                yield logged
        reader.report(number)

    def _chats(self, path: Path) -> Iterator[Logged]:
        if path.is_dir():
            raise bad(f"{path}: a folder, but not a run folder; name the files of the logs")
        records = self._records(path)
        first = list(islice(records, FIRST))
        if not first:
            return
        fields = self.fields or recognize(first, ("response",))
        check_fields(str(path), first, fields, ("text", "response"))
        if self.cluster:
            check_path(str(path), columns(first), self.cluster, "cluster")
        reader = _reader(path, fields)
        reader.look_at(first)
        number = 0
        for number, record in enumerate(chain(first, records), 1):  # noqa: B007  counted
            if logged := self._logged(path, reader, record):
                yield logged
        reader.apart.clear()  # they are counted as left out
        reader.report(number)

    def _records(self, path: Path) -> Iterator[Record]:
        if ending(path.name) != ".jsonl":
            try:
                yield from read(str(path), path, Source(source=str(path), fields=self.fields))
            except RecursionError:
                raise bad(f"{path}: nested too deeply; use a list of objects") from None
            return
        opens = gzip.open if path.name.lower().endswith(".gz") else open
        try:
            with opens(path, "rb") as file:
                for number, line in enumerate(file, 1):
                    if not line.strip():
                        continue
                    try:
                        yield json_line(str(path), number, line.decode("utf-8-sig"))
                    except (InputError, ValueError, RecursionError):
                        self._leave_out(path, NOT_JSON, f"line {number}")
        except (OSError, EOFError, zlib.error) as error:
            raise bad(f"{path}: cannot be read to its end ({error})") from None

    def _logged(self, path: Path, reader: Reader, record: Record) -> Logged | None:
        """Return the last answer of a record; None, counted, if there is none to use."""
        try:
            harmful = truth("harmful", record.value.get("prompt_harmful"))
        except ValueError:
            self._leave_out(path, BAD_LABEL, record.at)
            return None
        try:
            row = _last_answer(reader, record)
            cluster = label(dig(record.value, self.cluster)) if self.cluster else None
        except (InputError, ValueError, RecursionError):
            self._leave_out(path, UNREADABLE, record.at)
            return None
        if row is None or row.response is None or not row.response.strip():
            self._leave_out(path, NO_ANSWER, record.at)
            return None
        safe = None if harmful is None else not harmful
        return Logged(row.text, row.response, path.name, row.language, safe, cluster)


def _reader(path: Path, fields: Mapping[str, str]) -> Reader:
    return Reader(str(path), fields, Source(source=str(path)), path.name, (), False)


def _last_answer(reader: Reader, record: Record) -> Row | None:
    """Return the row of a record up to its last answer; None if it has no answer."""
    column = reader.paths["response"]
    if column == reader.paths["text"] and column in record.value:
        record.value[column] = turns = _up_to_answer(record.value[column])
        if turns == []:
            return None
    return reader.row(record)


def _record(number: int, item: Item) -> Record:
    """Return a result of another tool as a record of ours, so that the same rules hold for it."""
    answer = None if item.answer is None else reply_as_data(_clean_text(item.answer))
    data = {"text": prompt_as_data(_clean(item.prompt)), "response": answer}
    return Record(f"result {number}", data)


def _clean(prompt: Prompt) -> Prompt:
    """Return a prompt of another tool without what no file of ours can hold."""
    if isinstance(prompt, str):
        return _clean_text(prompt)
    return tuple(turn.model_copy(update={"content": _clean_text(turn.content)}) for turn in prompt)


def _clean_text(text: str) -> str:
    return encodable(text).replace("\0", " ")


def _up_to_answer(value: object) -> object:
    """Return the turns of a conversation up to the last one of the assistant."""
    turns = unwritten(value) if isinstance(value, str) else value
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return value
    ends = [place for place, turn in enumerate(turns, 1) if role_of(turn) == "assistant"]
    return turns[: max(ends, default=0)]
