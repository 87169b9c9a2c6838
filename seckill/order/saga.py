"""A saga's branch of one order on no sale: the action writes it, the compensation closes it.

Works on the session that it is given, inside the caller's transaction; knows SQL and nothing of gRPC. The order's id
is given by gid and branch, so that a compensation finds the order of its own action and never the buyer's newest.
"""

from __future__ import annotations

from sqlalchemy import insert, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.domain.order import OrderId, derived_order_id, order_key
from seckill.dtm.barrier import Passage
from seckill.dtm.protocol import BranchContext
from seckill.dtm.saga_branch import ActionRefused, run_action, run_compensation
from seckill.order.tables import orders
from seckill.order.types import OrderState, SagaOrder


def order_id_of(context: BranchContext, product_id: int) -> OrderId:
    """The id of the order that this gid and branch make."""
    return derived_order_id(product_id, context.gid, context.branch_id, at_ms=0)


async def create(session: AsyncSession, context: BranchContext, order: SagaOrder, *, now_ms: int) -> Passage:
    """Action: writes the order. Raises ActionRefused when gid and branch have made one in another pattern."""

    async def write(session: AsyncSession) -> None:
        try:
            await session.execute(insert(orders), _row(context, order, now_ms))
        except IntegrityError as error:
            problem = f"gid {context.gid} branch {context.branch_id} made an order in another pattern"
            raise ActionRefused(problem) from error

    return await run_action(session, context, write)


async def close(session: AsyncSession, context: BranchContext, *, now_ms: int) -> Passage:
    """Compensation: closes the order of this gid and branch, and no other."""

    async def mark(session: AsyncSession) -> None:
        own = update(orders).where(orders.c.gid == context.gid, orders.c.branch_id == context.branch_id)
        await session.execute(own.values(status=OrderState.CLOSED.value, updated_at_ms=now_ms))

    return await run_compensation(session, context, mark)


def _row(context: BranchContext, order: SagaOrder, now_ms: int) -> dict[str, object]:
    return {
        "order_id": order_key(order_id_of(context, order.product_id)),
        "product_id": order.product_id,
        "sale_id": 0,
        "user_id": order.user_id,
        "quantity": order.quantity,
        "price_cents": order.price_cents,
        "status": OrderState.CONFIRMED.value,
        "gid": context.gid,
        "branch_id": context.branch_id,
        "admitted_at_ms": 0,
        "created_at_ms": now_ms,
        "updated_at_ms": now_ms,
        "postage": order.postage,
        "receive_address_id": order.receive_address_id,
    }
