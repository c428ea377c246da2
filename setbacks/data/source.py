"""A recipe's section on a source, and the records and rows that are read from it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, PrivateAttr, field_validator, model_validator

from setbacks.errors import InputError, nearest
from setbacks.messages import Prompt
from setbacks.text import one_line

Scalar = bool | int | str

# Our fields, and their names in most public data. These names are tried, in this order, only if a
# source has no `fields`. "instruction" comes before "text", because Alpaca's "text" is the whole
# formatted prompt.
USUAL: dict[str, tuple[str, ...]] = {
    "text": ("instruction", "instructions", "prompt", "prompts", "question", "questions", "text"),
    "input": ("input", "inputs"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "answer": ("answer", "output", "outputs"),
    "response": ("response",),
    "harmful": ("harmful",),
    "refused": ("refused",),
    "kind": ("kind",),
    "p_harmful": ("p_harmful",),
    "p_refused": ("p_refused",),
    "category": ("category", "tags"),
    "language": ("language",),
    "source": ("source",),
    "id": ("id",),
}


class Source(BaseModel, extra="forbid", frozen=True):
    """A set of instructions, with or without answers: where it is and how to read it."""

    source: str = Field(
        description="builtin:NAME, preset:NAME, hub:OWNER/NAME, hub:OWNER/NAME/FILE, or the path "
        "of a .json, .jsonl, .csv or .parquet file (also .gz) or of a saved dataset's folder"
    )
    path: str | None = Field(
        default=None, description="with preset: only: a copy of that data on disk"
    )
    split: str | None = Field(
        default=None,
        description="the part to use: train, validation or test of a built-in set, a split of a "
        "hub set, of a folder, or of a JSON file that holds several",
    )
    config: str | None = Field(default=None, description="the configuration of a hub set")
    revision: str | None = Field(
        default=None,
        description="the commit of a hub set, to pin it; `first`: the built-in set redteam, "
        "hijacking or safe before more rows were added",
    )
    fields: dict[str, str] = Field(
        default={},
        description="our field -> theirs; ours are " + ", ".join(USUAL) + ". Theirs may be a "
        "dotted path (turns.0), or 'not X' for a yes/no field with the opposite meaning. If set, "
        "it is the whole mapping; otherwise the usual names are recognized",
    )
    extract: dict[str, str] = Field(
        default={},
        description="our field -> a regular expression; its first group becomes the value",
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
    skip: int = Field(
        default=0, ge=0, description="number of rows to leave out at the start, after shuffling"
    )
    limit: int | None = Field(
        default=None, gt=0, description="largest number of rows, after shuffling and skipping"
    )
    category: str | None = Field(default=None, description="the category of all the rows")
    language: str | None = Field(
        default=None, description="the language of all the rows, such as en, zh"
    )

    _keep: Callable[[Source, Sequence[Row]], list[Row]] | None = PrivateAttr(None)

    def filtered(self, keep: Callable[[Source, Sequence[Row]], list[Row]]) -> Source:
        """Return this source with a filter, which its data and its recipe do not show.

        Args:
            keep: returns the rows to use.
        """
        copy = self.model_copy()
        copy._keep = keep
        return copy

    def kept(self, rows: list[Row]) -> list[Row]:
        """Return the rows that its filter keeps; without a filter, all."""
        return self._keep(self, rows) if self._keep else rows

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
                    f'unknown field "{name}".{nearest(name, USUAL)} Available: {", ".join(USUAL)}'
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
            raise ValueError('path is only for "preset:"; for your own file, set source')
        return self


class Row(NamedTuple):
    """One instruction, with its answer, response and labels."""

    text: Prompt
    answer: str | None = None  # a good answer
    response: str | None = None  # an answer, good or bad, that `harmful` and `refused` are about
    harmful: bool | None = None  # of the response; of the instruction where there is no response
    category: str | None = None
    language: str | None = None
    id: str = ""
    source: str = ""
    refused: bool | None = None
    p_harmful: float | None = None  # probabilities of a tool whose verdicts these are
    p_refused: float | None = None
    kind: str | None = None  # of a mistake: "refusal" if the refused request was safe


class Record(NamedTuple):
    """One record of the data, and its place: "line 7", "item 7" or "row 7"."""

    at: str
    value: dict[str, Any]


def plain(path: str) -> str:
    """Return a path without the "not " of a yes/no field with the opposite meaning."""
    return path.removeprefix("not ")


def bad(message: str) -> InputError:
    """Return an error of one printable line, whatever the names and values in it contain."""
    return InputError(one_line(message))


def show(value: object) -> str:
    """Quote a value of the data, shortened, as part of a message."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return json.dumps(text if len(text) <= 40 else text[:37] + "...", ensure_ascii=False)


def choose_split(place: str, splits: Sequence[str], wanted: str | None) -> str:
    """Return the split to use: the requested one, or the only one.

    Raises:
        InputError: it does not exist, or there are several and none was requested.
    """
    if wanted in splits:
        return str(wanted)
    if wanted is None and len(splits) == 1:
        return splits[0]
    hint = nearest(wanted or "", splits)
    have = ", ".join(splits) or "none"
    raise bad(f"{place}: set split: NAME to choose a split.{hint} It has {have}")
