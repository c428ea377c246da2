"""Tables for a terminal that break no word."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

LONGEST = 24  # cells; a longer word, such as a path, is broken where the table needs the room


class WholeWords:
    """A table whose columns are at least as wide as their longest word.

    Where the terminal is too narrow for that, the lines between columns go; and where it still is,
    the table becomes a list with a paragraph for each row.

    Args:
        table: whose cells and headers are `rich.text.Text`.
    """

    def __init__(self, table: Table) -> None:
        from rich.cells import cell_len

        self.table = table
        for column in table.columns:
            text = "\n".join(str(cell) for cell in (column.header, *column.cells))
            words = text.splitlines() if column.no_wrap else text.split()
            column.min_width = min(max(map(cell_len, words), default=1), LONGEST)
            column.overflow = "fold"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich import box

        table = self.table
        if not self._fits(console, options):
            table.box, table.pad_edge, table.collapse_padding = box.SIMPLE_HEAD, False, True
            table.leading = 1  # without lines, an empty one parts the rows
        if self._fits(console, options):
            yield table
        else:
            yield from self._paragraphs()

    def _fits(self, console: Console, options: ConsoleOptions) -> bool:
        return self.table.__rich_measure__(console, options).minimum <= options.max_width

    def _paragraphs(self) -> RenderResult:
        from rich.padding import Padding
        from rich.text import Text

        if self.table.title:
            yield self.table.title
        first, *others = self.table.columns
        for number, name in enumerate(first.cells):
            yield name
            for column in others:
                cell = list(column.cells)[number]
                line = " ".join(f"{column.header}: {cell}".split())
                yield Padding(Text(line), (0, 0, 0, 2))
        if self.table.caption:
            yield self.table.caption
