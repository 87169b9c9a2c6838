"""`seckill dlq …`: looking at dead letters, and making their index again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from seckill.cli import dlq_ending, dlq_watch
from seckill.cli.console import err, note, print_json, say, stderr_is_terminal
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
from seckill.cli.dlq_screens import hint_of, print_letters, print_stats, print_story, tell_next
from seckill.cli.errors import FAILED
from seckill.cli.state import JsonOption, client_settings, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from seckill.dlq.model import Filter, Letter, RebuiltIndex, Stats, Story
    from seckill.settings import Settings

LIST_MAX = 10_000

commands = typer.Typer(
    no_args_is_help=True,
    help="""Dead letters: what could not be carried, set aside with its story.

Look, find out, mend what is wrong, then replay or discard. Everything that is
done is kept with the operator's name and note.

Examples:

  seckill dlq watch
  seckill dlq list --state new --since 1h
  seckill dlq show 17
  seckill dlq replay 17 --note "product service mended"
""",
)


@commands.command("list")
def list_letters(
    context: typer.Context,
    since: SinceOption = None,
    until: UntilOption = None,
    reason: ReasonOption = None,
    product: ProductOption = None,
    user: UserOption = None,
    order: OrderOption = None,
    state: StateOption = None,
    limit: Annotated[int, typer.Option(min=1, max=LIST_MAX, help="At most so many.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List letters, newest first.

    Exit code 1 when filters were given and no letter matches.

    Examples:

      seckill dlq list
      seckill dlq list --state new --reason unreadable --since 2h
      seckill dlq list --product 1 --json | jq '.letters[].letter_id'
    """
    choice = Choice(since, until, reason, product, user, order, state)
    letters, more = run(_list(client_settings(context), choice.wanted(limit=limit)))
    if as_json:
        from seckill.dlq.documents import letter_document

        print_json({"letters": [letter_document(each) for each in letters], "more": more})
    elif letters:
        print_letters(letters)
        tell_next(f"seckill dlq show {letters[0].letter_id}")
    else:
        note(f"seckill: {'no letter matches' if choice.given else 'there are no dead letters'}")
    if more:
        note(f"seckill: there are more than these {limit}: see --limit, or `seckill dlq stats`")
    if choice.given and not letters:
        raise typer.Exit(FAILED)


@commands.command("show")
def show(
    context: typer.Context,
    letter: Annotated[str, typer.Argument(metavar="LETTER", help="Its number, its order's id, or its subject.")],
    as_json: JsonOption = False,
) -> None:
    """Show one letter: what failed, payload and headers, what was done about it, and the order's whole timeline.

    Examples:

      seckill dlq show 17
      seckill dlq show 1-0197a2b0c3d47e5f8a9b0c1d2e3f4a5b
      seckill dlq show 17 --json | jq -r .record.value.text
    """
    story = run(_show(client_settings(context), letter))
    if as_json:
        from seckill.dlq.documents import story_document

        print_json(story_document(story))
        return
    print_story(story)
    tell_next(hint_of(story.letter))


@commands.command("stats")
def stats(
    context: typer.Context,
    since: SinceOption = None,
    until: UntilOption = None,
    reason: ReasonOption = None,
    product: ProductOption = None,
    user: UserOption = None,
    order: OrderOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count letters by state, reason and product; the age of the oldest; those that came back after a replay.

    Examples:

      seckill dlq stats
      seckill dlq stats --state new --since 1d --json
    """
    choice = Choice(since, until, reason, product, user, order, state)
    found = run(_stats(client_settings(context), choice.wanted(limit=1)))
    if as_json:
        from seckill.dlq.documents import stats_document

        print_json(stats_document(found))
    elif found.total:
        print_stats(found, now_ms=time.time_ns() // 1_000_000)
    else:
        say("no letter matches" if choice.given else "there are no dead letters")


@commands.command("rebuild")
def rebuild(context: typer.Context, as_json: JsonOption = False) -> None:
    """Make the index again from the dead-letter topic, which has every letter for ever.

    For a lost or old index. What it knows stays: states, notes, who did what.
    Safe at any time and any number of times.

    Example:

      seckill dlq rebuild
    """
    found = run(_rebuild(client_settings(context)))
    if as_json:
        from dataclasses import asdict

        print_json(asdict(found))
        return
    say(
        f"{found.read:,} letters read from the topic: {found.added:,} added to the index,"
        f" {found.reopened:,} opened again, {found.resolved:,} found to have ended"
    )
    tell_next("seckill dlq stats")


commands.command("watch")(dlq_watch.watch)
commands.command("replay")(dlq_ending.replay)
commands.command("discard")(dlq_ending.discard)
commands.command("resume")(dlq_ending.resume)


# --- asking ----------------------------------------------------------------------------------------------------------


async def _list(settings: Settings, wanted: Filter) -> tuple[list[Letter], bool]:
    """The letters, and whether there are more of them."""
    from seckill.dlq.batch import all_of

    async with open_desk(settings) as desk:
        found = await all_of(desk, wanted, most=wanted.limit + 1)
    return found[: wanted.limit], len(found) > wanted.limit


async def _show(settings: Settings, ident: str) -> Story:
    async with open_desk(settings) as desk:
        return await desk.story(await desk.get(ident))


async def _stats(settings: Settings, wanted: Filter) -> Stats:
    async with open_desk(settings) as desk:
        return await desk.stats(wanted)


async def _rebuild(settings: Settings) -> RebuiltIndex:
    with _counter() as progress:
        async with open_desk(settings) as desk:
            return await desk.rebuild(progress)


@contextmanager
def _counter() -> Iterator[Callable[[int], None]]:
    """How many letters have been read, on stderr, only where a terminal shows it."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,} letters read"), TimeElapsedColumn())
    with Progress(*columns, console=err(), transient=True, disable=not stderr_is_terminal()) as progress:
        task = progress.add_task("read", total=None)
        yield lambda count: progress.update(task, completed=count)
