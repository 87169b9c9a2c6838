"""What a command prints: data on stdout, everything else on stderr; rich only where a terminal shows it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from seckill.audit.timeline import Event


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


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, spare: Sequence[str] = ()) -> None:
    """A rich table on a terminal; plain aligned columns, that other programs can read, everywhere else.

    `spare` is for `fitted_table`.
    """
    cells = [[_text(cell) for cell in row] for row in rows]
    if stdout_is_terminal():
        show(fitted_table(columns, cells, spare))
        return
    widths = [max(len(row[index]) for row in [list(columns), *cells]) for index in range(len(columns))]
    for row in [list(columns), *cells]:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def fitted_table(columns: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str]) -> Table:
    """Where the terminal is too narrow the `spare` columns are left out, the first of them first, and that is said."""
    console = out()
    unbounded = console.options.update(max_width=10_000)
    spare = [column for column in spare if column in columns]
    for count in range(len(spare) + 1):
        left_out = spare[:count]
        kept = [index for index, column in enumerate(columns) if column not in left_out]
        table = make_table([columns[index] for index in kept], [[row[index] for index in kept] for row in rows])
        if console.measure(table, options=unbounded).maximum <= console.width:
            break
    if left_out:
        table.caption = f"left out for lack of room: {', '.join(left_out)}"
        table.caption_justify = "left"
    return table


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    rows = list(rows)
    for index, column in enumerate(columns):
        justify: Literal["left", "right"] = "right" if _is_numeric(row[index] for row in rows) else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _is_numeric(cells: Iterable[str]) -> bool:
    present = [cell for cell in cells if cell != "-"]
    return bool(present) and all(cell.replace(",", "").replace(".", "").isdigit() for cell in present)


def show(renderable: RenderableType) -> None:
    out().print(renderable)


def moment(at_ms: int | None) -> str:
    """A time in milliseconds as ISO 8601 in the user's own time zone; `-` for none."""
    if not at_ms:
        return "-"
    at = _local(at_ms)
    return f"{at_ms} ms" if at is None else at.isoformat(timespec="seconds")


def _local(at_ms: int) -> datetime | None:
    """None for a time that no calendar has: a record's writer may claim any."""
    try:
        return datetime.fromtimestamp(at_ms / 1000, tz=UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return None


def exact_moment(at_ms: int | None) -> str:
    """As `moment`, with the milliseconds that tell one event from the next."""
    if not at_ms:
        return "-"
    whole = moment(at_ms)
    if _local(at_ms) is None:
        return whole
    return f"{whole[:19]}.{at_ms % 1000:03d}{whole[19:]}"


def event_lines(events: Iterable[Event]) -> list[str]:
    """A timeline, a line an event."""
    return [f"{exact_moment(event.at_ms):<29}  {event.store:<11}  {event.what}" for event in events]


def brief_moment(at_ms: int | None) -> str:
    """A time for a column: on a terminal no longer than a person needs, else as `moment` has it."""
    at = _local(at_ms) if at_ms else None
    if at is None or not stdout_is_terminal():
        return moment(at_ms)
    today = at.date() == datetime.now(tz=UTC).astimezone().date()
    return at.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M")


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
