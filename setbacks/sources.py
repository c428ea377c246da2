"""Where instructions and answers come from: built-in sets, public sets, and files of your own.

`load` reads any of them into the same rows; `load_labels` does so for human labels. In a recipe a
source is a string, or a mapping where there is more to say:

    instructions: builtin:redteam
    instructions: {source: mine.csv, fields: {text: prompt}, where: {label: unsafe}, limit: 200}

From top to bottom: what a recipe may say (`Source`), what comes out (`Row`), the public sets that
are known by name (`PRESETS`), then the reading itself, which has four steps: fetch the records,
keep some, map each to a row, and drop what is there twice. Whatever is wrong with the data becomes
one `InputError` that names the file and the line.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import logging
import random
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from setbacks.errors import InputError, nearest
from setbacks.paths import expanded
from setbacks.plugins import installed, plugin

log = logging.getLogger(__name__)

Scalar = bool | int | str

# Our fields, and what they are called in most public data. The usual names are tried, in this
# order, only where a source gives no `fields`. "instruction" goes before "text", because Alpaca's
# "text" is the whole formatted prompt.
USUAL: dict[str, tuple[str, ...]] = {
    "text": ("instruction", "instructions", "prompt", "prompts", "question", "questions", "text"),
    "input": ("input", "inputs"),
    "answer": ("answer", "output", "outputs"),
    "response": ("response",),
    "harmful": ("harmful",),
    "refused": ("refused",),
    "category": ("category", "tags"),
    "language": ("language",),
    "source": ("source",),
    "id": ("id",),
}

YES = {"true", "yes", "1"}
NO = {"false", "no", "0"}
# XSTest's own labels of refusal are among these, so that its human labels can be read as they are.
WORDS: dict[str, tuple[set[str], set[str]]] = {
    "harmful": (YES | {"harmful", "unsafe"}, NO | {"harmless", "unharmful", "safe"}),
    "refused": (
        YES | {"refused", "refusal", "full_refusal", "partial_refusal"}
        | {"2_full_refusal", "3_partial_refusal"},
        NO | {"complied", "compliance", "full_compliance", "1_full_compliance"},
    ),
}  # fmt: skip


class Source(BaseModel, extra="forbid", frozen=True):
    """One set of instructions, with or without answers: where it is and how to read it."""

    source: str = Field(
        description="builtin:NAME, preset:NAME, hub:OWNER/NAME, hub:OWNER/NAME/FILE, or the path "
        "of a .json, .jsonl, .csv or .parquet file (also .gz) or of a saved dataset's folder"
    )
    path: str | None = Field(
        default=None, description="with preset: only: a copy of that data on disk"
    )
    split: str | None = Field(
        default=None,
        description="the part to use: train or test of a built-in set, a split of a hub set",
    )
    config: str | None = Field(default=None, description="the configuration of a hub set")
    revision: str | None = Field(default=None, description="the commit of a hub set, to pin it")
    fields: dict[str, str] = Field(
        default={},
        description="our field -> theirs; ours are " + ", ".join(USUAL) + ". Theirs may be a "
        "dotted path (turns.0), or 'not X' for a yes/no field that says the opposite. Where it is "
        "given it is the whole mapping; where not, the usual names are recognized",
    )
    extract: dict[str, str] = Field(
        default={},
        description="our field -> a regular expression; its first group is taken of the value",
    )
    header: bool = Field(
        default=True,
        description="whether a CSV file names its columns; if not, they are 0, 1, 2 ...",
    )
    where: dict[str, Scalar | list[Scalar]] = Field(
        default={}, description="their field -> the value, or one of the values, that it must have"
    )
    unique: bool = Field(default=False, description="keep only the first row of each text")
    shuffle: int | None = Field(
        default=None, description="a seed to shuffle with; none keeps the order"
    )
    limit: int | None = Field(
        default=None, gt=0, description="at most so many rows, after shuffling"
    )
    category: str | None = Field(default=None, description="the category of all the rows")
    language: str | None = Field(
        default=None, description="the language of all the rows, such as en, zh"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("fields", "extract")
    @classmethod
    def _our_fields(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name not in USUAL:
                raise ValueError(
                    f'no field "{name}".{nearest(name, USUAL)} There are: {", ".join(USUAL)}'
                )
        return value

    @field_validator("extract")
    @classmethod
    def _patterns(cls, value: dict[str, str]) -> dict[str, str]:
        for name, pattern in value.items():
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"{name}: not a regular expression ({error})") from None
            if not groups:
                raise ValueError(f"{name}: the expression needs a group, such as (.*)")
        return value

    @model_validator(mode="after")
    def _path_of_preset(self) -> Source:
        if self.path is not None and not self.source.startswith("preset:"):
            raise ValueError('path goes with "preset:"; give a file of your own as source')
        return self


class Row(NamedTuple):
    """One instruction, with what is known of it."""

    text: str
    answer: str | None = None  # a good answer
    response: str | None = None  # some answer, good or bad, that `harmful` and `refused` speak of
    harmful: bool | None = None  # of the response; of the instruction where there is no response
    category: str | None = None
    language: str | None = None
    id: str = ""
    source: str = ""
    refused: bool | None = None


# Public sets ---------------------------------------------------------------------------------


def _safer_and_less_safe(row: dict[str, Any]) -> list[dict[str, Any]]:
    """PKU-SafeRLHF numbers its two responses; name them by which of them is the safer one."""
    safer = int(row["safer_response_id"])
    less = 1 - safer
    return [
        row
        | {
            "safer": row[f"response_{safer}"],
            "less_safe": row[f"response_{less}"],
            "less_safe_is_harmful": not row[f"is_response_{less}_safe"],
            "less_safe_category": row.get(f"response_{less}_harm_category"),
        }
    ]


def _each_model(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Do-Not-Answer holds six models' labelled responses in one row; make it six rows."""
    models = [key.removesuffix("_harmful") for key in row if key.endswith("_harmful")]
    return [
        row | {"model": m, "response": row[f"{m}_response"], "harmful": row[f"{m}_harmful"]}
        for m in models
    ]


