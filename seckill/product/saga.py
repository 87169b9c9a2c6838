"""A saga's branch: the action takes units, the compensation gives back what the action of its gid and branch took.

Works on the session that it is given, inside the caller's transaction; knows SQL and nothing of gRPC. Units that are on
no sale are sold at once, under the key of gid and branch; those of an order of a sale are frozen
(`seckill.product.holding`). The compensation finds what it gives back by gid and branch, whatever its payload says. The
product's or sale's row is locked before the reservation is written, as everywhere.
"""

from __future__ import annotations

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.crashpoints import CrashPoint, reach
from seckill.domain.order import derived_order_id, order_key
from seckill.dtm.barrier import Passage, Raced
from seckill.dtm.database import affected
from seckill.dtm.protocol import BranchContext
from seckill.dtm.saga_branch import ActionRefused, run_action
from seckill.dtm.tcc_branch import run_cancel
from seckill.product import branches, products
from seckill.product.branches import OWN_STOCK
from seckill.product.decide import State
from seckill.product.tables import stock_reservation as rows


async def sell(session: AsyncSession, context: BranchContext, product_id: int, units: int, *, now_ms: int) -> Passage:
    """Action: sells units of the product. Raises ActionRefused when it has too few, or there is no such product."""

    async def take(session: AsyncSession) -> None:
        stock = await products.lock_stock(session, product_id)
        if stock is None or stock < units:
            left = "does not exist" if stock is None else f"has {stock} units left"
            raise ActionRefused(f"product {product_id} {left}, {units} were asked for")
        await products.add_stock(session, product_id, -units, now_ms=now_ms)
        await _write(session, context, product_id, units, now_ms=now_ms)

    return await run_action(session, context, take)


async def give_back(session: AsyncSession, context: BranchContext, *, now_ms: int) -> Passage:
    """Compensation: the units that this gid and branch have taken are there for others again.

    Raises DecisionLost when those of a sale were sold because the saga had finished.
    """
    own = (
        rows.c.gid == context.gid, rows.c.branch_id == context.branch_id,
        rows.c.sale_id == OWN_STOCK, rows.c.state == State.SOLD.value,
    )  # fmt: skip

    async def release(session: AsyncSession) -> None:
        # Only this compensation changes the row of its own action, and the barrier lets it through once.
        sold = (await session.execute(select(rows.c.product_id, rows.c.quantity).where(*own))).one_or_none()
        if sold is None:
            await branches.release_frozen(session, context, now_ms=now_ms)
            return
        product_id, units = sold
        await products.add_stock(session, product_id, units, now_ms=now_ms)
        released = update(rows).where(*own).values(state=State.RELEASED.value, updated_at_ms=now_ms)
        if await affected(session, released) != 1:
            raise Raced("the reservation of this branch changed meanwhile")

    passage = await run_cancel(session, context, release)
    reach(CrashPoint.PRODUCT_COMPENSATION_WRITTEN)
    return passage


async def _write(session: AsyncSession, context: BranchContext, product_id: int, units: int, *, now_ms: int) -> None:
    values = {
        "order_id": order_key(derived_order_id(product_id, context.gid, context.branch_id, at_ms=0)),
        "product_id": product_id,
        "sale_id": OWN_STOCK,
        "user_id": 0,
        "quantity": units,
        "state": State.SOLD.value,
        "reason": "",
        "gid": context.gid,
        "branch_id": context.branch_id,
        "admitted_at_ms": 0,
        "created_at_ms": now_ms,
        "updated_at_ms": now_ms,
    }
    try:
        await session.execute(insert(rows), values)
    except IntegrityError as error:
        raise ActionRefused(f"gid {context.gid} branch {context.branch_id} took units in another pattern") from error
