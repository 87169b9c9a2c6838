"""`seckill dlq replay`, `discard` and `resume`: what an operator decides about dead letters."""

from __future__ import annotations

import getpass
import tempfile
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seckill.cli.dlq_choice import (
    Choice,
    OrderOption,
    ProductOption,
    ReasonOption,
    SinceOption,
    State,
    StateOption,
    UntilOption,
    UserOption,
)
from seckill.cli.dlq_doing import Asked, Target, discarded, open_desk, replayed, resumed
from seckill.cli.errors import CliError, WrongUsage
from seckill.cli.state import JsonOption, client_settings, run

if TYPE_CHECKING:
    from seckill.dlq.model import By
    from seckill.settings import Settings

OPERATOR_MAX, NOTE_MAX = 100, 1_000
"""Characters that the log of actions keeps."""

IdsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="LETTER", help="Letter numbers, order ids or subjects.")
]
AllOption = Annotated[bool, typer.Option("--all", help="Every new letter.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Of filters and --all: at most so many, newest first.")]
NoteOption = Annotated[
    str | None, typer.Option("--note", metavar="TEXT", help="Why; kept for ever with the operator's name. Required.")
]
OperatorOption = Annotated[
    str | None, typer.Option("--operator", metavar="NAME", help="Who does it.", show_default="the login name")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Really do it with more than one letter.")]
DryRunOption = Annotated[
    bool | None,
    typer.Option(
        "--dry-run/--no-dry-run", help="Only say what would be done.", show_default="unless it is one letter by number"
    ),
]
RateOption = Annotated[
    float | None,
    typer.Option(min=0.1, max=10_000, help="Letters a second.", show_default="dead_letters.replays_per_s"),
]
ForceOption = Annotated[
    bool,
    typer.Option("--force", help="Also beyond replays_max, what would only come back, and what has not ended yet."),
]


def replay(
    context: typer.Context,
    letters: IdsArgument = None,
    note_: NoteOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    reason: ReasonOption = None,
    product: ProductOption = None,
    user: UserOption = None,
    order: OrderOption = None,
    state: StateOption = None,
    every: AllOption = False,
    limit: LimitOption = None,
    yes: YesOption = False,
    dry_run: DryRunOption = None,
    edit: Annotated[bool, typer.Option("--edit", help="Change the payload in $EDITOR first; of one letter.")] = False,
    payload: Annotated[
        Path | None,
        typer.Option(metavar="FILE", allow_dash=True, help="Publish this payload instead; - for stdin; of one letter."),
    ] = None,
    rate: RateOption = None,
    force: ForceOption = False,
    wait: Annotated[
        float, typer.Option(min=0, max=86_400, metavar="SECONDS", help="For the ends of the orders; 0: for none.")
    ] = 30,
    operator: OperatorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish letters again, once what ails them is mended.

    One letter by its number is replayed at once; several, filters and --all
    only say what they would do, until --yes. An order that has ended
    meanwhile is settled, and not published. Interrupted or killed at any
    moment, a replay is finished by the dead-letters role, or by `seckill dlq
    resume`, and no order takes effect twice.

    An edit may change what is no order yet, or an order that never passed the
    front: an admitted order is what its buyer was promised. Shown as a diff.

    Exit code 1 when a letter was refused, came back, or had not ended when
    --wait was over.

    Examples:

      seckill dlq replay 17 --note "product service mended"
      seckill dlq replay 17 --edit --note "user_id was a name"
      seckill dlq replay --reason branch_failed --since 1h   # only says
      seckill dlq replay --reason branch_failed --yes --note "mended"
    """
    target = _target(letters, Choice(since, until, reason, product, user, order, state), every, limit)
    if (edit or payload) and len(target.idents) != 1:
        raise WrongUsage("--edit and --payload are for one letter, given by its number")
    if edit and payload:
        raise WrongUsage("--edit and --payload exclude each other")
    by = _by(operator, note_, dry=is_dry(target, yes=yes, dry_run=dry_run))
    settings = client_settings(context)
    asked = Asked(target, by, rate or settings.dead_letters.replays_per_s, as_json)
    changed = _changed(settings, asked, edit=edit, payload=payload)
    raise typer.Exit(run(_named_edit(replayed(settings, asked, changed, force=force, wait_s=wait), changed, edit=edit)))


def discard(
    context: typer.Context,
    letters: IdsArgument = None,
    note_: NoteOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    reason: ReasonOption = None,
    product: ProductOption = None,
    user: UserOption = None,
    order: OrderOption = None,
    state: StateOption = None,
    every: AllOption = False,
    limit: LimitOption = None,
    yes: YesOption = False,
    dry_run: DryRunOption = None,
    rate: RateOption = None,
    force: Annotated[bool, typer.Option("--force", help="Also what was published again and has not ended.")] = False,
    operator: OperatorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give letters up for good: their orders end as rejected(DISCARDED).

    What such an order held, its units and its buyer's allowance, goes back
    exactly once. An order that has ended meanwhile keeps its end. There is no
    way back.

    One letter by its number is discarded at once; several, filters and --all
    only say what they would do, until --yes. Exit code 1 when a letter was
    refused.

    Examples:

      seckill dlq discard 17 --note "a test record"
      seckill dlq discard --reason unreadable --yes --note "noise of a test"
    """
    target = _target(letters, Choice(since, until, reason, product, user, order, state), every, limit)
    by = _by(operator, note_, dry=is_dry(target, yes=yes, dry_run=dry_run))
    settings = client_settings(context)
    asked = Asked(target, by, rate or settings.dead_letters.replays_per_s, as_json)
    raise typer.Exit(run(discarded(settings, asked, force=force)))


def resume(context: typer.Context, as_json: JsonOption = False) -> None:
    """Finish replays and discards that were interrupted.

    The dead-letters role does so by itself; this is for when it does not run.
    Doing it twice, or at the same time as somebody else, does no harm. Exit
    code 1 when one could not be finished and is as it was before.

    Example:

      seckill dlq resume
    """
    raise typer.Exit(run(resumed(client_settings(context), as_json=as_json)))


# --- what was asked for ----------------------------------------------------------------------------------------------


def _target(idents: Sequence[str] | None, choice: Choice, every: bool, limit: int | None) -> Target:
    """Filters and --all mean new letters, unless states are named. Raises WrongUsage unless one way is used."""
    ways = [bool(idents), choice.given, every]
    if sum(ways) > 1:
        raise WrongUsage("letter numbers, filters and --all exclude each other: use one of them")
    if not any(ways):
        raise WrongUsage("which letters? Give their numbers (see `seckill dlq list`), filters, or --all")
    if idents and limit is not None:
        raise WrongUsage("--limit is for filters and --all")
    if idents:
        return Target(tuple(dict.fromkeys(idents)))
    return Target((), choice.wanted(limit=1, states=(State.NEW,)), limit)


def is_dry(target: Target, *, yes: bool, dry_run: bool | None) -> bool:
    """Whether nothing is to be changed: by default, unless it is about one letter that was named."""
    if yes and dry_run:
        raise WrongUsage("--yes and --dry-run exclude each other")
    if dry_run is not None:
        return dry_run
    return not yes and len(target.idents) != 1


def _by(operator: str | None, why: str | None, *, dry: bool) -> By | None:
    """Raises WrongUsage when a change is asked for without a reason that can be kept."""
    from seckill.dlq.model import By

    if dry:
        return None
    who, why = (operator or _login()).strip(), (why or "").strip()
    if not why:
        raise WrongUsage("--note is missing: say why, for who reads the letter's log later")
    if not who:
        raise WrongUsage("--operator is missing: there is no login name to take instead")
    for option, text, most in (("--note", why, NOTE_MAX), ("--operator", who, OPERATOR_MAX)):
        if len(text) > most:
            raise WrongUsage(f"{option} has {len(text)} characters: {most} are kept")
    return By(who, why)


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a container
        return ""


# --- the edit --------------------------------------------------------------------------------------------------------


def _changed(settings: Settings, asked: Asked, *, edit: bool, payload: Path | None) -> bytes | None:
    """The payload to publish instead, shown as a diff; None: the record's own. Nothing is connected meanwhile."""
    from seckill.cli.dlq_edit import edited, print_diff, read_payload

    if not edit and payload is None:
        return None
    new = read_payload(payload) if payload else b""
    before = run(_payload(settings, asked.target.idents[0]))
    after = edited(before) if edit else new
    print_diff(before, after, to_stderr=asked.as_json)
    return after


async def _payload(settings: Settings, ident: str) -> bytes:
    """Raises CliError when no topic holds the record any more."""
    async with open_desk(settings) as desk:
        original = await desk.original(await desk.get(ident))
    if original is None:
        raise CliError(f"letter {ident}: the topic does not hold its record any more")
    return original.value or b""


async def _named_edit(work: Awaitable[int], changed: bytes | None, *, edit: bool) -> int:
    """An edit that cannot be published is the user's mistake; what was typed is kept."""
    from seckill.dlq.model import InvalidEdit

    try:
        return await work
    except InvalidEdit as error:
        if not edit or changed is None:
            raise WrongUsage(f"--payload: {error}") from error
        with tempfile.NamedTemporaryFile(prefix="seckill-edit-", suffix=".json", delete=False) as kept:
            kept.write(changed)
        raise WrongUsage(f"--edit: {error}; your edit is kept: correct it, and give --payload {kept.name}") from error