class Preset(NamedTuple):
    """A public set known by name: where it is on the hub, and how to read it."""

    source: str
    split: str | None
    fields: dict[str, str]
    licence: str
    homepage: str
    note: str
    language: str = "en"
    reshape: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None


# Those that name one file of their repository do so for a reason: AlpacaEval and LIMA come with a
# loading script, which `datasets` no longer runs, and Safety-Prompts is one object of categories.
PRESETS: dict[str, Preset] = {
    "pku-saferlhf": Preset(
        "hub:PKU-Alignment/PKU-SafeRLHF",
        "train",
        {
            "text": "prompt",
            "answer": "safer",
            "response": "less_safe",
            "harmful": "less_safe_is_harmful",
            "category": "less_safe_category",
        },
        "CC BY-NC 4.0",
        "https://sites.google.com/view/pku-saferlhf",
        "preference pairs: answer is the safer response, response the other; "
        "where: {less_safe_is_harmful: true} keeps the pairs with a harmful one",
        reshape=_safer_and_less_safe,
    ),
    "beavertails": Preset(
        "hub:PKU-Alignment/BeaverTails",
        "30k_train",
        {
            "text": "prompt",
            "response": "response",
            "harmful": "not is_safe",
            "category": "category",
        },
        "CC BY-NC 4.0",
        "https://sites.google.com/view/pku-beavertails",
        "labelled answers; other splits: 30k_test, 330k_train, 330k_test",
    ),
    "do-not-answer": Preset(
        "hub:LibrAI/do-not-answer",
        "train",
        {"text": "question", "category": "types_of_harm", "id": "id"},
        "CC BY-NC-SA 4.0 (the hub's card says Apache-2.0)",
        "https://github.com/Libr-AI/do-not-answer",
        "939 instructions that a model should not follow, in 12 types of harm",
    ),
    "do-not-answer-labels": Preset(
        "hub:LibrAI/do-not-answer",
        "train",
        {
            "text": "question",
            "response": "response",
            "harmful": "harmful",
            "category": "types_of_harm",
        },
        "CC BY-NC-SA 4.0 (the hub's card says Apache-2.0)",
        "https://github.com/Libr-AI/do-not-answer",
        "the same with six models' responses, labelled by people; where: {model: GPT4} keeps one",
        reshape=_each_model,
    ),
    "xstest": Preset(
        "hub:Paul/XSTest",
        "train",
        {"text": "prompt", "harmful": "label", "category": "type", "id": "id"},
        "CC BY 4.0",
        "https://github.com/paul-rottger/xstest",
        "250 safe prompts that look unsafe, 200 unsafe ones; where: {label: safe} keeps the former",
    ),
    "safety-prompts": Preset(
        "hub:thu-coai/Safety-Prompts/typical_safety_scenarios.json",
        None,
        {"text": "prompt", "answer": "response", "category": "category"},
        "Apache-2.0",
        "https://github.com/thu-coai/Safety-Prompts",
        "Chinese, seven typical scenarios, answered by ChatGPT",
        language="zh",
    ),
    "safety-prompts-attacks": Preset(
        "hub:thu-coai/Safety-Prompts/instruction_attack_scenarios.json",
        None,
        {"text": "prompt", "answer": "response", "category": "category"},
        "Apache-2.0",
        "https://github.com/thu-coai/Safety-Prompts",
        "Chinese, six instruction attacks; where: {category: Goal_Hijacking} keeps one",
        language="zh",
    ),
    "alpaca-eval": Preset(
        "hub:tatsu-lab/alpaca_eval/alpaca_eval.json",
        None,
        {"text": "instruction", "answer": "output", "category": "dataset"},
        "CC BY-NC 4.0",
        "https://github.com/tatsu-lab/alpaca_eval",
        "805 instructions to measure helpfulness, with text_davinci_003's answers",
    ),
    "alpaca": Preset(
        "hub:tatsu-lab/alpaca",
        "train",
        {"text": "instruction", "input": "input", "answer": "output"},
        "CC BY-NC 4.0",
        "https://github.com/tatsu-lab/stanford_alpaca",
        "52,002 instructions with answers, to mix in as helpful data",
    ),
    "lima": Preset(
        "hub:GAIR/lima/train.jsonl",
        None,
        {"text": "conversations.0", "answer": "conversations.1", "category": "source"},
        "CC BY-NC-SA 4.0, or stricter where its own sources are",
        "https://huggingface.co/datasets/GAIR/lima",
        "about 1,000 careful answers; gated: its terms must be accepted on the hub first",
    ),
}


