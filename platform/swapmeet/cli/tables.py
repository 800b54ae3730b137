"""Lists as people read them: columns with headings on a terminal, and elsewhere lines for other programs."""

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]], terminal: bool | None = None) -> str:
    """Rows as text; each in a line of its own.

    Args:
        headings: one for each column; not shown but on a terminal.
        rows: cells, of which None is nothing.
        terminal: whether to align columns; None looks at standard output. Otherwise tabulators part the cells.
    """
    cells = [[plain(cell) for cell in row] for row in rows]
    if not (sys.stdout.isatty() if terminal is None else terminal):
        return "\n".join("\t".join(row) for row in cells)
    cells = [[heading.upper() for heading in headings], *cells]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def fields(pairs: Iterable[tuple[str, Any]]) -> str:
    """Names and values, one pair a line; those without a value are left out."""
    given = [(name, plain(value)) for name, value in pairs if value not in (None, "", [], {})]
    width = max((len(name) for name, _ in given), default=0) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in given)


def plain(value: Any) -> str:
    """A value in one line, without what would move a terminal's cursor: it may come from anybody's data."""
    text = "" if value is None else str(value)
    return "".join(each if each.isprintable() else " " for each in text)


def moment(seconds: float | None) -> str:
    """A moment, given in seconds since the epoch, as UTC."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def duration(seconds: float) -> str:
    """About how long, in the largest unit that fits."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.1f} {unit}"
    return f"{max(0, seconds):.0f} s"
