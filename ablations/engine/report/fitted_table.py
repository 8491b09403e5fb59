"""Tables that fit the width of the terminal."""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from resnet_core.fields import printable

COLUMN_GAP_CHARACTERS = 2


class FittedTable:
    """A table that leaves out optional columns if the terminal is too narrow, with a line that lists them.

    Args:
        naming: Names of the first columns, which identify a row. They are always shown, folded onto several lines if necessary.
        columns: Names of the other columns.
        optional: Columns that may be left out, in the order of their removal.
        elsewhere: Where to find the missing columns; empty to print no line about them.
    """

    def __init__(self, naming: Sequence[str], columns: Sequence[str], *, optional: Sequence[str], elsewhere: str = "") -> None:
        self._naming, self._columns, self._optional, self._elsewhere = naming, columns, optional, elsewhere
        self._rows: list[Sequence[str]] = []

    def add_row(self, cells: Sequence[str]) -> None:
        self._rows.append([printable(cell) for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names, named = [*self._naming, *self._columns], len(self._naming)
        widths = [max(map(cell_len, column)) + COLUMN_GAP_CHARACTERS for column in zip(names, *self._rows, strict=True)]
        shown = list(range(len(names)))
        for name in self._optional:
            if sum(widths[i] for i in shown) - COLUMN_GAP_CHARACTERS <= options.max_width:
                break
            shown = [i for i in shown if i < named or names[i] != name]  # by position: a factor may have the name of a column
        table = Table(box=None, header_style="dim", padding=(0, COLUMN_GAP_CHARACTERS, 0, 0), pad_edge=False)
        for i in shown:
            if i < named:
                table.add_column(names[i], overflow="fold")
            else:
                table.add_column(names[i], justify="right", no_wrap=True)
        for row in self._rows:
            table.add_row(*(Text(row[i]) for i in shown))
        yield table
        left_out = [name for i, name in enumerate(names) if i not in shown]
        if left_out and self._elsewhere:
            yield Text(f"Not shown in {options.max_width} columns: {', '.join(left_out)} ({self._elsewhere})", "dim")
