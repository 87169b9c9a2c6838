"""The branch of one order in a saga or a two-phase message: the action writes it, the compensation closes it.

Works on the session that it is given, inside the caller's transaction; knows SQL and nothing of gRPC. An order on no
sale has an id that gid and branch give; that of a sale has its own. A compensation finds the order of its own action by
gid and branch, and never the buyer's newest.

The action on an order of a sale writes the `decision` row as well, its compensation turns it: both branches of a gid
tell in every pattern how they ended. Nobody else decides here, the barrier alone keeps the two apart.
"""

from __future__ import annotations

from sqlalchemy import insert, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.crashpoints import CrashPoint, reach
from seckill.domain.order import OrderId, derived_order_id, order_key
from seckill.dtm.barrier import Passage, Raced
from seckill.dtm.protocol import CONFIRM, MSG, BranchContext
from seckill.dtm.saga_branch import ActionRefused, run_action, run_compensation
from seckill.dtm.tcc_branch import decide, take_back
from seckill.order import branches
from seckill.order.tables import orders
from seckill.order.types import Group, OrderState, SagaOrder


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


async def create_of_sale(session: AsyncSession, context: BranchContext, group: Group, *, now_ms: int) -> Passage:
    """Action: writes the one order of the group, over a closed row.

    In a saga it raises ActionRefused when another gid has confirmed the order, or it came with other contents. A
    message's action may not refuse: what it finds confirmed stays as it is.
    """

    async def write(session: AsyncSession) -> None:
        await decide(session, context, CONFIRM)
        if context.trans_type == MSG:
            await branches.write_all(session, context, group, now_ms=now_ms)
            return
        for order_id, reason in (await branches.refusals(session, context, group)).items():
            raise ActionRefused(f"order {order_id.hex()}: {reason}")
        if await branches.write_some(session, context, group, now_ms=now_ms):
            raise Raced("the order was confirmed by another gid meanwhile")

    passage = await run_action(session, context, write)
    reach(CrashPoint.ORDER_ACTION_WRITTEN)
    return passage


async def close(session: AsyncSession, context: BranchContext, *, now_ms: int) -> Passage:
    """Compensation: closes the order of this gid and branch, and no other."""

    async def mark(session: AsyncSession) -> None:
        own = update(orders).where(orders.c.gid == context.gid, orders.c.branch_id == context.branch_id)
        await session.execute(own.values(status=OrderState.CLOSED.value, updated_at_ms=now_ms))
        await take_back(session, context)

    passage = await run_compensation(session, context, mark)
    reach(CrashPoint.ORDER_COMPENSATION_WRITTEN)
    return passage


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
