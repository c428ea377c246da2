"""Read instructions and answers from built-in sets, public sets, and your own files.

`load` reads any of them into the same rows; `load_labels` does so for human labels. In a recipe a
source is a string, or a mapping with more options:

    instructions: builtin:redteam
    instructions: {source: mine.csv, fields: {text: prompt}, where: {label: unsafe}, limit: 200}

The section of a recipe (`Source`) and the result (`Row`) are in `source`; the public sets that have
names are in `presets`. Reading has four steps: fetch the records (`formats` and `hub`), keep some,
map each to a row, and drop duplicates. Any problem with the data becomes one `InputError` that
names the file and the line.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from importlib import resources
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from setbacks.data.formats import ending, parse, read
from setbacks.data.hub import download, from_datasets
from setbacks.data.presets import PRESETS
from setbacks.data.recognition import columns, recognize
from setbacks.data.rows import Reader, check_fields, check_path, dig, whole
from setbacks.data.source import Record, Row, Scalar, Source, bad, show
from setbacks.errors import nearest
from setbacks.files import expanded
from setbacks.hub import connect
from setbacks.messages import Prompt, transcript
from setbacks.notices import drop_notices, keep_notices, notice
from setbacks.plugins import installed, plugin

log = logging.getLogger(__name__)

FIRST = "first"  # the revision of a built-in set before it grew
# Built-in sets that have grown, and the highest number in the ids of their first rows.
GROWN = {"builtin:redteam": 12, "builtin:hijacking": 12, "builtin:safe": 12}


def load(source: Source | str, base: Path | None = None) -> list[Row]:
    """Read a source into rows.

    Rows that repeat an earlier one are dropped, and logged. A row keeps the id of the data if every
    row has one and all are different; otherwise ids are computed from the content, so that they
    depend neither on the order of the rows nor on the machine.

    Args:
        source: the recipe's section, or the short form: a string.
        base: the folder that relative paths start from; by default the current one.

    Raises:
        InputError: the source does not exist, or its data is invalid.
    """
    return _load(Source(source=source) if isinstance(source, str) else source, base, ()).rows


def load_having(source: Source, purpose: str, *needed: str | tuple[str, ...]) -> list[Row]:
    """Read the rows of a source that have the fields that are needed; count the others.

    Args:
        source: the recipe's section.
        purpose: what needs them, for messages.
        needed: our fields that a row must have; for a tuple of fields, at least one of them.

    Raises:
        InputError: as `load`, or no row has a field that is needed.
    """
    place, fields, rows = _load(source, None, ())
    for names in ((name,) if isinstance(name, str) else name for name in needed):
        if not any(name in fields for name in names):
            raise bad(
                f'{place}: has no field "{names[0]}", which {purpose} needs; map it with fields: '
                f"{{{names[0]}: THEIR_NAME}}"
            )
        having = [row for row in rows if any(getattr(row, name) is not None for name in names)]
        if not having:
            theirs = ", ".join(show(fields[name]) for name in names if name in fields)
            raise bad(
                f"{place}: none of {len(rows)} rows has {' or '.join(names)} (field {theirs}), "
                f"which {purpose} needs"
            )
        notice_left_out(place, rows, having, f"no {' or '.join(names)}")
        rows = having
    return rows


def notice_left_out(place: str, rows: Sized, kept: Sized, why: str) -> None:
    """Give a notice of the rows that are not used, if there are any."""
    if lost := len(rows) - len(kept):
        notice(f"{place}: left out {lost} of {len(rows)} rows: {why}")


def read_sources(text: str, fields: Mapping[str, str]) -> list[tuple[Source, Path | None]]:
    """Return the sources that a command line names, each with the folder that its paths start from.

    Args:
        text: the short form of a source, or a YAML file that holds one or a list of them.
        fields: our field -> theirs; goes with the short form.

    Raises:
        InputError: the YAML cannot be read, or does not contain sources.
    """
    file = Path(text)
    if file.suffix not in (".yaml", ".yml"):
        held, base = [{"source": text, "fields": dict(fields)}], None
    elif fields:
        raise bad(f"{text}: set its fields in the YAML file")
    else:
        base = file.parent
        try:
            held = yaml.safe_load(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise bad(f"{text}: cannot be read ({error.strerror})") from None
        except (ValueError, yaml.YAMLError) as error:
            raise bad(f"{text}: cannot be read as YAML: {error}") from None
    listed = held if isinstance(held, list) else [held] if held is not None else []
    try:
        sources = [Source.model_validate(entry) for entry in listed]
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise bad(f"{text}: {where or 'source'}: {problem['msg']}") from None
    if not sources:
        raise bad(f"{text}: has no source")
    return [(source, base) for source in sources]


def load_labels(
    source: Source | str | Path,
    base: Path | None = None,
    needs: Iterable[str] = ("harmful",),
    strict: bool = False,
    blank: bool = False,
) -> list[Row]:
    """Read human labels: rows that all have an instruction, a response and a verdict on it.

    A label file is JSONL or CSV with `instruction`, `response` and `harmful`, and optionally
    `refused`, `category`, `language`, `source` and `id`. Data of another shape can be given as a
    `Source` with `fields`.

    Args:
        source: the path of a label file, or a source.
        base: the folder that relative paths start from; by default the current one.
        needs: the labels that every row must have: harmful, refused, or both.
        strict: reject two labels of one answer that contradict each other; otherwise the first one
            is used.
        blank: treat a null response as empty, as servers write it if a model gives no answer;
            otherwise it is missing.

    Raises:
        InputError: as `load`, or a row lacks its response or a label.
    """
    if not isinstance(source, Source):
        source = Source(source=str(source))
    return _load(source, base, ("response", *needs), strict, blank).rows


class _Loaded(NamedTuple):
    """A source that was read: its place, the mapping of its fields, and its rows."""

    place: str
    fields: Mapping[str, str]
    rows: list[Row]


MOST_HELD = 100_000  # rows of a source: a larger one is read again, rather than kept in memory
_held: dict[Any, tuple[_Loaded, list[str]]] | None = None  # inside `read_once`


def _load(
    source: Source,
    base: Path | None,
    needs: tuple[str, ...],
    strict: bool = False,
    blank: bool = False,
) -> _Loaded:
    key = (source.model_dump_json(), base, needs, strict, blank)
    if _held is not None and key in _held:
        loaded, notices = _held[key]
    else:
        notices = []
        keep_notices(notices.append)
        try:
            loaded = _rows(source, base, needs, strict, blank)
        except RecursionError:
            raise bad(f"{source.source} is nested too deeply; use a list of objects") from None
        finally:
            drop_notices(notices.append)
        if _held is not None and len(loaded.rows) <= MOST_HELD:
            _held[key] = loaded, notices
    for line in notices:  # each run that reads the source has them in its log
        notice(line)
    return loaded._replace(rows=source.kept(list(loaded.rows)))


@contextmanager
def read_once() -> Iterator[None]:
    """Read each source once, as long as this lasts: a command checks its data, then uses it."""
    global _held
    if _held is not None:
        yield
        return
    _held = {}
    try:
        yield
    finally:
        _held = None


def _rows(
    source: Source, base: Path | None, needs: tuple[str, ...], strict: bool, blank: bool
) -> _Loaded:
    """Fetch the records, keep some, map each to a row, and drop duplicates."""
    name, reshape = source.source, None
    if name.startswith("preset:"):
        preset = _named("preset", PRESETS, name)
        # `fields` describe the data, so they also replace the preset's description.
        reshape = None if source.fields else preset.reshape
        source = source.model_copy(
            update={
                "source": source.path or preset.source,
                "split": source.split or (None if source.path else preset.split),
                "fields": source.fields or preset.fields,
                "language": source.language or preset.language,
            }
        )
    place, records = _fetch(source, base)
    if unused := _unused(source, base):
        notice(f"{place}: data of this kind does not use {' and '.join(unused)}")
    if not records:
        raise bad(f"{place} has no rows")
    if reshape:
        records = _reshape(place, records, reshape)
    records = _keep(place, records, source.where)
    fields = source.fields or recognize(records, needs)
    check_fields(place, records, fields, ("text", *needs))
    if not name.startswith(("builtin:", "preset:", "hub:")):
        name = Path(name).name or name  # without the folder: ids must not depend on the machine
    rows = Reader(place, fields, source, name, needs, blank).rows(records)
    del records  # half a gigabyte for a million records
    rows = _identify(place, _first_of_each(place, rows, source.unique, strict))
    if source.shuffle is not None:
        random.Random(source.shuffle).shuffle(rows)
    if source.skip >= len(rows):
        raise bad(f"{place}: skip: {source.skip} leaves none of the {len(rows)} rows")
    return _Loaded(place, fields, rows[source.skip :][: source.limit])


def _named(kind: str, known: Mapping[str, Any], source: str) -> Any:
    """Look up "kind:name" among what is known."""
    name = source.removeprefix(f"{kind}:")
    if name not in known:
        raise bad(f'unknown {kind} "{name}".{nearest(name, known)} Available: {", ".join(known)}')
    return known[name]


# Step 1: fetch the records


def _fetch(source: Source, base: Path | None) -> tuple[str, list[Record]]:
    """Return where the data is, in words for messages, and its records."""
    name = source.source
    if name.startswith("builtin:"):
        file = _named("builtin", builtin_sets(), name)
        if isinstance(file, EntryPoint):
            file = _of_package(file)
        records = _of_revision(parse(name, ".jsonl", file.read_bytes(), source), source)
        return name, _of_split(name, records, source)
    if name.startswith("hub:"):
        repo = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)(?:/(.+))?", name)
        if repo is None:
            raise bad(f'"{name}" is not a set on the hub: write hub:OWNER/NAME')
        connect()  # where there is no network, the libraries then know it at once
        if repo[2] is None:
            if Path(repo[1]).exists():  # `datasets` would silently read it instead
                raise bad(f"{name}: a folder {repo[1]} exists here; name it ./{repo[1]}, or move")
            return name, from_datasets(name, repo[1], source)
        file = download(name, repo[1], repo[2], source.revision)
    else:
        file = _find(name, base)
        if file.is_dir():
            return str(file), from_datasets(str(file), file.absolute(), source)
    place = name if name.startswith("hub:") else str(file)
    return place, _of_split(place, read(place, file, source), source)


def _unused(source: Source, base: Path | None) -> list[str]:
    """Return the options of a source that are set, and change nothing for its kind of data."""
    name = source.source
    if name.startswith("builtin:"):
        used = {"revision"}
    elif name.startswith("hub:"):
        used = {"revision"} | ({"config"} if name.count("/") == 1 else set())
    else:
        used = {"config", "header"} if _find(name, base).is_dir() else set()
    if ending(name) == ".csv":
        used |= {"header"}
    given = {"config": source.config, "revision": source.revision, "header": not source.header}
    return [key for key, value in given.items() if value and key not in used]


def _of_revision(records: list[Record], source: Source) -> list[Record]:
    """Return the records of a built-in set as it is now, or as it was at first."""
    if source.revision is None:
        return records
    if source.revision != FIRST or source.source not in GROWN:
        raise bad(
            f"{source.source}: has no revision {show(source.revision)}; leave it out for the set "
            f"as it is now, or write {FIRST} for {', '.join(GROWN)} before more rows were added"
        )
    return [record for record in records if int(record.value["id"][-3:]) <= GROWN[source.source]]


def builtin_sets() -> dict[str, Any]:
    """Return the built-in sets by name, and those of other packages."""
    folder = resources.files("setbacks").joinpath("data", "sets")
    files = sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else []
    ours = {f.name.removesuffix(".jsonl"): f for f in files if f.name.endswith(".jsonl")}
    return installed("suites") | ours


def built_in_tests() -> Iterator[Row]:
    """Yield every row of the built-in sets that is not for training: a test, or for validation."""
    for name in builtin_sets():
        source = Source(source=f"builtin:{name}")
        _, records = _fetch(source, None)
        splits = {record.value.get("split") for record in records}  # None: for all uses
        for split in sorted(splits - {"train"}, key=str):
            yield from load(source.model_copy(update={"split": split}))


def _of_package(point: EntryPoint) -> Any:
    """Return the set of another package: NAME.jsonl beside the module of its entry point."""
    try:
        file = resources.files(plugin("suites", point.name)).joinpath(f"{point.name}.jsonl")
    except TypeError:  # the entry point is not a module
        file = None
    if file is None or not file.is_file():
        raise bad(f'suite "{point.name}": {point.module} has no {point.name}.jsonl beside it')
    return file


def _find(name: str, base: Path | None) -> Path:
    """Return the path of an existing file or folder.

    Raises:
        InputError: it does not exist; the message suggests a similar name.
    """
    try:
        path = (base or Path()) / expanded(name)
        if path.exists():
            return path
        folder = path.parent
        beside = [entry.name for entry in folder.iterdir()] if folder.is_dir() else None
    except (OSError, ValueError, RuntimeError) as error:
        raise bad(f"{show(name)} is not a path ({error})") from None
    if beside is None:
        raise bad(f"file not found: {path} (the folder {folder} does not exist)")
    sets = [f"builtin:{key}" for key in builtin_sets()] + [f"preset:{key}" for key in PRESETS]
    meant = [entry for entry in sets if entry.endswith(f":{name}")]  # "xstest" for "preset:xstest"
    hint = nearest((meant or [name])[0], meant or sets) or nearest(path.name, beside)
    if not hint and path.is_absolute():  # a recipe makes paths absolute
        hint = " Paths start from the folder of the recipe."
    raise bad(f"file not found: {path}.{hint}")


def _of_split(place: str, records: list[Record], source: Source) -> list[Record]:
    """Keep the requested split of a file: the rows with this value in the field `split`."""
    if source.split is None:
        return records
    return _keep(place, records, {"split": source.split}, f"split: {source.split} needs it")


# Step 2: keep some


def _reshape(
    place: str,
    records: list[Record],
    reshape: Callable[[dict[str, Any]], list[dict[str, Any]]],
) -> list[Record]:
    reshaped = []
    try:
        for at, value in records:
            try:
                reshaped += [Record(at, row) for row in reshape(value)]
            except ValueError as error:  # a label that is neither yes nor no
                raise bad(f"{place}, {at}: {error}") from None
    except (KeyError, TypeError) as error:
        have = ", ".join(columns(records))
        raise bad(
            f"{place} lacks {error}, which this preset reads; it has {have}. "
            "Describe it with fields: {text: ..., answer: ...}"
        ) from None
    return reshaped


def _keep(
    place: str,
    records: list[Record],
    where: Mapping[str, Scalar | list[Scalar]],
    key: str = "where",
) -> list[Record]:
    """Keep the records whose fields have the values that `where` names."""
    for path, value in where.items():
        check_path(place, columns(records), path, key)
        wanted = {_plain_value(one) for one in (value if isinstance(value, list) else [value])}
        values = [_plain_value(dig(record.value, path)) for record in records]
        kept = [record for record, one in zip(records, values, strict=True) if one in wanted]
        if not kept:
            seen = list(dict.fromkeys(values))
            there = ", ".join(map(show, seen[:6])) + (" ..." if len(seen) > 6 else "")
            raise bad(
                f"{place}: no row has {path} = {show(value)}."
                f"{nearest(str(value), seen)} It is one of: {there}"
            )
        records = kept
    return records


def _plain_value(value: Any) -> str:
    """Return a value in one notation, so that the `true` of a recipe matches a CSV's TRUE."""
    return str(whole(value)).casefold()


