"""`seckill dlq watch`: dead letters as they come, and what becomes of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from seckill.cli.console import fitted_table, out, print_json, say, stdout_is_terminal
from seckill.cli.dlq_choice import (
    Choice,
    OrderOption,
    ProductOption,
    ReasonOption,
    SinceOption,
    StateOption,
    UntilOption,
    UserOption,
)
from seckill.cli.dlq_doing import open_desk
from seckill.cli.dlq_screens import COLUMNS, SPARE, most_first, row_of, stats_lines
from seckill.cli.errors import UNREACHABLE, explained
from seckill.cli.state import JsonOption, client_settings, run

if TYPE_CHECKING:
    from rich.console import RenderableType

    from seckill.dlq.desk import LetterDesk
    from seckill.dlq.model import Filter, Letter, Stats
    from seckill.settings import Settings

LINES_BESIDE_LETTERS = 12
"""Of a screen: sums, reasons, heads of tables."""


def watch(
    context: typer.Context,
    since: SinceOption = None,
    until: UntilOption = None,
    reason: ReasonOption = None,
    product: ProductOption = None,
    user: UserOption = None,
    order: OrderOption = None,
    state: StateOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many letters are looked at, newest first.")] = 100,
    interval: Annotated[float, typer.Option(min=0.2, max=3600, metavar="SECONDS", help="From look to look.")] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Watch dead letters come in and end, until Ctrl-C.

    On a terminal a live table: how many, why, how fast, the newest ones.
    Elsewhere, and with --json, a line for each letter of the newest --limit,
    and one each time that something became of it.

    Examples:

      seckill dlq watch
      seckill dlq watch --state new --reason unreadable
      seckill dlq watch --json | jq -r 'select(.state == "new") | .letter_id'
    """
    choice = Choice(since, until, reason, product, user, order, state)
    settings, wanted = client_settings(context), choice.wanted(limit=limit)
    live = stdout_is_terminal() and not as_json
    run(_live(settings, wanted, interval) if live else _lines(settings, wanted, interval, as_json))


@dataclass(slots=True)
class Seen:
    """What has been told of which letter."""

    told: dict[int, int] = field(default_factory=dict)  # letter_id → updated_ms

    def news(self, letters: Iterable[Letter]) -> list[Letter]:
        """Those that are new or have changed, oldest first. What fell out of the look is forgotten."""
        found = {each.letter_id: each for each in letters}
        fresh = [each for each in found.values() if self.told.get(each.letter_id) != each.updated_ms]
        self.told = {letter_id: each.updated_ms for letter_id, each in found.items()}
        return sorted(fresh, key=lambda each: (each.updated_ms, each.letter_id))


async def _lines(settings: Settings, wanted: Filter, interval_s: float, as_json: bool) -> None:
    from seckill.dlq.documents import letter_document

    seen = Seen()
    async with open_desk(settings) as desk:
        while True:
            for letter in seen.news(await desk.find(wanted)):
                if as_json:
                    print_json(letter_document(letter))
                else:
                    say("  ".join("-" if cell in (None, "") else str(cell) for cell in row_of(letter)))
            await asyncio.sleep(interval_s)


async def _live(settings: Settings, wanted: Filter, interval_s: float) -> None:
    """A store that stops answering is said on the screen, and asked again."""
    from rich.live import Live

    async with open_desk(settings) as desk:
        screen = await _screen(desk, wanted)  # what is wrong from the beginning ends the command
        with Live(screen, console=out(), auto_refresh=False, screen=True) as live:
            while True:
                await asyncio.sleep(interval_s)
                live.update(await _screen_or_silence(desk, wanted), refresh=True)


async def _screen_or_silence(desk: LetterDesk, wanted: Filter) -> RenderableType:
    try:
        return await _screen(desk, wanted)
    except Exception as error:
        foreseen = explained(error)
        if foreseen is None or foreseen[0] != UNREACHABLE:
            raise
        return foreseen[1]


async def _screen(desk: LetterDesk, wanted: Filter) -> RenderableType:
    return screen_of(await desk.stats(wanted), await desk.find(wanted), now_ms=time.time_ns() // 1_000_000)


def screen_of(stats: Stats, letters: list[Letter], *, now_ms: int) -> RenderableType:
    """Sums, reasons, and as many of the newest letters as there is room for."""
    from rich.console import Group

    states = ", ".join(f"{count:,} {state.value}" for state, count in stats.by_state.items() if count)
    head = f"{stats.total:,} dead letters" + (f": {states}" if states else "")
    at = time.strftime("%H:%M:%S", time.localtime(now_ms / 1000))
    reasons = [[name, f"{count:,}"] for name, count in most_first(stats.by_reason)]
    room = max(3, out().height - LINES_BESIDE_LETTERS - len(reasons))
    rows = [["-" if cell in (None, "") else str(cell) for cell in row_of(each)] for each in letters[:room]]
    parts: list[RenderableType] = [f"{head}   (at {at}, Ctrl-C ends)", *stats_lines(stats, now_ms=now_ms), ""]
    if reasons:
        parts += [fitted_table(("reason", "letters"), reasons, ()), ""]
    if rows:
        parts.append(fitted_table(COLUMNS, rows, SPARE))
    return Group(*parts)
