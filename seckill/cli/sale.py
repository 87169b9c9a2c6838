"""`seckill sale …`: sales of a product, through the front's HTTP API with the operator token."""

from __future__ import annotations

import time
import uuid
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from seckill.cli.console import brief_moment, moment, note, print_json, print_table, say
from seckill.cli.errors import WrongUsage
from seckill.cli.state import JsonOption, client_settings, front_of, run
from seckill.cli.times import parse_moment, parse_price

commands = typer.Typer(
    no_args_is_help=True,
    help="""Create and change sales.

Examples:

  seckill sale create --product 1 --stock 100 --ends +1h
  seckill sale list
  seckill sale update 1 --add-stock 50
""",
)


class SaleState(StrEnum):
    OPEN = "open"
    PAUSED = "paused"
    CLOSED = "closed"


SaleId = Annotated[int, typer.Argument(metavar="SALE", min=1, help="The sale's id.")]
Starts = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="When it starts: now, +10m (from now), or ISO 8601 (local time zone)."),
]
Ends = Annotated[str | None, typer.Option(metavar="TIME", help="When it ends: +1h (from now), or ISO 8601.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Units that one buyer may buy.")]
Price = Annotated[str | None, typer.Option(metavar="AMOUNT", help="Price of a unit, for example 19.90.")]
Name = Annotated[str | None, typer.Option(help="What buyers see.")]
ChangeId = Annotated[
    str | None, typer.Option(metavar="ID", help="Makes the change safe to repeat: the same id changes nothing twice.")
]


@commands.command("create")
def create(
    context: typer.Context,
    product: Annotated[int, typer.Option(min=1, help="The product's id.")],
    stock: Annotated[int, typer.Option(min=1, help="Units on sale.")],
    name: Name = None,
    starts: Starts = None,
    ends: Ends = None,
    limit: Limit = None,
    price: Price = None,
    change_id: ChangeId = None,
    as_json: JsonOption = False,
) -> None:
    """Open a sale of a product. A product has at most one open sale.

    Examples:

      seckill sale create --product 1 --stock 100
      seckill sale create --product 1 --stock 100 --starts +10m --ends +2h --limit 2 --price 19.90 --name Lamp
    """
    fields = {"product_id": product, "stock": stock, **_fields(name, starts, ends, limit, price)}
    if "ends_at_ms" in fields and fields["ends_at_ms"] <= time.time_ns() // 1_000_000:
        raise WrongUsage(f"--ends ({moment(fields['ends_at_ms'])}) has passed: nobody could buy")
    change = change_id or uuid.uuid4().hex

    async def work() -> dict[str, Any]:
        async with front_of(client_settings(context)) as front:
            return await front.create_sale(fields, change_id=change)

    _show(run(_named(work, change)), as_json)


@commands.command("update")
def update(
    context: typer.Context,
    sale: SaleId,
    add_stock: Annotated[int | None, typer.Option(min=1, help="Units to put on sale besides.")] = None,
    remove_stock: Annotated[int | None, typer.Option(min=1, help="Units to take off; only unsold ones can be.")] = None,
    name: Name = None,
    starts: Starts = None,
    ends: Ends = None,
    limit: Limit = None,
    price: Price = None,
    change_id: ChangeId = None,
    as_json: JsonOption = False,
) -> None:
    """Change a sale: restock it, take units off, move its window, its limit, price or name.

    Examples:

      seckill sale update 1 --add-stock 50
      seckill sale update 1 --remove-stock 20 --ends +30m
    """
    if add_stock and remove_stock:
        raise WrongUsage("--add-stock and --remove-stock exclude each other: give one")
    fields = _fields(name, starts, ends, limit, price)
    if add_stock or remove_stock:
        fields["stock_delta"] = add_stock or -(remove_stock or 0)
    if not fields:
        raise WrongUsage(
            "nothing to change: give --add-stock, --remove-stock, --name, --starts, --ends, --limit or --price"
        )
    change = change_id or uuid.uuid4().hex

    async def work() -> dict[str, Any]:
        async with front_of(client_settings(context)) as front:
            return await front.update_sale(sale, fields, change_id=change)

    changed = run(_named(work, change))
    _show(changed, as_json)
    taken = changed.get("taken")
    if remove_stock and taken is not None and taken < remove_stock:
        note(f"seckill: only {taken} of {remove_stock} units were unsold and could be taken off")
        raise typer.Exit(1)


