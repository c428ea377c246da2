"""From the bytes of a file to its records: JSON in its many shapes, JSON Lines, CSV, Parquet."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from setbacks.data.source import USUAL, Record, Source, bad, plain, show
from setbacks.errors import InputError


def parse(place: str, suffix: str, data: bytes, source: Source) -> list[Record]:
    """Read the bytes of a file by its kind."""
    kinds = (".json", ".jsonl", ".csv", ".parquet")
    if suffix not in kinds:
        raise bad(f"{place}: the name must end in {', '.join(kinds)} (or one of these and .gz)")
    if not data.strip():
        raise bad(f"{place} is empty")
    if suffix == ".parquet":
        return _parquet(place, data)
    text = _decode(place, data)
    if suffix == ".csv":
        return list(_csv(place, text, source.header))
    _refuse_lone_surrogates(place, text)
    if suffix == ".jsonl":
        return list(_jsonl(place, text))
    named = {plain(path).split(".")[0] for path in source.fields.values()}
    return list(_json(place, text, named | set(USUAL["text"])))


def _decode(place: str, data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise bad(f"{place} is in UTF-16: save it as UTF-8")
    if (at := data.find(0)) >= 0:
        line = data.count(b"\n", 0, at) + 1
        raise bad(f"{place}, line {line}: a NUL byte; the file is damaged or is not text")
    try:
        return data.decode("utf-8-sig")  # a byte order mark is what Excel puts first
    except UnicodeDecodeError as error:
        # Counted in the bytes that the decoder saw, which lack the mark; the mark has no newline.
        line = error.object.count(b"\n", 0, error.start) + 1
        raise bad(f"{place}, line {line}: not UTF-8; save the file as UTF-8") from None


ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair: one character
    r"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"  # half of a pair
    r"|\\."
)


def _refuse_lone_surrogates(place: str, text: str) -> None:
    r"""Refuse "\ud800": JSON allows half a character, but no file can hold it as UTF-8."""
    if "\\ud" not in text and "\\uD" not in text:
        return
    for match in ESCAPE.finditer(text):
        if match[1]:
            line = text.count("\n", 0, match.start()) + 1
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
            value = _loads(place, line, number)
            yield Record(f"line {number}", _object(place, f"line {number}", value))


def _object(place: str, at: str, value: Any) -> dict[str, Any]:
    """An object as it is; a string as the object {"text": string}."""
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {"text": value}
    raise bad(f"{place}, {at}: expected an object or a string, found {show(value)}")


def _json(place: str, text: str, known: set[str]) -> Iterator[Record]:
    try:
        document = _loads(place, text)
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, json.JSONDecodeError) and cause.msg == "Extra data":
            yield from _jsonl(place, text)  # JSON lines, under the name .json
            return
        raise
    for number, value in enumerate(_items(place, document, known), start=1):
        yield Record(f"item {number}", _object(place, f"item {number}", value))


# What a list is called that holds all rows; another name, {"Insult": [...]}, is a category.
CONTAINERS = {"data", "rows", "records", "items", "examples", "instances", "samples"}


def _items(place: str, document: Any, known: set[str]) -> Iterable[Any]:
    """Find the items in a JSON document, whichever of the common shapes it has."""
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        raise bad(f"{place}: expected a list of objects, found {show(document)}")
    if any(isinstance(document.get(name), str) for name in known):
        return [document]  # one object
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


def _parallel(place: str, lists: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """{"instructions": [...], "tags": [...]}: lists of which the n-th items belong together."""
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{show(name)} has {length}" for name, length in lengths.items())
        raise bad(f"{place}: its lists should be of one length, but {said}")
    for values in zip(*lists.values(), strict=True):
        yield dict(zip(lists, values, strict=True))


def _tree(place: str, node: Any, path: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """{category: {subcategory: [question, ...]}}, of any depth; questions may be objects."""
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


def _csv(place: str, text: str, header: bool) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # the default refuses long responses
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] | None = None
    while True:
        at = f"line {lines.line_num + 1}"
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            raise bad(f"{place}, {at}: not CSV ({error}); is a quote left open?") from None
        if not cells:
            continue
        if names is None:
            numbers = [str(number) for number in range(len(cells))]
            names = [c or n for c, n in zip(cells, numbers, strict=True)] if header else numbers
            if twice := {name for name in names if names.count(name) > 1}:
                raise bad(
                    f"{place}, {at}: two columns are called {show(min(twice))}; "
                    "if this line is no header, say header: false"
                )
            if header:
                continue
        if len(cells) != len(names):
            raise bad(f"{place}, {at}: {len(cells)} columns, where {len(names)} are expected")
        yield Record(at, dict(zip(names, cells, strict=True)))


def _parquet(place: str, data: bytes) -> list[Record]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise bad(f"{place} is not a whole Parquet file ({error})") from None
    return [Record(f"row {number}", row) for number, row in enumerate(rows, start=1)]
