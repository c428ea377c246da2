"""Read the records of a file: JSON in several shapes, JSON Lines, CSV, Parquet."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from setbacks.data import conversations
from setbacks.data.classes import by_name
from setbacks.data.source import USUAL, Record, Source, bad, choose_split, plain, show
from setbacks.errors import InputError

KINDS = (".json", ".jsonl", ".csv", ".parquet")


def ending(name: str) -> str:
    """Return the ending that shows a file's format, without .gz."""
    return Path(name.lower().removesuffix(".gz")).suffix


def read(place: str, file: Path, source: Source) -> list[Record]:
    """Read a file by its kind.

    Args:
        place: of the file, for messages.
        file: its path.
        source: the recipe's section.

    Raises:
        InputError: it cannot be read.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise bad(f"{place} cannot be read: {error.strerror}") from None
    if file.name.lower().endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise bad(f"{place} is not a complete gzip file ({error}); download it again") from None
    return parse(place, ending(file.name), data, source)


def parse(place: str, suffix: str, data: bytes, source: Source) -> list[Record]:
    """Read the bytes of a file, as `read`."""
    if suffix not in KINDS:
        raise bad(f"{place}: the name must end in {', '.join(KINDS)} (or one of these and .gz)")
    if not data.strip():
        raise bad(f"{place} is empty")
    if suffix == ".parquet":
        return _parquet(place, data)
    text = _decode(place, data)
    if suffix == ".csv":
        return read_csv(place, text, source.header)
    if suffix == ".jsonl":
        return list(_jsonl(place, text))
    _reject_lone_surrogates(place, text)
    named = {plain(path).split(".")[0] for path in source.fields.values()}
    return list(_json(place, text, named | set(USUAL["text"]), source.split))


def _decode(place: str, data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise bad(f"{place} is in UTF-16; save it as UTF-8")
    if (at := data.find(0)) >= 0:
        line = data.count(b"\n", 0, at) + 1
        raise bad(f"{place}, line {line}: a NUL byte; the file is damaged or is not text")
    try:
        return data.decode("utf-8-sig")  # Excel writes a byte order mark first
    except UnicodeDecodeError as error:
        # The decoder's bytes lack the mark, but the mark has no newline.
        line = error.object.count(b"\n", 0, error.start) + 1
        raise bad(f"{place}, line {line}: not UTF-8; save the file as UTF-8") from None


ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair: one character
    r"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"  # half of a pair
    r"|\\."
)


def _reject_lone_surrogates(place: str, text: str, line: int = 1) -> None:
    r"""Reject "\ud800": JSON allows half a character, but UTF-8 cannot encode it."""
    if "\\ud" not in text and "\\uD" not in text:
        return
    for match in ESCAPE.finditer(text):
        if match[1]:
            line += text.count("\n", 0, match.start())
            raise bad(f"{place}, line {line}: {match[1]} is half a character; remove it")


def _loads(place: str, text: str, line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = line + error.lineno - 1
        raise bad(f"{place}, line {at}: not JSON ({error.msg}, column {error.colno})") from error
    except ValueError as error:  # a number of thousands of digits
        raise bad(f"{place}, line {line}: not JSON ({error})") from None


def _jsonl(place: str, text: str) -> Iterator[Record]:
    # Not splitlines(): it also splits at characters that JSON allows inside a string.
    for number, match in enumerate(re.finditer(r"(?m)^.*$", text), start=1):
        if (line := match[0]).strip():
            yield json_line(place, number, line)


def json_line(place: str, number: int, line: str) -> Record:
    """Read one line of JSON Lines.

    Args:
        place: of the file, for messages.
        number: of the line, from 1.
        line: the text.

    Raises:
        InputError: it is not JSON, or not an object, a string or a conversation.
    """
    _reject_lone_surrogates(place, line, number)
    at = f"line {number}"
    return Record(at, _object(place, at, _loads(place, line, number)))


def _object(place: str, at: str, value: Any) -> dict[str, Any]:
    """Return an object unchanged, and a string or a conversation as an object."""
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {"text": value}
    if conversations.is_one(value):
        return {conversations.NAMES[0]: value}
    raise bad(f"{place}, {at}: expected an object or a string, found {show(value)}")


def _json(place: str, text: str, known: set[str], split: str | None) -> Iterator[Record]:
    try:
        document = _loads(place, text)
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, json.JSONDecodeError) and cause.msg == "Extra data":
            yield from _jsonl(place, text)  # JSON lines, in a file named .json
            return
        raise
    for number, value in enumerate(_items(place, document, known, split), start=1):
        yield Record(f"item {number}", _object(place, f"item {number}", value))


# Names of a list that has all rows; another name, {"Insult": [...]}, is a category.
CONTAINERS = {"data", "rows", "records", "items", "examples", "instances", "samples"}

# A list in one of these is one conversation, and not a list of rows.
CHATS = (*conversations.NAMES, "prompt", "chosen")

# Names of splits, including train_sft or 30k_test.
SPLIT = re.compile(
    r"(?:[\w.-]*[_.\d-])?(?:train|training|test|testing|validation|valid|val|dev|eval)"
    r"(?:[_.\d-][\w.-]*)?",
    re.IGNORECASE,
)


def _items(place: str, document: Any, known: set[str], split: str | None) -> Iterable[Any]:
    """Find the items in a JSON document of any of the common shapes."""
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        raise bad(f"{place}: expected a list of objects, found {show(document)}")
    if any(isinstance(document.get(name), str) for name in known):
        return [document]  # one object
    if any(conversations.is_one(document.get(name)) for name in CHATS):
        return [document]
    if splits := _splits(document, split):
        if split is None:
            choose_split(place, list(splits), None)
        return _of_splits(place, splits, known)
    lists = {name: value for name, value in document.items() if isinstance(value, list) and value}
    if any(isinstance(lists.get(name, [None])[0], str) for name in known):
        return _parallel(place, lists)
    others = [value for name, value in document.items() if name not in lists and value]
    if len(lists) == 1 and not any(isinstance(value, dict) for value in others):
        ((name, values),) = lists.items()
        if others or name.lower() in CONTAINERS or name in known:
            return values  # {"data": [...], "version": 1}
    if all(isinstance(value, dict) for value in others):
        return _tree(place, document, ())
    raise bad(
        f"{place}: expected a list of objects or of strings, an object of lists, or categories "
        f"with their questions; found an object with {', '.join(map(show, list(document)[:8]))}"
    )


def _splits(document: dict[str, Any], wanted: str | None) -> dict[str, Any]:
    """Return the splits of {"train": [...], "test": [...]}; {} if the keys are categories."""
    parts = {
        name: part for name, part in document.items() if part and isinstance(part, list | dict)
    }
    if len(parts) == 1:
        ((name, part),) = parts.items()
        if name.lower() in CONTAINERS and isinstance(part, dict):
            return _splits(part, wanted)
    named = {name: part for name, part in parts.items() if SPLIT.fullmatch(name)}
    if wanted in parts:
        return named | {str(wanted): parts[str(wanted)]}
    return named if len(named) > 1 or len(named) == len(parts) else {}


def _of_splits(place: str, splits: dict[str, Any], known: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the items of all splits, with the name of the split in a field "split"."""
    for name, part in splits.items():
        for item in _items(f"{place}, {name}", part, known, None):
            yield _object(place, name, item) | {"split": name}


