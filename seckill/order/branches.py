"""Branch 02 of a global transaction: Try checks, Confirm writes the orders, Cancel closes them.

Works on the session that it is given, inside the caller's transaction; knows SQL and nothing of gRPC. Confirm may not
refuse, so everything that could make it fail is found in Try, which takes all orders or none.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import structlog
from prometheus_client import Counter
from sqlalchemy import Insert, and_, case, func, literal_column, or_, select, update
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.crashpoints import CrashPoint, reach
from seckill.domain.reasons import Rejection
from seckill.dtm.barrier import Passage
from seckill.dtm.database import MYSQL, UnsupportedDialect, dialect_of, in_chunks
from seckill.dtm.protocol import BranchContext
from seckill.dtm.tcc_branch import TryRefused, run_cancel, run_confirm, run_try
from seckill.order.messages import refused_metadata
from seckill.order.tables import orders
from seckill.order.types import Group, NewOrder, OrderState, StoredOrder

OVERTAKEN = Counter(
    "order_confirm_overtaken_total",
    "Orders that a Confirm could not write, because another transaction's stand confirmed. Each one needs a person.",
)

log = structlog.get_logger(__name__)


_COLUMNS = (
    orders.c.order_id, orders.c.product_id, orders.c.sale_id, orders.c.user_id, orders.c.quantity,
    orders.c.price_cents, orders.c.status, orders.c.gid, orders.c.created_at_ms,
)  # fmt: skip
_OVERWRITTEN = (
    "product_id", "sale_id", "user_id", "quantity", "price_cents", "gid", "branch_id",
    "admitted_at_ms", "created_at_ms", "updated_at_ms", "status",
)  # fmt: skip


# --- the branch ------------------------------------------------------------------------------------------------


async def try_group(session: AsyncSession, context: BranchContext, group: Group) -> None:
    """Checks all that Confirm could fail on. Raises TryRefused naming the orders that cannot be written."""

    async def look(session: AsyncSession) -> bytes:
        await check(session, context, group)
        return b""

    await run_try(session, context, look)
    reach(CrashPoint.ORDER_TRY_WRITTEN)


async def confirm(session: AsyncSession, context: BranchContext, group: Group, *, now_ms: int) -> Passage:
    """Writes the group's orders; one that another gid has confirmed stays as it is."""

    async def write(session: AsyncSession) -> None:
        await write_all(session, context, group, now_ms=now_ms)

    passage = await run_confirm(session, context, write)
    reach(CrashPoint.ORDER_CONFIRM_WRITTEN)
    return passage


async def cancel(session: AsyncSession, context: BranchContext, *, now_ms: int) -> Passage:
    """Closes the orders of this gid and branch, and of no other."""

    async def close(session: AsyncSession) -> None:
        own = update(orders).where(orders.c.gid == context.gid, orders.c.branch_id == context.branch_id)
        await session.execute(own.values(status=OrderState.CLOSED.value, updated_at_ms=now_ms))

    passage = await run_cancel(session, context, close)
    reach(CrashPoint.ORDER_CANCEL_WRITTEN)
    return passage


async def check(session: AsyncSession, context: BranchContext, group: Group) -> None:
    """Raises TryRefused naming the orders that cannot be written for this gid."""
    refused = await refusals(session, context, group)
    if refused:
        raise TryRefused(f"{len(refused)} of {len(group.orders)} orders are refused", refused_metadata(refused))


async def refusals(session: AsyncSession, context: BranchContext, group: Group) -> dict[bytes, str]:
    """The orders that cannot be written for this gid, and why."""
    return _out_of_range(group) | await _conflicts(session, context, group)


async def write_all(session: AsyncSession, context: BranchContext, group: Group, *, now_ms: int) -> None:
    """Writes the orders and refuses none; one that another gid has confirmed stays as it is, and a person is told."""
    missing = await write_some(session, context, group, now_ms=now_ms)
    if missing:
        OVERTAKEN.inc(missing)
        log.error("confirm_overtaken", gid=context.gid, branch_id=context.branch_id, orders=missing)


async def write_some(session: AsyncSession, context: BranchContext, group: Group, *, now_ms: int) -> int:
    """Writes the group's orders, over closed ones; how many stand confirmed by another gid, and were left alone."""
    rows = [_row(context, group, order, now_ms) for order in group.orders]
    await session.execute(_upsert(dialect_of(session)), rows)  # the driver sends a list as one statement
    return len(rows) - await _confirmed_by(session, context)


