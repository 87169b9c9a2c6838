"""`seckill tx retry` and `seckill tx resolve`: an operator's hand on one global transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seckill.cli.console import print_json, say
from seckill.cli.errors import CliError
from seckill.cli.state import JsonOption, client_settings, run
from seckill.cli.tx import coordinator_of, print_reservations, reservations_of

if TYPE_CHECKING:
    from seckill.checkout.orphans import Look
    from seckill.settings import Settings

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
GidArgument = Annotated[str, typer.Argument(metavar="GID", help="The global transaction's id.")]


def retry(context: typer.Context, gid: GidArgument, dry_run: DryRunOption = False, as_json: JsonOption = False) -> None:
    """Ask the coordinator to carry on with one transaction now, not after its pause.

    For the time after an outage, when the pauses have grown long. Exit code 1
    when the coordinator does not know the transaction, or has finished it.

    Examples:

      seckill tx retry 0197a2b0c3d47e5f8a9b0c1d2e3f4a5b
      seckill tx retry 0197a2b0c3d47e5f8a9b0c1d2e3f4a5b --dry-run
    """
    status = run(_retry(client_settings(context), gid, dry_run))
    if as_json:
        print_json({"gid": gid, "status": status, "retried": not dry_run})
    elif dry_run:
        say(f"{gid} is {status}: the coordinator would be asked to carry on now")
    else:
        say(f"{gid} is {status}: the coordinator carries on with its next look")


def resolve(
    context: typer.Context, gid: GidArgument, dry_run: DryRunOption = False, as_json: JsonOption = False
) -> None:
    """End a transaction that its coordinator lost, or calls finished, while units are still held.

    Orders that are confirmed decide for Confirm; else order is cancelled, and
    then product, under the same gid and past the same barrier as a
    coordinator's calls. Nothing is done to a transaction that is still carried
    (see `tx retry`). Repeating it does no harm. Exit code 1 when it must not or
    cannot be ended, and a person has to look.

    Examples:

      seckill tx resolve 0197a2b0c3d47e5f8a9b0c1d2e3f4a5b --dry-run
      seckill tx resolve 0197a2b0c3d47e5f8a9b0c1d2e3f4a5b
    """
    found, after = run(_resolve(client_settings(context), gid, dry_run))
    done = not dry_run and found.action is not None
    if as_json:
        print_json({
            "gid": gid, "coordinator": found.coordinator, "confirmed_orders": found.look.confirmed_orders,
            "reservations": after, "action": found.action, "done": done,
        })  # fmt: skip
        return
    say(f"{gid}: the coordinator says {found.coordinator or 'that it does not know it'}")
    say(f"confirmed orders: {found.look.confirmed_orders}")
    say("")
    print_reservations(after)
    say("")
    say(_told(found.action, done=done))


def _told(action: str | None, *, done: bool) -> str:
    if action is None:
        return "nothing to do: no reservation of it holds units"
    calls = {"confirm": "Confirm of product", "cancel": "Cancel of order, then of product"}[action]
    return f"done: {calls}" if done else f"would be done: {calls}"


@dataclass(frozen=True, slots=True)
class Found:
    """What coordinator, order and product say of a gid before anything is done."""

    look: Look
    reservations: Sequence[Mapping[str, Any]]

    @property
    def coordinator(self) -> str | None:
        """The status there; None: the coordinator does not know the gid."""
        return self.look.transaction.status if self.look.transaction else None

    @property
    def states(self) -> Counter[str]:
        return Counter(each["state"] for each in self.reservations)

    @property
    def action(self) -> str | None:
        """`confirm` or `cancel`; None: no reservation holds units."""
        if not self.states["frozen"]:
            return None
        return "confirm" if self.look.confirmed_orders else "cancel"


def refuse(found: Found) -> None:
    """Raises CliError unless the transaction may be ended as it stands, or has nothing left to end."""
    from seckill.checkout.orphans import End

    gid, states, confirmed = found.look.gid, found.states, found.look.confirmed_orders
    if found.coordinator is None and not found.reservations and not confirmed:
        raise CliError(f"gid {gid}: neither the coordinator nor the services know it")
    if found.look.end is End.CARRIED:
        raise CliError(
            f"gid {gid}: its coordinator carries it ({found.coordinator}); "
            f"to have it carry on now: seckill tx retry {gid}"
        )
    if confirmed and states["released"]:
        raise CliError(
            f"gid {gid}: its branches contradict: {confirmed} orders are confirmed, and {states['released']} "
            f"reservations have given their units back; compare them with seckill tx show {gid}, and with seckill audit"
        )
    if states["frozen"] and (states["sold"] or states["released"]):
        raise CliError(
            f"gid {gid}: its reservations contradict each other ({_counted(states)}); a branch ends as a whole: "
            f"see seckill tx show {gid}, and the log of the product service"
        )


def _counted(states: Counter[str]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items()))


async def _retry(settings: Settings, gid: str, dry_run: bool) -> str:
    """The transaction's status."""
    async with coordinator_of(settings) as dtm:
        found = await dtm.query(gid)
        if found is None:
            raise CliError(f"gid {gid}: the coordinator does not know it; if units are held: seckill tx resolve {gid}")
        if found.finished:
            raise CliError(f"gid {gid} is finished ({found.status}); if units are still held: seckill tx resolve {gid}")
        if not dry_run:
            await dtm.reset_next_cron_time(gid)
    return found.status


async def _resolve(settings: Settings, gid: str, dry_run: bool) -> tuple[Found, Sequence[Mapping[str, Any]]]:
    """What was found, and the reservations as they are in the end. Raises CliError when it may not be ended."""
    from seckill.domain.errors import BranchFailed
    from seckill.wiring import open_orphans

    async with open_orphans(settings) as orphans:
        found = Found(await orphans.look(gid), await reservations_of(settings, gid))
        refuse(found)
        if dry_run or found.action is None:
            return found, found.reservations
        try:
            await orphans.end(found.look)
        except BranchFailed as error:
            raise CliError(
                f"gid {gid}: its branches contradict: {error}; what each decided is in the tables `decision` and "
                f"`barrier` of its database, and seckill tx show {gid} has the reservations"
            ) from error
        after = await reservations_of(settings, gid)
    if any(each["state"] == "frozen" for each in after):
        raise CliError(
            f"gid {gid}: {found.action} was answered OK, and units are still held; see seckill tx show {gid}"
        )
    return found, after