# Reading -------------------------------------------------------------------------------------


class Record(NamedTuple):
    """One record as it is in the data, and where that is: "line 7", "item 7" or "row 7"."""

    at: str
    value: dict[str, Any]


def load(source: Source | str, base: Path | None = None) -> list[Row]:
    """Read a source into rows.

    Rows that say the same as an earlier one are dropped, and logged. A row keeps the data's own id
    where every row has one and no two are alike; otherwise ids are made of the content, so that
    they do not depend on the order of the rows, nor on the machine.

    Args:
        source: what a recipe says, or the short form: a string.
        base: the folder that relative paths start from; by default the current one.

    Raises:
        InputError: the source is not there, or its data is not what it should be.
    """
    return _load(Source(source=source) if isinstance(source, str) else source, base, ())


def read_sources(told: str, fields: Mapping[str, str]) -> list[tuple[Source, Path | None]]:
    """Return the sources that a command line names, each with the folder its paths start from.

    Args:
        told: the short form of a source, or a YAML file that holds one or a list of them.
        fields: our field -> theirs; goes with the short form.

    Raises:
        InputError: the YAML cannot be read, or does not hold sources.
    """
    file = Path(told)
    if file.suffix not in (".yaml", ".yml"):
        held, base = [{"source": told, "fields": dict(fields)}], None
    elif fields:
        raise _bad(f"{told}: say its fields in the YAML itself")
    else:
        base = file.parent
        try:
            held = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise _bad(f"{told}: cannot be read as YAML: {error}") from None
    listed = held if isinstance(held, list) else [held] if held is not None else []
    try:
        sources = [Source.model_validate(one) for one in listed]
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise _bad(f"{told}: {where or 'source'}: {problem['msg']}") from None
    if not sources:
        raise _bad(f"{told}: names no source")
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
        strict: refuse two labels of one answer that contradict each other; else the first stays.
        blank: take a null response for an empty one, as servers write it where a model says
            nothing; else it is missing.

    Raises:
        InputError: as `load`, or a row lacks its response or a label.
    """
    if not isinstance(source, Source):
        source = Source(source=str(source))
    return _load(source, base, ("response", *needs), strict, blank)


def _load(
    source: Source,
    base: Path | None,
    needs: tuple[str, ...],
    strict: bool = False,
    blank: bool = False,
) -> list[Row]:
    try:
        return _rows(source, base, needs, strict, blank)
    except RecursionError:
        raise _bad(f"{source.source} is nested too deep: give a list of objects") from None


def _rows(
    source: Source, base: Path | None, needs: tuple[str, ...], strict: bool, blank: bool
) -> list[Row]:
    """Fetch the records, keep some, map each to a row, and drop what is there twice."""
    name, reshape = source.source, None
    if name.startswith("preset:"):
        preset = _named("preset", PRESETS, name)
        # `fields` say how the data looks, so they also take the place of what the preset knows.
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
    if not records:
        raise _bad(f"{place} has no rows")
    if reshape:
        records = _reshape(place, records, reshape)
    records = _keep(place, records, source.where)
    fields = source.fields or _recognize(place, records)
    _check_fields(place, records, fields, ("text", *needs))
    if not name.startswith(("builtin:", "preset:", "hub:")):
        name = Path(name).name or name  # not the whole path: ids must not depend on the machine
    if blank:
        needs = tuple(ours for ours in needs if ours != "response")
    rows = [_row(place, record, fields, source, name, needs) for record in records]
    if blank:
        rows = [row._replace(response=row.response or "") for row in rows]
    del records  # of a million, half a gigabyte
    rows = _identify(place, _first_of_each(place, rows, source.unique, strict))
    if source.shuffle is not None:
        random.Random(source.shuffle).shuffle(rows)
    return rows[: source.limit]


def _bad(message: str) -> InputError:
    """Make an error of one printable line, whatever the names and values in it hold."""
    return InputError(" ".join("".join(c if c.isprintable() else " " for c in message).split()))


def _show(value: object) -> str:
    """Quote a value of the data, shortened, as part of a message."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return json.dumps(text if len(text) <= 40 else text[:37] + "...", ensure_ascii=False)


