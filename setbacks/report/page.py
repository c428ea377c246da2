"""The page of a comparison or a study: words, tables and pictures, as HTML and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setbacks.files import write_atomic
from setbacks.measure.results import to_json
from setbacks.report.run_page import environment_of_pages
from setbacks.report.terminal import WholeWords
from setbacks.text import visible

if TYPE_CHECKING:
    from rich.console import Console

FINDINGS = "findings.json"


@dataclass(frozen=True)
class Table:
    """A table of texts and of numbers as people read them; the first cell of a row names it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture, as SVG in the page's colors."""

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class Hidden:
    """Lines that are shown on a click, such as harmful prompts; they are only on the page."""

    title: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Findings:
    """What a comparison or a study found.

    Args:
        title: the title of the page.
        question: the question of the study, in a sentence.
        answer: what the numbers show, in words: paragraphs, the most important one first.
        tables: the numbers, formatted.
        pictures: the same numbers as pictures.
        hidden: texts behind a click.
        method: how they were measured: paragraphs.
        data: every number: plain data, or results that `to_json` turns into plain data.
        study: name of the study that found it, if one did.
    """

    title: str
    question: str
    answer: Sequence[str]
    tables: Sequence[Table]
    pictures: Sequence[Picture] = ()
    hidden: Sequence[Hidden] = ()
    method: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    study: str | None = None


def write(folder: Path, findings: Findings, name: str = "report.html") -> Path:
    """Write `findings.json` and a page into a folder; return the page's path."""
    left_out = ("pictures", "hidden")
    data = {key: value for key, value in to_json(findings).items() if key not in left_out}
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder / FINDINGS, text.encode("utf-8", "replace"))
    pictures = [visible(picture.svg) for picture in findings.pictures]
    template = environment_of_pages().get_template("page.html.jinja")
    page = template.render(findings=findings, pictures=pictures)
    path = folder / name
    write_atomic(path, page.encode("utf-8", "replace"))
    return path


def on_terminal(console: Console, findings: str) -> None:
    """Print the words and the tables of a `findings.json` to a terminal.

    Args:
        console: rich's.
        findings: the text of the file.
    """
    from rich.table import Table as Grid
    from rich.text import Text

    data = json.loads(findings)
    for table in data["tables"]:
        grid = Grid(title=table["title"], title_justify="left", caption=table["note"] or None)
        for place, column in enumerate(table["columns"]):
            grid.add_column(Text(column), justify="right" if place else "left")
        for row in table["rows"]:
            grid.add_row(*(Text(visible(cell)) for cell in row))
        console.print(WholeWords(grid))
    for paragraph in data["answer"]:
        console.print(visible(paragraph), markup=False, highlight=False)
