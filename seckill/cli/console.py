"""What a command prints: data on stdout, everything else on stderr; rich only where a terminal shows it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table


def stdout_is_terminal() -> bool:
    return sys.stdout.isatty()


def stderr_is_terminal() -> bool:
    return sys.stderr.isatty()


def out() -> Console:
    """A console on stdout. Colours follow NO_COLOR and the terminal."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False)


def err() -> Console:
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False)


def say(line: str) -> None:
    """Data, as plain text."""
    print(line, file=sys.stdout, flush=True)


def note(line: str) -> None:
    """Anything that is no data."""
    print(line, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON document on one line."""
    import msgspec

    say(msgspec.json.encode(value).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """A rich table on a terminal; plain aligned columns, that other programs can read, everywhere else."""
    cells = [[_text(cell) for cell in row] for row in rows]
    if stdout_is_terminal():
        show(make_table(columns, cells, title=title))
        return
    widths = [max(len(row[index]) for row in [list(columns), *cells]) for index in range(len(columns))]
    for row in [list(columns), *cells]:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    rows = list(rows)
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(row[index].replace(",", "").replace(".", "").isdigit() for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def show(renderable: RenderableType) -> None:
    out().print(renderable)


def moment(at_ms: int | None) -> str:
    """A time in milliseconds as ISO 8601 in the user's own time zone; `-` for none."""
    if not at_ms:
        return "-"
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).astimezone().isoformat(timespec="seconds")


def age(milliseconds: float | None) -> str:
    """A length of time for people: `1.2 s`, `3 min`, `2.0 h`; `-` for none."""
    if milliseconds is None:
        return "-"
    seconds = milliseconds / 1000
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3600:.1f} h"


def _text(cell: object) -> str:
    return "-" if cell is None or cell == "" else str(cell)