def _named(kind: str, known: Mapping[str, Any], source: str) -> Any:
    """Look up "kind:name" among what is known."""
    name = source.removeprefix(f"{kind}:")
    if name not in known:
        raise _bad(f'no {kind} "{name}".{nearest(name, known)} There are: {", ".join(known)}')
    return known[name]


# Step 1: fetch the records


def _fetch(source: Source, base: Path | None) -> tuple[str, list[Record]]:
    """Return where the data is, in words for messages, and its records."""
    name = source.source
    if name.startswith("builtin:"):
        file = _named("builtin", builtin_sets(), name)
        if isinstance(file, EntryPoint):
            file = _of_package(file)
        return name, _of_split(name, _parse(name, ".jsonl", file.read_bytes(), source), source)
    if name.startswith("hub:"):
        repo = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)(?:/(.+))?", name)
        if repo is None:
            raise _bad(f'"{name}" is not a set on the hub: write hub:OWNER/NAME')
        if repo[2] is None:
            if Path(repo[1]).exists():  # `datasets` would read it instead, and not say so
                raise _bad(
                    f"{name}: there is a folder {repo[1]} here; name it ./{repo[1]}, or move"
                )
            return name, _from_datasets(name, repo[1], source)
        file = _download(name, repo[1], repo[2], source.revision)
    else:
        file = _find(name, base)
        if file.is_dir():
            return str(file), _from_datasets(str(file), file.absolute(), source)
    place = name if name.startswith("hub:") else str(file)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise _bad(f"{place} cannot be read: {error.strerror}") from None
    suffix = Path(file.name.lower().removesuffix(".gz")).suffix
    if file.name.lower().endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise _bad(f"{place} is not a whole gzip file ({error}); fetch it again") from None
    return place, _of_split(place, _parse(place, suffix, data, source), source)


