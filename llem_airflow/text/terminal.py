"""What a terminal shows: names fold at their separators, tables turn into lists where there is no room.

Rich alone breaks a long name at any letter, and takes a pipe for a terminal of 80 columns.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

_PIPE_COLUMNS = 100_000
_GAP = 2
_NAME_COLUMNS = 30
# After blanks, or a separator with a word on each side: never in a number, a date, 2/2 or token/s.
_SEPARATOR = r"(?:[-_/=:@,+|#]+|\.)"
_PIECE = re.compile(
    rf".+?(?:(?<=[^\W_][^\W\d_]){_SEPARATOR}(?=[^\W_]{{2}})|(?<=[^\W_]{{2}}){_SEPARATOR}(?=[^\W\d_][^\W_])|\s+|$)",
    re.DOTALL,
)


def console(*, stderr: bool = False) -> Console:
    """A console that knows its place: as wide as the terminal or COLUMNS, without any wrapping in a pipe.

    COLUMNS that is no number above 0 says nothing: some terminals and CI systems set it to 0, where Rich shows nothing.
    """
    told = os.environ.get("COLUMNS", "").isdecimal() and int(os.environ["COLUMNS"]) > 0
    width = None if told else shutil.get_terminal_size().columns
    found = Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)
    if not told and not found.is_terminal:
        found.width = _PIPE_COLUMNS
    return found


def show(target: Console, *parts: RenderableType) -> None:
    """Print; what must copy whole is left to the terminal to wrap."""
    for part in parts:
        target.print(part, crop=False)


def say(text: str, style: str = "") -> None:
    """Print a text to standard output; the terminal may wrap it, so that what is copied is whole."""
    show(console(), Whole(text, style))


def pieces(text: str) -> list[str]:
    """The text cut where a line may end."""
    return _PIECE.findall(text)


def folded(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` columns, cut at separators; a longer word is cut as a last resort."""
    lines = [""]
    for piece in pieces(text):
        if len(lines[-1]) + len(piece.rstrip()) > width and lines[-1]:
            lines.append("")
        # A space before the first word of a line would take the room that the word needs.
        lines[-1] += piece if lines[-1] or len(piece.rstrip()) <= width else piece.lstrip()
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return [line.rstrip() for line in lines]


class Folding:
    """A text with names in it; each of its lines is folded at separators."""

    def __init__(self, text: str, style: str = "", *, indent: int = 0) -> None:
        self.text, self.style, self.indent = text, style, indent

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        lines = self.text.split("\n")
        least = max((len(piece.rstrip()) for line in lines for piece in pieces(line)), default=0)
        return Measurement(least, max(map(len, lines)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for number, line in enumerate(self.text.split("\n")):
            for k, part in enumerate(folded(line, max(options.max_width - self.indent, 1))):
                yield Text(
                    " " * self.indent * (number + k > 0) + part, self.style, no_wrap=True, overflow="ignore"
                )


class Whole:
    """A name that is copied whole: the terminal may wrap it, we do not. Print it with ``show``."""

    def __init__(self, text: str, style: str = "") -> None:
        self.text, self.style = text, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Segment(self.text, console.get_style(self.style) if self.style else None)
        yield Segment.line()


class Rows:
    """A table that fits: side by side where there is room, else a block of ``title: cell`` lines for each row.

    Args:
        titles: Titles of the columns; the first column names the row.
        rows: Cells as text, in one or more lines.
        right: Titles of the columns that stand to the right.
        whole: The first column is copied whole: it is never folded.
        spaced: An empty line before each row.
        styles: Style of each row's cells; none for plain ones.
    """

    def __init__(
        self,
        titles: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: Sequence[str] = (),
        whole: bool = False,
        spaced: bool = False,
        styles: Sequence[str] = (),
    ) -> None:
        self.titles, self.rows, self.right, self.whole, self.spaced = titles, rows, right, whole, spaced
        self.styles = styles or [""] * len(rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self._widths(console, options)
        if widths is None:
            yield from self._blocks()
            return
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=False)
        for title, width in zip(self.titles, widths, strict=True):
            table.add_column(width=width, justify="right" if title in self.right else "left")
        table.add_row(*(Folding(title, "bold") for title in self.titles))
        for row, style in zip(self.rows, self.styles, strict=True):
            if self.spaced:
                table.add_row()
            table.add_row(*(Folding(cell, style) for cell in row))
        yield table

    def _widths(self, console: Console, options: ConsoleOptions) -> list[int] | None:
        """Width of each column, or None when not even its longest words fit."""
        columns = list(zip(self.titles, *self.rows, strict=True))
        found = [[Folding(cell).__rich_measure__(console, options) for cell in cells] for cells in columns]
        most = [max(one.maximum for one in cells) for cells in found]
        least = [max(one.minimum for one in cells) for cells in found]
        least[0] = most[0] if self.whole else max(least[0], min(most[0], _NAME_COLUMNS))
        room = options.max_width - _GAP * (len(columns) - 1) - sum(least)
        if room < 0:
            return None
        widths = list(least)
        # The room goes to whoever lacks most, a column at a time.
        for index in sorted(range(len(widths)), key=lambda k: most[k] - least[k]):
            waiting = sum(1 for k in range(len(widths)) if widths[k] < most[k]) or 1
            more = min(most[index] - least[index], room // waiting)
            widths[index] += more
            room -= more
        return widths

    def _blocks(self) -> RenderResult:
        for row, style in zip(self.rows, self.styles, strict=True):
            yield Whole(row[0], "bold") if self.whole else Folding(row[0], "bold")
            for title, cell in zip(self.titles[1:], row[1:], strict=True):
                if cell:
                    lines = ", ".join(" ".join(line.split()) for line in cell.splitlines())
                    yield Folding(f"  {' '.join(title.split())}: {lines}", style, indent=4)
