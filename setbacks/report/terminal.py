"""Tables for a terminal that break no word."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

LONGEST = 24  # characters; a longer word, such as a path, is broken where its column is narrower


class WholeWords:
    """A table whose columns are at least as wide as their longest word.

    If the terminal is too narrow for that, the table loses the lines between its columns; if it is
    still too narrow, the table becomes a list with a paragraph for each row.

    Args:
        table: a table with `rich.text.Text` in its headers and cells.
    """

    def __init__(self, table: Table) -> None:
        from rich.cells import cell_len

        self.table = table
        self._widest: list[int] = []  # the width of each column in which no cell wraps
        for column in table.columns:
            text = "\n".join(str(cell) for cell in (column.header, *column.cells))
            lines = text.splitlines()
            words = lines if column.no_wrap else text.split()
            self._widest.append(max(map(cell_len, lines), default=1))
            column.min_width = min(max(map(cell_len, words), default=1), LONGEST)
            column.overflow = "fold"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich import box

        table = self.table
        spare = self._spare(console, options)
        if spare < 0:
            table.box, table.pad_edge, table.collapse_padding = box.SIMPLE_HEAD, False, True
            table.leading = 1  # without lines, an empty one separates the rows
            spare = self._spare(console, options)
        if spare < 0:
            yield from self._paragraphs()
        else:
            self._widen(spare)
            yield table

    def _spare(self, console: Console, options: ConsoleOptions) -> int:
        """How many characters are left if every column is as narrow as it may be."""
        return options.max_width - self.table.__rich_measure__(console, options).minimum

    def _widen(self, spare: int) -> None:
        """Give the spare characters to the columns that wrap, always to the narrowest."""
        widths = [column.min_width or 1 for column in self.table.columns]
        for _ in range(spare):
            wrapping = [i for i, widest in enumerate(self._widest) if widths[i] < widest]
            if not wrapping:
                break
            widths[min(wrapping, key=lambda i: widths[i])] += 1
        for column, width in zip(self.table.columns, widths, strict=True):
            column.width = width

    def _paragraphs(self) -> RenderResult:
        from rich.padding import Padding
        from rich.text import Text

        if self.table.title:
            yield self.table.title
        first, *others = self.table.columns
        columns = [(column.header, list(column.cells)) for column in others]
        for number, name in enumerate(first.cells):
            yield name
            for header, cells in columns:
                line = " ".join(f"{header}: {cells[number]}".split())
                yield Padding(Text(line), (0, 0, 0, 2))
        if self.table.caption:
            yield self.table.caption
