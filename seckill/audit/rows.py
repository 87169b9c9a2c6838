"""The rows in question, by identity: as they are now. Reads only; decides nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Table, select
from sqlalchemy.ext.asyncio import AsyncConnection

from seckill.audit.facts import OrderRow, ReservationRow, State
from seckill.audit.stores import Stores, snapshot
from seckill.audit.sums import ORDER_DECISIONS, PRODUCT_DECISIONS
from seckill.domain.order import order_id_from_key
from seckill.dtm.database import in_chunks
from seckill.order.tables import orders
from seckill.order.types import OrderState
from seckill.product.decide import State as RowState
from seckill.product.tables import stock_reservation as reservations

BUYERS_MAX = 1_000
"""Buyers of a sale above its limit whose orders are fetched."""

STATES = {
    RowState.FROZEN: State.FROZEN,
    RowState.SOLD: State.SOLD,
    RowState.RELEASED: State.RELEASED,
    RowState.REJECTED: State.REJECTED,
}

Key = tuple[int, bytes]
"""Product id, and the order's key in SQL."""


@dataclass(slots=True)
class Suspects:
    """What does not fit together at first sight, by identity."""

    keys: set[Key] = field(default_factory=set)
    gids: set[str] = field(default_factory=set)
    buyers: dict[int, list[int]] = field(default_factory=dict)  # sale id → user ids


@dataclass(slots=True)
class Rows:
    reservations: list[ReservationRow] = field(default_factory=list)
    orders: list[OrderRow] = field(default_factory=list)
    product_decisions: dict[str, str] = field(default_factory=dict)
    order_decisions: dict[str, str] = field(default_factory=dict)


async def look(stores: Stores, suspects: Suspects, products: Mapping[int, int]) -> Rows:
    """The rows of the suspects as they are now, product's first; without what is of other sales."""
    rows = Rows()
    async with snapshot(stores, "product") as product:
        for sale_id, users in suspects.buyers.items():
            suspects.keys |= await _keys_of_buyers(product, sale_id, users)
        keys = [key for _, key in suspects.keys]
        rows.reservations = [
            row for row in await _reservation_rows(product, keys) if row.sale_id in products or not row.sale_id
        ]
        gids = suspects.gids | {row.gid for row in rows.reservations if row.gid}
        foreign = await _foreign_gids(product, reservations, gids, products)
        rows.product_decisions = await _decisions(product, PRODUCT_DECISIONS, gids)
    async with snapshot(stores, "order") as order:
        rows.orders = [row for row in await _order_rows(order, keys) if row.sale_id in products]
        more = {row.gid for row in rows.orders} - gids
        foreign |= await _foreign_gids(order, orders, gids | more, products)
        rows.order_decisions = await _decisions(order, ORDER_DECISIONS, gids | more)
    if more:
        async with snapshot(stores, "product") as product:
            foreign |= await _foreign_gids(product, reservations, more, products)
            rows.product_decisions |= await _decisions(product, PRODUCT_DECISIONS, more)
    rows.product_decisions = {gid: op for gid, op in rows.product_decisions.items() if gid not in foreign}
    rows.order_decisions = {gid: op for gid, op in rows.order_decisions.items() if gid not in foreign}
    return rows


async def _keys_of_buyers(product: AsyncConnection, sale_id: int, users: Sequence[int]) -> set[Key]:
    row, found = reservations.c, set()
    for part in in_chunks(users[:BUYERS_MAX]):
        theirs = select(row.product_id, row.order_id).where(row.sale_id == sale_id, row.user_id.in_(part))
        found |= {(product_id, key) for product_id, key in await product.execute(theirs)}
    return found


async def _reservation_rows(product: AsyncConnection, keys: Sequence[bytes]) -> list[ReservationRow]:
    return [
        ReservationRow(
            order_id=order_id_from_key(row.product_id, row.order_id),
            sale_id=row.sale_id,
            user_id=row.user_id,
            quantity=row.quantity,
            state=STATES[RowState(row.state)],
            reason=row.reason,
            gid=row.gid,
        )
        for part in in_chunks(keys)
        for row in await product.execute(select(reservations).where(reservations.c.order_id.in_(part)))
        # An order that came past the front and was refused has no sale and no gid.
        if row.sale_id or not row.gid
    ]


async def _order_rows(order: AsyncConnection, keys: Sequence[bytes]) -> list[OrderRow]:
    return [
        OrderRow(
            order_id=order_id_from_key(row.product_id, row.order_id),
            sale_id=row.sale_id,
            user_id=row.user_id,
            quantity=row.quantity,
            confirmed=row.status == OrderState.CONFIRMED,
            gid=row.gid,
        )
        for part in in_chunks(keys)
        for row in await order.execute(select(orders).where(orders.c.order_id.in_(part)))
    ]


async def _foreign_gids(
    connection: AsyncConnection, table: Table, gids: Collection[str], products: Mapping[int, int]
) -> set[str]:
    """Gids of other sales: not chosen, pruned, or a product's own stock, which callers use that know no sales."""
    found: set[str] = set()
    for part in in_chunks(sorted(gids)):
        owners = select(table.c.gid, table.c.sale_id).where(table.c.gid.in_(part)).distinct()
        found |= {gid for gid, sale_id in await connection.execute(owners) if sale_id not in products}
    return found


async def _decisions(connection: AsyncConnection, table: Table, gids: Collection[str]) -> dict[str, str]:
    return {
        gid: op
        for part in in_chunks(sorted(gids))
        for gid, op in await connection.execute(select(table.c.gid, table.c.op).where(table.c.gid.in_(part)))
    }
