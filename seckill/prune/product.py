"""The product database: sales whose time has come, and their reservations. On the session that the caller gives."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Select, and_, case, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.dtm.database import affected, in_chunks
from seckill.product.branches import OWN_STOCK
from seckill.product.decide import State
from seckill.product.sales import CLOSED
from seckill.product.tables import sale, stock_reservation
from seckill.prune.rules import EndedSale

_OPEN = (State.FROZEN.value, State.RELEASED.value)
_ENDED_OWN = (State.SOLD.value, State.RELEASED.value)

Cursor = tuple[int, bytes]
"""Where a walk over the reservations of a sale stands: buyer and order key, the order of their index."""

START: Cursor = (-1, b"")


async def ended_sales(session: AsyncSession, *, cutoff_ms: int) -> list[tuple[int, int, bool]]:
    """(sale id, product id, whether its reservations went before) of the sales that ended before the cut-off."""
    ended = select(sale.c.sale_id, sale.c.product_id, sale.c.pruned_at_ms).where(sale.c.ends_at_ms < cutoff_ms)
    found = await session.execute(ended.order_by(sale.c.sale_id))
    return [(sale_id, product_id, pruned_at_ms is not None) for sale_id, product_id, pruned_at_ms in found]


async def read_sale(session: AsyncSession, sale_id: int) -> EndedSale:
    """The sale's row, locked until the transaction ends: with it nothing can happen to the reservations either."""
    row = (await session.execute(select(sale).where(sale.c.sale_id == sale_id).with_for_update())).one()
    rows = stock_reservation.c
    totals = select(
        func.coalesce(func.sum(case((rows.state.in_(_OPEN), 1), else_=0)), 0),
        func.coalesce(func.sum(case((rows.state == State.SOLD.value, rows.quantity), else_=0)), 0),
        func.coalesce(func.max(rows.updated_at_ms), 0),
    ).where(rows.sale_id == sale_id)
    open_orders, sold_units, last_change_ms = (await session.execute(totals)).one()
    return EndedSale(
        sale_id=sale_id,
        product_id=row.product_id,
        state=row.state,
        ends_at_ms=row.ends_at_ms,
        updated_at_ms=row.updated_at_ms,
        frozen=row.frozen,
        sold=row.sold,
        open_orders=int(open_orders),
        sold_units=int(sold_units),
        last_change_ms=int(last_change_ms),
    )


async def close_for_ever(session: AsyncSession, sale_id: int, *, now_ms: int) -> None:
    """From now on the sale takes no order and no change: before the first of its reservations goes."""
    row = update(sale).where(sale.c.sale_id == sale_id, sale.c.state == CLOSED, sale.c.pruned_at_ms.is_(None))
    await session.execute(row.values(pruned_at_ms=now_ms))


async def pruned_sales(session: AsyncSession) -> frozenset[int]:
    return frozenset(await session.scalars(select(sale.c.sale_id).where(sale.c.pruned_at_ms.is_not(None))))


async def reservations_of_sale(
    session: AsyncSession, sale_id: int, after: Cursor, *, stays: Collection[bytes], limit: int
) -> tuple[list[bytes], Cursor | None]:
    """Keys that may go, of the next piece of an ended sale; None instead of a cursor at the end."""
    found = (await session.execute(_piece(sale_id, after, limit))).all()
    return [row.order_id for row in found if row.order_id not in stays], _next(found, limit)


async def reservations_of_products(
    session: AsyncSession, after: Cursor, *, cutoff_ms: int, unfinished: Collection[str], limit: int
) -> tuple[list[bytes], Cursor | None]:
    """The same of reservations that took units from a product's own stock, under an id that only their gid gives.

    What was rejected before a sale was known (no gid) stays: nothing else would refuse the order in a later sale.
    """
    found = (await session.execute(_piece(OWN_STOCK, after, limit))).all()
    keys = [
        row.order_id
        for row in found
        if row.gid and row.state in _ENDED_OWN and row.updated_at_ms < cutoff_ms and row.gid not in unfinished
    ]
    return keys, _next(found, limit)


def _piece(sale_id: int, after: Cursor, limit: int) -> Select[tuple[Any, ...]]:
    rows = stock_reservation.c
    user_id, order_id = after
    later = or_(rows.user_id > user_id, and_(rows.user_id == user_id, rows.order_id > order_id))
    columns = (rows.user_id, rows.order_id, rows.state, rows.gid, rows.updated_at_ms)
    return select(*columns).where(rows.sale_id == sale_id, later).order_by(rows.user_id, rows.order_id).limit(limit)


def _next(found: Sequence[Any], limit: int) -> Cursor | None:
    return (found[-1].user_id, found[-1].order_id) if len(found) == limit else None


async def delete_reservations(session: AsyncSession, keys: Sequence[bytes]) -> int:
    """Those that have ended; the number of rows."""
    rows = stock_reservation.c
    deleted = 0
    for chunk in in_chunks(keys):
        ended = delete(stock_reservation).where(rows.order_id.in_(chunk), rows.state != State.FROZEN.value)
        deleted += await affected(session, ended)
    return deleted


async def reserving_gids(session: AsyncSession, gids: Sequence[str]) -> dict[str, bool]:
    """Of these gids those that have reservations, and whether one of them is frozen."""
    rows = stock_reservation.c
    found: dict[str, bool] = {}
    for chunk in in_chunks(gids):
        states = select(rows.gid, func.min(rows.state)).where(rows.gid.in_(chunk)).group_by(rows.gid)
        found |= {gid: lowest == State.FROZEN.value for gid, lowest in await session.execute(states)}
    return found