@commands.command("list")
def list_sales(
    context: typer.Context,
    product: Annotated[int | None, typer.Option(min=1, help="Only sales of this product.")] = None,
    state: Annotated[SaleState | None, typer.Option(help="Only sales in this state.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List sales with their counters.

    Examples:

      seckill sale list
      seckill sale list --product 1 --state open --json
    """

    async def work() -> list[dict[str, Any]]:
        async with front_of(client_settings(context)) as front:
            return await front.sales(product_id=product, state=state.value if state else None)

    sales = run(work())
    if as_json:
        print_json({"sales": sales})
        return
    columns = [
        "sale",
        "product",
        "name",
        "state",
        "starts",
        "ends",
        "limit",
        "price",
        "initial",
        "stock",
        "frozen",
        "sold",
    ]
    print_table(columns, [_row(sale) for sale in sales], spare=("limit", "price", "starts", "initial"))


@commands.command("show")
def show(context: typer.Context, sale: SaleId, as_json: JsonOption = False) -> None:
    """Show one sale, as its row and as Redis has it.

    Example:

      seckill sale show 1
    """

    async def work() -> dict[str, Any]:
        async with front_of(client_settings(context)) as front:
            return await front.sale(sale)

    _show(run(work()), as_json)


@commands.command("pause")
def pause(context: typer.Context, sale: SaleId, as_json: JsonOption = False) -> None:
    """Stop admitting orders; those already accepted run on.

    Example:

      seckill sale pause 1
    """
    _set_state(context, sale, "pause", as_json)


@commands.command("resume")
def resume(context: typer.Context, sale: SaleId, as_json: JsonOption = False) -> None:
    """Admit orders again after a pause.

    Example:

      seckill sale resume 1
    """
    _set_state(context, sale, "resume", as_json)


@commands.command("close")
def close(context: typer.Context, sale: SaleId, as_json: JsonOption = False) -> None:
    """End a sale for good; those already accepted run on.

    Example:

      seckill sale close 1
    """
    _set_state(context, sale, "close", as_json)


def _set_state(context: typer.Context, sale: int, action: str, as_json: bool) -> None:
    async def work() -> dict[str, Any]:
        async with front_of(client_settings(context)) as front:
            return await front.set_sale_state(sale, action)

    _show(run(work()), as_json)


async def _named(work: Any, change_id: str) -> dict[str, Any]:
    """Runs a change; when it is unknown whether it was made, says how to repeat it safely."""
    from seckill.client import FrontUnavailable, Problem

    try:
        changed: dict[str, Any] = await work()
    except (FrontUnavailable, Problem) as error:
        if getattr(error, "maybe_done", False) or getattr(error, "status", 0) >= 500:
            note(f"seckill: it is unknown whether the change was made; repeat it safely with --change-id {change_id}")
        raise
    return changed


def _fields(
    name: str | None, starts: str | None, ends: str | None, limit: int | None, price: str | None
) -> dict[str, Any]:
    """The options that were given, as the API names them."""
    now = datetime.now().astimezone()
    given = {
        "name": name,
        "starts_at_ms": _parsed("--starts", starts, lambda text: parse_moment(text, now=now)),
        "ends_at_ms": _parsed("--ends", ends, lambda text: parse_moment(text, now=now)),
        "per_user_limit": limit,
        "price_cents": _parsed("--price", price, parse_price),
    }
    starts_at, ends_at = given["starts_at_ms"], given["ends_at_ms"]
    if isinstance(starts_at, int) and isinstance(ends_at, int) and ends_at <= starts_at:
        raise WrongUsage(f"--ends ({moment(ends_at)}) is not after --starts ({moment(starts_at)})")
    return {key: value for key, value in given.items() if value is not None}


def _parsed(option: str, text: str | None, parse: Any) -> int | None:
    try:
        return None if text is None else int(parse(text))
    except ValueError as error:
        raise WrongUsage(f"{option}: {error}") from error


def _row(sale: dict[str, Any]) -> list[object]:
    return [
        sale["sale_id"], sale["product_id"], sale["name"], sale["state"],
        brief_moment(sale["starts_at_ms"]), brief_moment(sale["ends_at_ms"]), sale["per_user_limit"],
        f"{sale['price_cents'] / 100:.2f}", sale["initial"], sale["stock"], sale["frozen"], sale["sold"],
    ]  # fmt: skip


def _show(sale: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(sale)
        return
    lines = {
        "sale": sale["sale_id"],
        "product": sale["product_id"],
        "name": sale["name"] or "-",
        "state": sale["state"],
        "window": f"{moment(sale['starts_at_ms'])} to {moment(sale['ends_at_ms'])}",
        "limit": f"{sale['per_user_limit']} unit{'s' if sale['per_user_limit'] > 1 else ''} a buyer",
        "price": f"{sale['price_cents'] / 100:.2f}",
        "units": f"{sale['initial']} = {sale['stock']} in stock + {sale['frozen']} frozen + {sale['sold']} sold",
    }
    if sale.get("redis"):
        redis = sale["redis"]
        lines["redis"] = f"{redis['state']}, {redis['stock']} in stock, admission number {redis['number']}"
    for key, value in lines.items():
        say(f"{key:<9}{value}")