def builtin_sets() -> dict[str, Any]:
    """The project's own sets by name, and under them those of other packages."""
    folder = resources.files("setbacks").joinpath("suites", "data")
    files = sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else []
    ours = {f.name.removesuffix(".jsonl"): f for f in files if f.name.endswith(".jsonl")}
    return installed("suites") | ours


def _of_package(point: EntryPoint) -> Any:
    """The set of another package: NAME.jsonl beside the module that its entry point names."""
    try:
        file = resources.files(plugin("suites", point.name)).joinpath(f"{point.name}.jsonl")
    except TypeError:  # the entry point names no module
        file = None
    if file is None or not file.is_file():
        raise _bad(f'suites "{point.name}": {point.module} has no {point.name}.jsonl beside it')
    return file


def _find(name: str, base: Path | None) -> Path:
    """Return the path of a file or a folder that is there, or say what is near."""
    try:
        path = (base or Path()) / expanded(name)
        if path.exists():
            return path
        folder = path.parent
        beside = [entry.name for entry in folder.iterdir()] if folder.is_dir() else None
    except (OSError, ValueError, RuntimeError) as error:
        raise _bad(f"{_show(name)} is not a path ({error})") from None
    if beside is None:
        raise _bad(f"no file {path}: there is no folder {folder}")
    sets = [f"builtin:{one}" for one in builtin_sets()] + [f"preset:{one}" for one in PRESETS]
    meant = [one for one in sets if one.endswith(f":{name}")]  # "xstest" for "preset:xstest"
    hint = nearest((meant or [name])[0], meant or sets) or nearest(path.name, beside)
    if not hint and path.is_absolute():  # a recipe has made it so
        hint = " Paths start from the folder of the recipe."
    raise _bad(f"no file {path}.{hint}")


def _of_split(place: str, records: list[Record], source: Source) -> list[Record]:
    """Keep the split that is asked for: of a file, the rows whose field `split` says so."""
    return _keep(place, records, {"split": source.split}, "split") if source.split else records


def _parse(place: str, suffix: str, data: bytes, source: Source) -> list[Record]:
    """Read the bytes of a file by its kind."""
    kinds = (".json", ".jsonl", ".csv", ".parquet")
    if suffix not in kinds:
        raise _bad(f"{place}: the name must end in {', '.join(kinds)} (or one of these and .gz)")
    if not data.strip():
        raise _bad(f"{place} is empty")
    if suffix == ".parquet":
        return _parquet(place, data)
    text = _decode(place, data)
    if suffix == ".csv":
        return list(_csv(place, text, source.header))
    _refuse_lone_surrogates(place, text)
    if suffix == ".jsonl":
        return list(_jsonl(place, text))
    named = {_plain(path).split(".")[0] for path in source.fields.values()}
    return list(_json(place, text, named | set(USUAL["text"])))


