"""One page for what several runs say together: tables, pictures and words, as HTML and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setbacks.files import write_atomic
from setbacks.measure.results import to_json
from setbacks.report.run_page import environment_of_pages
from setbacks.text import visible

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Table:
    """A table of words and written numbers; the first cell of a row names it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture, as SVG that follows the page's colors."""

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class Findings:
    """What a comparison or a study found.

    Args:
        title: of the page.
        question: what was asked, in a sentence.
        answer: what the numbers say, in plain words, a paragraph each; the first one leads.
        tables: the numbers as they are to be read.
        pictures: the same to look at.
        method: how it was measured, a paragraph each.
        data: every number: plain data, or results that `to_json` turns into such.
    """

    title: str
    question: str
    answer: Sequence[str]
    tables: Sequence[Table]
    pictures: Sequence[Picture] = ()
    method: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


def write(folder: Path, found: Findings) -> Path:
    """Write `findings.json` and `report.html` into a folder; return the page's path."""
    data = {key: value for key, value in to_json(found).items() if key != "pictures"}
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder / "findings.json", text.encode("utf-8", "replace"))
    page = (
        environment_of_pages()
        .get_template("page.html.jinja")
        .render(found=found, pictures=[visible(picture.svg) for picture in found.pictures])
    )
    path = folder / "report.html"
    write_atomic(path, page.encode("utf-8", "replace"))
    return path


def on_terminal(console: Console, findings: str) -> None:
    """Print the words and the tables of a `findings.json` to a terminal.

    Args:
        console: rich's.
        findings: the file's text.
    """
    from rich.table import Table as Grid
    from rich.text import Text

    found = json.loads(findings)
    for table in found["tables"]:
        grid = Grid(title=table["title"], title_justify="left", caption=table["note"] or None)
        for number, column in enumerate(table["columns"]):
            grid.add_column(
                Text(column), justify="right" if number else "left", overflow="fold"
            )  # a name that is cut short says nothing
        for row in table["rows"]:
            grid.add_row(*(Text(visible(cell)) for cell in row))
        console.print(grid)
    for paragraph in found["answer"]:
        console.print(visible(paragraph), markup=False, highlight=False)