def _parallel(place: str, lists: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of {"instructions": [...], "tags": [...]}, lists of the same length."""
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{show(name)} has {length}" for name, length in lengths.items())
        raise bad(f"{place}: its lists must have the same length, but {listed}")
    for values in zip(*lists.values(), strict=True):
        yield dict(zip(lists, values, strict=True))


def _tree(place: str, node: Any, path: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the questions of {category: {subcategory: [question, ...]}}, at any depth."""
    if isinstance(node, dict):
        for name, child in node.items():
            yield from _tree(place, child, (*path, name))
        return
    at = " / ".join(path)
    if not isinstance(node, list):
        raise bad(f"{place}: expected a list of questions in {show(at)}, found {show(node)}")
    labels = {"category": path[0]}
    if len(path) > 1:
        labels["subcategory"] = " / ".join(path[1:])
    for item in node:
        yield labels | _object(place, at, item)


def read_csv(place: str, text: str, header: bool = True) -> list[Record]:
    """Read the text of a CSV file.

    Args:
        place: of the file, for messages.
        text: of the file.
        header: whether the first line names the columns; otherwise they are 0, 1, 2 ...

    Raises:
        InputError: a quote is not closed, or a line has a different number of columns.
    """
    csv.field_size_limit(2**31 - 1)  # the default rejects long responses
    first = re.match(r"(?i)\"?sep=([,;\t|])\"?\r?\n", text)  # a line that Excel writes and reads
    separator = first[1] if first else _separator(text) if header else ","
    body = io.StringIO(text[first.end() if first else 0 :], newline="")
    lines = csv.reader(body, delimiter=separator, strict=True)
    names: list[str] | None = None
    records = []
    while True:
        at = f"line {lines.line_num + (2 if first else 1)}"
        try:
            cells = next(lines)
        except StopIteration:
            break
        except csv.Error as error:
            raise bad(f"{place}, {at}: not CSV ({error}); is a quote not closed?") from None
        if not cells:
            continue
        if names is None:
            numbers = [str(number) for number in range(len(cells))]
            titles = [cell.strip() for cell in cells]
            names = [t or n for t, n in zip(titles, numbers, strict=True)] if header else numbers
            if twice := {name for name in names if names.count(name) > 1}:
                raise bad(
                    f"{place}, {at}: two columns have the name {show(min(twice))}; "
                    "if this line is not a header, set header: false"
                )
            if header:
                continue
        if len(cells) != len(names):
            raise bad(f"{place}, {at}: {len(cells)} columns, but {len(names)} are expected")
        records.append(Record(at, dict(zip(names, cells, strict=True))))
    if names == ["0"] and not header:
        _reject_unseparated(place, records)
    return records


# Separators other than commas: Excel uses semicolons in many countries.
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def _separator(text: str) -> str:
    """Return the separator of the columns: a comma, unless the header has none.

    Another separator must give the header and the first row the same number of columns.
    """

    def widths(separator: str) -> list[int]:
        lines = csv.reader(io.StringIO(text[:1_000_000], newline=""), delimiter=separator)
        return [len(cells) for cells in islice(filter(None, lines), 2)]

    if max(widths(",")[:1], default=1) == 1:
        for separator in SEPARATORS:
            if len(set(columns := widths(separator))) == 1 and columns[0] > 1:
                return separator
    return ","


def _reject_unseparated(place: str, records: list[Record]) -> None:
    """Reject one column that may be several: without a header, this is ambiguous."""
    for separator, word in SEPARATORS.items():
        counts = {record.value["0"].count(separator) for record in records}
        if len(records) > 1 and len(counts) == 1 and counts != {0}:
            raise bad(
                f"{place}: each line has the same number of {word} and no comma; if they separate "
                "columns, separate those by commas, and if they are part of the text, put a "
                "header line above it (without header: false)"
            )


def _parquet(place: str, data: bytes) -> list[Record]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        rows = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise bad(f"{place} is not a complete Parquet file ({error})") from None
    records = [Record(f"row {number}", row) for number, row in enumerate(rows, start=1)]
    return by_name(records, _features(table.schema.metadata or {}))


def _features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """Return the features that `datasets` writes into the schema of a Parquet file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}