def _decode(place: str, data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _bad(f"{place} is in UTF-16: save it as UTF-8")
    if (at := data.find(0)) >= 0:
        line = data.count(b"\n", 0, at) + 1
        raise _bad(f"{place}, line {line}: a NUL byte; the file is damaged or is not text")
    try:
        return data.decode("utf-8-sig")  # a byte order mark is what Excel puts first
    except UnicodeDecodeError as error:
        # Counted in the bytes that the decoder saw, which lack the mark; the mark has no newline.
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _bad(f"{place}, line {line}: not UTF-8; save the file as UTF-8") from None


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
            raise _bad(f"{place}, line {line}: {match[1]} is half a character; remove it")


def _loads(place: str, text: str, line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = line + error.lineno - 1
        raise _bad(f"{place}, line {at}: not JSON ({error.msg}, column {error.colno})") from error
    except ValueError as error:  # a number of thousands of digits
        raise _bad(f"{place}, line {line}: not JSON ({error})") from None


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
    raise _bad(f"{place}, {at}: expected an object or a string, found {_show(value)}")


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
        raise _bad(f"{place}: expected a list of objects, found {_show(document)}")
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
    raise _bad(
        f"{place}: expected a list of objects or of strings, an object of lists, or categories "
        f"with their questions; found an object with {', '.join(map(_show, list(document)[:8]))}"
    )


def _parallel(place: str, lists: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """{"instructions": [...], "tags": [...]}: lists of which the n-th items belong together."""
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{_show(name)} has {length}" for name, length in lengths.items())
        raise _bad(f"{place}: its lists should be of one length, but {said}")
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
        raise _bad(f"{place}: expected a list of questions in {_show(at)}, found {_show(node)}")
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
            raise _bad(f"{place}, {at}: not CSV ({error}); is a quote left open?") from None
        if not cells:
            continue
        if names is None:
            numbers = [str(number) for number in range(len(cells))]
            names = [c or n for c, n in zip(cells, numbers, strict=True)] if header else numbers
            if twice := {name for name in names if names.count(name) > 1}:
                raise _bad(
                    f"{place}, {at}: two columns are called {_show(min(twice))}; "
                    "if this line is no header, say header: false"
                )
            if header:
                continue
        if len(cells) != len(names):
            raise _bad(f"{place}, {at}: {len(cells)} columns, where {len(names)} are expected")
        yield Record(at, dict(zip(names, cells, strict=True)))


def _parquet(place: str, data: bytes) -> list[Record]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _bad(f"{place} is not a whole Parquet file ({error})") from None
    return [Record(f"row {number}", row) for number, row in enumerate(rows, start=1)]


def _from_datasets(place: str, where: str | Path, source: Source) -> list[Record]:
    """Read a set of the hub, or a folder on disk, with the `datasets` library."""
    import datasets

    saved = isinstance(where, Path) and any(
        (where / name).exists() for name in ("state.json", "dataset_dict.json")
    )
    try:
        if saved:
            data = datasets.load_from_disk(str(where))
        else:
            data = datasets.load_dataset(
                str(where), source.config, split=source.split, revision=source.revision
            )
        if isinstance(data, datasets.DatasetDict):
            data = data[_split(place, list(data), source.split)]
        return [Record(f"row {number}", dict(row)) for number, row in enumerate(data, start=1)]
    except InputError:
        raise
    except Exception as error:  # the boundary to a library that raises many kinds
        raise _hub_trouble(place, error) from None


def _split(place: str, splits: list[str], wanted: str | None) -> str:
    if wanted in splits:
        return str(wanted)
    if wanted is None and (len(splits) == 1 or "train" in splits):
        return "train" if "train" in splits else splits[0]
    hint = nearest(wanted or "", splits)
    raise _bad(f"{place}: say which split to use, as split: NAME.{hint} It has {', '.join(splits)}")


def _download(place: str, repo: str, file: str, revision: str | None) -> Path:
    """Fetch one file of a set on the hub, to be read as any other file."""
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.hf_hub_download(repo, file, repo_type="dataset", revision=revision)
        )
    except Exception as error:  # the boundary to a library that raises many kinds
        raise _hub_trouble(place, error) from None


def _hub_trouble(place: str, error: Exception) -> InputError:
    """Say what a library's error means here, and what to do."""
    said, kind = str(error).strip(), type(error).__name__
    page = "https://huggingface.co/datasets/" + "/".join(place.removeprefix("hub:").split("/")[:2])
    copy = "or download it elsewhere and give the file (source: FILE, or preset: with path: FILE)"
    first = said.splitlines()[0] if said else kind
    if not place.startswith("hub:"):
        return _bad(f"{place} cannot be read as a dataset: {first}")
    if kind == "GatedRepoError" or "is a gated dataset" in said:
        return _bad(f"{place} is gated: accept its terms at {page}, log in (hf auth login), {copy}")
    if isinstance(error, ConnectionError | TimeoutError) or kind in (
        "LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout",
    ):  # fmt: skip
        return _bad(f"{place}: the hub cannot be reached; try again with a network, {copy}")
    if kind in ("DatasetNotFoundError", "RepositoryNotFoundError", "DataFilesNotFoundError"):
        return _bad(f"{place} is not on the hub, or is private: look at {page}, {copy}")
    if kind.endswith("EntryNotFoundError"):
        return _bad(f"{place}: no such file there; {page}/tree/main lists them")
    if "scripts are no longer supported" in said:
        return _bad(
            f"{place} comes with a loading script, which is not run: name one of its data files "
            f"({page}/tree/main) as hub:OWNER/NAME/FILE"
        )
    if isinstance(error, ValueError):  # an unknown split or configuration, with those there are
        return _bad(f"{place}: {first}")
    return _bad(f"{place} cannot be read: {first}; {copy}")


# Step 2: keep some


def _reshape(
    place: str,
    records: list[Record],
    reshape: Callable[[dict[str, Any]], list[dict[str, Any]]],
) -> list[Record]:
    try:
        return [Record(at, row) for at, value in records for row in reshape(value)]
    except (KeyError, TypeError, ValueError) as error:
        have = ", ".join(_columns(records))
        raise _bad(
            f"{place} lacks {error}, which this preset reads; it has {have}. "
            "Say how it is to be read with fields: {text: ..., answer: ...}"
        ) from None


def _columns(records: Iterable[Record]) -> list[str]:
    """All the fields that some record has, in the order in which they come up."""
    return list(dict.fromkeys(key for record in records for key in record.value))


def _keep(
    place: str,
    records: list[Record],
    where: Mapping[str, Scalar | list[Scalar]],
    said_in: str = "where",
) -> list[Record]:
    """Keep the records whose fields have the values that `where` names."""
    for path, value in where.items():
        _check_path(place, _columns(records), path, said_in)
        wanted = {_plain_value(one) for one in (value if isinstance(value, list) else [value])}
        found = [_plain_value(_dig(record.value, path)) for record in records]
        kept = [record for record, one in zip(records, found, strict=True) if one in wanted]
        if not kept:
            seen = list(dict.fromkeys(found))
            there = ", ".join(map(_show, seen[:6])) + (" ..." if len(seen) > 6 else "")
            raise _bad(
                f"{place}: no row has {path} = {_show(value)}."
                f"{nearest(str(value), seen)} It is one of: {there}"
            )
        records = kept
    return records


def _plain_value(value: Any) -> str:
    """A value as it reads in any format, so that the `true` of a recipe finds a CSV's TRUE."""
    return str(value).casefold()


def _dig(value: Any, path: str) -> Any:
    """Follow a dotted path; None where it leads nowhere. A name with a dot in it goes first."""
    if isinstance(value, dict) and path in value:
        return value[path]
    head, dot, rest = path.partition(".")
    if isinstance(value, dict):
        inner = value.get(head)
    elif isinstance(value, list) and re.fullmatch(r"-?\d{1,9}", head):
        inner = value[int(head)] if -len(value) <= int(head) < len(value) else None
    else:
        return None
    return _dig(inner, rest) if dot else inner


# Step 3: map each to a row


def _plain(path: str) -> str:
    """A path without the "not " of a yes/no field that says the opposite."""
    return path.removeprefix("not ")


def _recognize(place: str, records: list[Record]) -> dict[str, str]:
    """Choose the mapping by the usual names."""
    columns = _columns(records)
    if columns == ["0"]:
        return {"text": "0"}  # a file without header and with one column
    return {
        ours: next(name for name in names if name in columns)
        for ours, names in USUAL.items()
        if any(name in columns for name in names)
    }


def _check_fields(
    place: str, records: list[Record], fields: dict[str, str], needs: Iterable[str]
) -> None:
    columns = _columns(records)
    for ours, path in fields.items():
        _check_path(place, columns, _plain(path), f"fields: {ours}")
    for ours in needs:
        if ours in ("text", "response") and ours not in fields and "response_id" in columns:
            raise _bad(
                f"{place}: names answers by response_id and lacks their texts; take it in with "
                "`setbacks review RUN --import FILE --as NAME`, and write it anew with --export "
                "FILE --format labels"
            )
        if ours not in fields:
            have = ", ".join(map(_show, columns))
            raise _bad(
                f"{place}: which field is the {ours}? Say fields: {{{ours}: NAME}}; it has {have} "
                "(a CSV file without a header line needs header: false)"
            )


def _check_path(place: str, columns: list[str], path: str, said_in: str) -> None:
    head = path.partition(".")[0]
    if path not in columns and head not in columns:
        have = ", ".join(map(_show, columns))
        raise _bad(
            f'{place} has no field "{head}" ({said_in}).{nearest(head, columns)} It has {have}'
        )


def _row(
    place: str,
    record: Record,
    fields: dict[str, str],
    source: Source,
    name: str,
    needs: Iterable[str],
) -> Row:
    where = f"{place}, {record.at}"

    def value(ours: str) -> Any:
        """What the record has for one of our fields."""
        found = _dig(record.value, _plain(fields[ours]))
        if ours in source.extract and found is not None:
            match = re.search(source.extract[ours], found) if isinstance(found, str) else None
            if match is None:
                raise _bad(f"{where}: extract does not find the {ours} in {_show(found)}")
            found = match[1]
        return found

    has = {ours: value(ours) for ours in fields}

    def words(ours: str) -> str | None:
        found = has.get(ours)
        if found is None or isinstance(found, str):
            if found and "\0" in found:
                raise _bad(f"{where}: a NUL character in {ours}; remove it")
            return found
        hint = f'; name an item, such as "{fields[ours]}.0"' if isinstance(found, list) else ""
        raise _bad(f"{where}: {ours} should be a string, found {_show(found)}{hint}")

    def flag(ours: str) -> bool | None:
        found = has.get(ours)
        if found is None or found == "":
            return None
        yes, no = WORDS[ours]
        word = str(found).strip().casefold()  # a Parquet file may hold 1.0 where a label is 1
        word = word.removesuffix(".0") if isinstance(found, float) else word
        if word in yes or word in no:
            return (word in yes) is not fields[ours].startswith("not ")
        raise _bad(f"{where}: {ours} is {_show(found)}; it should be true or false")

    text, extra = words("text"), words("input")
    if text is None or not text.strip():
        raise _bad(f"{where}: the text (field {_show(fields['text'])}) is missing or empty")
    if extra and extra.strip():
        text = f"{text}\n\n{extra}"
    row = Row(
        text=text,
        answer=words("answer") or None,
        response=words("response"),  # it may be empty: a model may say nothing
        harmful=flag("harmful"),
        category=source.category or _label(has.get("category")),
        language=source.language or _label(has.get("language")),
        id=_label(has.get("id")) or "",
        source=_label(has.get("source")) or name,
        refused=flag("refused"),
    )
    for ours in needs:
        if getattr(row, ours) is None:
            raise _bad(f"{where}: {ours} (field {_show(fields[ours])}) is missing")
    return row


def _label(value: Any) -> str | None:
    """A category, a language or an id in words; of {"theft": true, "fraud": false}: theft."""
    if value is None:
        return None
    if isinstance(value, dict):
        value = [name for name, holds in value.items() if holds is True]
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return str(value).replace("\0", "").strip() or None


# Step 4: drop what is there twice, and name the rest


@cache
def _warn(text: str) -> None:
    """Warn, once: a recipe's sources are read anew by every step that needs them."""
    log.warning("%s", text)


def _first_of_each(place: str, rows: list[Row], unique: bool, strict: bool) -> list[Row]:
    first: dict[tuple[str | None, ...], Row] = {}
    other_labels = 0
    for row in rows:
        kept = first.setdefault((row.text, row.answer, row.response), row)
        said = (row.harmful, kept.harmful), (row.refused, kept.refused)
        if strict and any(None not in both and both[0] != both[1] for both in said):
            raise _bad(
                f"{place}: two labels of one answer to {_show(row.text)} contradict each other; "
                "keep one"
            )
        other_labels += any(new != old for new, old in said)
    if len(first) < len(rows):
        others = f" ({other_labels} of them with another label)" if other_labels else ""
        _warn(
            f"{place}: dropped {len(rows) - len(first)} of {len(rows)} rows that repeat an earlier "
            f"one{others}"
        )
    if not unique:
        return list(first.values())
    by_text: dict[str, Row] = {}
    for row in first.values():
        by_text.setdefault(row.text, row)
    return list(by_text.values())


def _identify(place: str, rows: list[Row]) -> list[Row]:
    """Keep the data's own ids if they tell the rows apart; else make them of the content."""
    own = {row.id for row in rows}
    if "" not in own and len(own) == len(rows):
        return rows
    if own != {""}:
        log.info("%s: its ids do not tell the rows apart; ids are made of the content", place)
    return [row._replace(id=_digest(row)) for row in rows]


def _digest(row: Row) -> str:
    content = "\x1f".join(map(str, (row.source, row.text, row.answer, row.response)))
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
