"""`seckill tx …`: global transactions as the coordinator and the product service know them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seckill.cli.console import age, brief_moment, print_json, print_table, say
from seckill.cli.errors import CliError
from seckill.cli.state import JsonOption, client_settings, run

if TYPE_CHECKING:
    from seckill.dtm.client import DtmClient
    from seckill.dtm.protocol import GlobalTransaction
    from seckill.settings import Settings

commands = typer.Typer(
    no_args_is_help=True,
    help="""Look at global transactions, and lend them a hand.

Examples:

  seckill tx list --stuck
  seckill tx show 0197a2b0c3d47e5f8a9b0c1d2e3f4a5b
  seckill tx retry 0197a2b0c3d47e5f8a9b0c1d2e3f4a5b
  seckill tx resolve 0197a2b0c3d47e5f8a9b0c1d2e3f4a5b --dry-run
""",
)


@commands.command("list")
def list_transactions(
    context: typer.Context,
    stuck: Annotated[bool, typer.Option("--stuck", help="Only unfinished ones older than --older-than.")] = False,
    older_than: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Of --stuck.")] = 30,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most to ask the coordinator for.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """List global transactions, as the coordinator has them.

    Examples:

      seckill tx list
      seckill tx list --stuck --older-than 60 --json
    """
    found = run(_list(client_settings(context), limit, stuck, older_than))
    if as_json:
        print_json({"transactions": [_fields(each) for each in found]})
        return
    print_table(
        ["gid", "type", "status", "created", "updated", "next look"],
        [[each.gid, each.trans_type, each.status, *_times(each)] for each in found],
        spare=("type", "created"),
    )


@commands.command("show")
def show(
    context: typer.Context,
    gid: Annotated[str, typer.Argument(metavar="GID", help="The global transaction's id.")],
    as_json: JsonOption = False,
) -> None:
    """Show one transaction: its branches at the coordinator, and the reservations that it holds or ended.

    Examples:

      seckill tx show 0197a2b0c3d47e5f8a9b0c1d2e3f4a5b
      seckill tx show 0197a2b0c3d47e5f8a9b0c1d2e3f4a5b --json
    """
    transaction, reservations = run(_show(client_settings(context), gid))
    if transaction is None and not reservations:
        raise CliError(f"gid {gid}: neither the coordinator nor the product service knows it")
    if as_json:
        print_json({"transaction": _fields(transaction) if transaction else None, "reservations": reservations})
        return
    if transaction is None:
        say(f"{gid}: the coordinator does not know it (any more)")
    else:
        created, updated, _ = _times(transaction)
        say(f"{gid}: {transaction.trans_type}, {transaction.status}")
        say(f"created {created}, updated {updated}")
        if transaction.rollback_reason:
            say(f"rolled back for: {transaction.rollback_reason}")
        say("")
        rows = [[each.branch_id, each.op, each.status, *_place(each.url)] for each in transaction.branches]
        print_table(["branch", "operation", "status", "method", "address"], rows)
    say("")
    print_reservations(reservations)


def print_reservations(reservations: Sequence[Mapping[str, Any]]) -> None:
    print_table(
        ["order's key", "state", "reason", "sale", "buyer", "quantity", "updated"],
        [[each["order_key"], each["state"], each["reason"], each["sale_id"], each["user_id"], each["quantity"],
          brief_moment(each["updated_at_ms"])] for each in reservations],
        spare=("quantity", "updated"),
    )  # fmt: skip


@asynccontextmanager
async def coordinator_of(settings: Settings, *, timeout_ms: int | None = None) -> AsyncIterator[DtmClient]:
    """A client of the coordinator."""
    from seckill.clients import open_dtm

    async with open_dtm(settings, timeout_ms=timeout_ms) as client:
        yield client


async def _list(settings: Settings, limit: int, stuck: bool, older_than_s: float) -> list[GlobalTransaction]:
    before = datetime.now(UTC) - timedelta(seconds=older_than_s)
    async with coordinator_of(settings) as dtm:
        if not stuck:
            return await dtm.list(limit=limit)
        found = [
            each
            for state in ("prepared", "submitted", "aborting")
            for each in await dtm.list(limit=limit, status=state)
        ]
    return [each for each in found if not each.finished and (each.created_at is None or each.created_at < before)]


async def _show(settings: Settings, gid: str) -> tuple[GlobalTransaction | None, list[dict[str, Any]]]:
    async with coordinator_of(settings) as dtm:
        return await dtm.query(gid), await reservations_of(settings, gid)


async def reservations_of(settings: Settings, gid: str) -> list[dict[str, Any]]:
    """What product's rows say of the gid: the only place where an order's fate is decided."""
    import grpc

    from seckill.domain.errors import ProductUnavailable
    from seckill.wire.product_pb2 import ReservationsOfGidRequest, ReservationState
    from seckill.wire.product_pb2_grpc import ProductStub
    from seckill.wiring import open_channel

    timeout_s = settings.dtm.request_timeout_ms / 1000
    async with open_channel(settings.product.grpc, settings.tls) as channel:
        try:
            reply = await ProductStub(channel).ReservationsOfGid(ReservationsOfGidRequest(gid=gid), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            detail = f"{error.code().name}: {error.details()}"
            raise ProductUnavailable(settings.product.grpc, detail) from error
    return [
        {
            "order_key": row.order_id.hex(),
            "state": ReservationState.Name(row.state).lower(),
            "reason": row.reason,
            "sale_id": row.sale_id,
            "user_id": row.user_id,
            "quantity": row.quantity,
            "updated_at_ms": row.updated_at_ms,
        }
        for row in reply.reservations
    ]


def _place(url: str) -> tuple[str, str]:
    """`host:port/pkg.Service/Method` as the method's short name and the address."""
    address, _, method = url.partition("/")
    return method.rpartition("/")[2], address


def _fields(each: GlobalTransaction) -> dict[str, Any]:
    return {
        "gid": each.gid,
        "trans_type": each.trans_type,
        "status": each.status,
        "created_at": each.created_at,
        "updated_at": each.updated_at,
        "next_cron_at": each.next_cron_at,
        "rollback_reason": each.rollback_reason,
        "branches": [
            {"branch_id": branch.branch_id, "op": branch.op, "status": branch.status, "url": branch.url}
            for branch in each.branches
        ],
    }


def _times(each: GlobalTransaction) -> tuple[str, str, str]:
    def local(at: datetime | None) -> str:
        return brief_moment(int(at.timestamp() * 1000)) if at else "-"

    if each.finished or each.next_cron_at is None:
        return local(each.created_at), local(each.updated_at), "-"
    left_ms = (each.next_cron_at - datetime.now(UTC)).total_seconds() * 1000
    return local(each.created_at), local(each.updated_at), "now" if left_ms < 0 else f"in {age(left_ms)}"
