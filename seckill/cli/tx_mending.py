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

    Orders that are confirmed decide that the units are sold; else order is
    cancelled, and then product, under the same gid and past the same barrier as
    a coordinator's calls. Of an XA that is still prepared, product decides: what
    it has committed is committed in order as well; else both are rolled back.
    Nothing is done to a transaction that is still carried (see `tx retry`).
    Repeating it does no harm. Exit code 1 when it must not or cannot be ended,
    and a person has to look.

    Examples:

      seckill tx resolve 0197a2b0c3d47e5f8a9b0c1d2e3f4a5b --dry-run
      seckill tx resolve 0197a2b0c3d47e5f8a9b0c1d2e3f4a5b
    """
    found, after = run(_resolve(client_settings(context), gid, dry_run))
    done = not dry_run and found.action is not None
    if as_json:
        print_json({
            "gid": gid, "coordinator": found.coordinator, "pattern": found.pattern,
            "confirmed_orders": found.look.confirmed_orders,
            "reservations": after, "action": found.action, "done": done,
        })  # fmt: skip
        return
    say(f"{gid}: the coordinator says {found.coordinator or 'that it does not know it'}")
    say(f"confirmed orders: {found.look.confirmed_orders}")
    say("")
    print_reservations(after)
    say("")
    say(_told(found, done=done))


_CALLS = {
    "tcc": ("Confirm of product", "Cancel of order, then of product"),
    "saga": ("the units sold at product", "compensation of order, then of product"),
    "msg": ("the units sold at product", "order kept out, then the units released at product"),
    "xa": ("commit of product, then of order", "rollback of order, then of product"),
}
"""What confirming and cancelling is, by DTM's name of the pattern."""


def _told(found: Found, *, done: bool) -> str:
    if found.action is None:
        return "nothing to do: no reservation of it holds units, and nothing of it is prepared"
    confirm, cancel = _CALLS[found.pattern]
    calls = confirm if found.action == "confirm" else cancel
    return f"done: {calls}" if done else f"would be done: {calls}"


@dataclass(frozen=True, slots=True)
class Found:
    """What coordinator, order and product say of a gid before anything is done."""

    look: Look
    reservations: Sequence[Mapping[str, Any]]
    prepared: bool  # an XA that a database holds prepared

    @property
    def pattern(self) -> str:
        return self.look.trans_type

    @property
    def coordinator(self) -> str | None:
        """The status there; None: the coordinator does not know the gid."""
        return self.look.transaction.status if self.look.transaction else None

    @property
    def states(self) -> Counter[str]:
        return Counter(each["state"] for each in self.reservations)

    @property
    def action(self) -> str | None:
        """`confirm` or `cancel`; None: no reservation holds units, and nothing is prepared."""
        if not self.states["frozen"] and not self.prepared:
            return None
        return "confirm" if self.look.decided_for else "cancel"


def refuse(found: Found) -> None:
    """Raises CliError unless the transaction may be ended as it stands, or has nothing left to end."""
    from seckill.checkout.orphans import End

    gid, states, confirmed = found.look.gid, found.states, found.look.confirmed_orders
    if found.coordinator is None and not found.reservations and not confirmed and not found.prepared:
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
    from seckill.dtm.protocol import XA
    from seckill.wiring import open_orphans

    async with open_orphans(settings) as orphans:
        look = await orphans.look(gid)
        found = Found(look, await reservations_of(settings, gid), prepared=look.trans_type == XA)
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