def _out_of_range(group: Group) -> dict[bytes, str]:
    return {
        order.order_id: Rejection.INVALID_ORDER
        for order in group.orders
        if order.user_id < 1 or order.quantity < 1 or order.admitted_at_ms < 0
    }


async def _conflicts(session: AsyncSession, context: BranchContext, group: Group) -> dict[bytes, str]:
    wanted = {order.order_id: order for order in group.orders}
    refused: dict[bytes, str] = {}
    for chunk in in_chunks(list(wanted)):
        for row in await _fetch(session, orders.c.order_id.in_(chunk)):
            order = wanted[row.order_id]
            same = (row.product_id, row.sale_id, row.user_id, row.quantity) == (
                group.product_id, group.sale_id, order.user_id, order.quantity,
            )  # fmt: skip
            taken = row.state is OrderState.CONFIRMED and row.gid != context.gid
            if taken or not same:
                refused[row.order_id] = Rejection.ORDER_CONFLICT
    return refused


def _row(context: BranchContext, group: Group, order: NewOrder, now_ms: int) -> dict[str, Any]:
    return {
        "order_id": order.order_id,
        "product_id": group.product_id,
        "sale_id": group.sale_id,
        "user_id": order.user_id,
        "quantity": order.quantity,
        "price_cents": group.price_cents,
        "status": OrderState.CONFIRMED.value,
        "gid": context.gid,
        "branch_id": context.branch_id,
        "admitted_at_ms": order.admitted_at_ms,
        "created_at_ms": now_ms,
        "updated_at_ms": now_ms,
    }


@cache
def _upsert(dialect: str) -> Insert:
    """An insert that writes over a closed order and leaves a confirmed one alone."""
    if dialect == "sqlite":
        lite = sqlite.insert(orders)
        values = {name: lite.excluded[name] for name in _OVERWRITTEN}
        return lite.on_conflict_do_update(
            index_elements=[orders.c.order_id], set_=values, where=orders.c.status == OrderState.CLOSED.value
        )
    if dialect in MYSQL:
        own = mysql.insert(orders)
        # A literal: the driver joins the rows into one statement, and only the VALUES part may hold parameters then.
        closed = orders.c.status == literal_column(str(OrderState.CLOSED.value))
        # Assigned from left to right, each seeing what the ones before it wrote: the status has to be the last.
        return own.on_duplicate_key_update(
            [(name, case((closed, own.inserted[name]), else_=orders.c[name])) for name in _OVERWRITTEN]
        )
    raise UnsupportedDialect(dialect)


async def _confirmed_by(session: AsyncSession, context: BranchContext) -> int:
    own = select(func.count()).where(
        orders.c.gid == context.gid,
        orders.c.branch_id == context.branch_id,
        orders.c.status == OrderState.CONFIRMED.value,
    )
    return int(await session.scalar(own) or 0)


# --- reading ---------------------------------------------------------------------------------------------------


async def find_order(session: AsyncSession, order_id: bytes) -> StoredOrder | None:
    found = await _fetch(session, orders.c.order_id == order_id)
    return found[0] if found else None


async def orders_of_gid(session: AsyncSession, gid: str) -> list[StoredOrder]:
    """What a transaction has written, closed ones included."""
    return await _fetch(session, orders.c.gid == gid)


async def orders_of(
    session: AsyncSession, user_id: int, *, limit: int, before: StoredOrder | None = None
) -> list[StoredOrder]:
    """A buyer's orders, newest first; with `before`, only those after it in this order."""
    where = orders.c.user_id == user_id
    if before is not None:
        at_ms = orders.c.created_at_ms
        older = or_(
            at_ms < before.created_at_ms,
            and_(at_ms == before.created_at_ms, orders.c.order_id < before.order_id),
        )
        where = and_(where, older)
    return await _fetch(session, where, newest=limit)


async def _fetch(session: AsyncSession, where: Any, *, newest: int | None = None) -> list[StoredOrder]:
    statement = select(*_COLUMNS).where(where)
    if newest is not None:
        statement = statement.order_by(orders.c.created_at_ms.desc(), orders.c.order_id.desc()).limit(newest)
    found = await session.execute(statement)
    return [
        StoredOrder(order_id, product_id, sale_id, user_id, quantity, price_cents, OrderState(status), gid, created)
        for order_id, product_id, sale_id, user_id, quantity, price_cents, status, gid, created in found
    ]