# Step 4: drop duplicates, and give the rest ids


def _first_of_each(place: str, rows: list[Row], unique: bool, strict: bool) -> list[Row]:
    first: dict[tuple[Prompt | None, ...], Row] = {}
    other_labels = 0
    for row in rows:
        kept = first.setdefault((row.text, row.answer, row.response), row)
        labels = [
            (getattr(row, name), getattr(kept, name))
            for name in ("harmful", "refused", "p_harmful", "p_refused")
        ]
        if strict and any(None not in both and both[0] != both[1] for both in labels):
            raise bad(
                f"{place}: two labels of one answer to {show(transcript(row.text))} contradict "
                "each other; keep one"
            )
        other_labels += any(new != old for new, old in labels)
    if len(first) < len(rows):
        others = f" ({other_labels} of them with another label)" if other_labels else ""
        notice(
            f"{place}: dropped {len(rows) - len(first)} of {len(rows)} rows that repeat an earlier "
            f"one{others}"
        )
    if not unique:
        return list(first.values())
    by_text: dict[Prompt, Row] = {}
    for row in first.values():
        by_text.setdefault(row.text, row)
    return list(by_text.values())


def _identify(place: str, rows: list[Row]) -> list[Row]:
    """Keep the ids of the data if they are unique; otherwise compute them from the content."""
    own = {row.id for row in rows}
    if "" not in own and len(own) == len(rows):
        return rows
    if own != {""}:
        log.info("%s: its ids are not unique; ids are computed from the content", place)
    return [row._replace(id=_digest(row)) for row in rows]


def _digest(row: Row) -> str:
    content = "\x1f".join(map(str, (row.source, transcript(row.text), row.answer, row.response)))
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
