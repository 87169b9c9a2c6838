"""The order service's branch of an XA transaction: the orders are written and prepared.

Everything that could make the commit wrong is found before, as in a Try, and refused in the same way. The `decision`
row stands in the same transaction: an order that took effect has one in every pattern.
"""

from __future__ import annotations

import time
from typing import Any

import grpc
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.crashpoints import CrashPoint, reach
from seckill.dtm.barrier import Raced
from seckill.dtm.protocol import ACTION, COMMIT, CONFIRM, ROLLBACK, XA, BranchContext
from seckill.dtm.serving import branch_context
from seckill.dtm.tcc_branch import InvalidRequest, decide
from seckill.dtm.xa_branch import XaBranches
from seckill.order import branches
from seckill.order.messages import group_of
from seckill.order.types import Group
from seckill.wire import order_pb2

Context = grpc.aio.ServicerContext[Any, Any]


async def create_orders(xa: XaBranches, request: order_pb2.CreateOrderRequest, context: Context) -> None:
    """Op `action` writes the orders, all or none, and prepares them; `commit` and `rollback` end that."""
    branch = branch_context(context, op=(ACTION, COMMIT, ROLLBACK), trans_type=XA)
    if branch.op != ACTION:
        await xa.finish(branch)
        reach(CrashPoint.ORDER_XA_COMMITTED if branch.op == COMMIT else CrashPoint.ORDER_XA_ROLLED_BACK)
        return
    if not request.items:
        raise InvalidRequest("items", "is empty")
    group = group_of(request, branch)
    await xa.run(branch, lambda session: create(session, branch, group, now_ms=_now_ms()))
    reach(CrashPoint.ORDER_XA_PREPARED)


async def create(session: AsyncSession, context: BranchContext, group: Group, *, now_ms: int) -> None:
    """Raises TryRefused naming the orders that cannot be written."""
    await branches.check(session, context, group)
    if await branches.write_some(session, context, group, now_ms=now_ms):
        raise Raced("an order was confirmed by another gid meanwhile")
    await decide(session, context, CONFIRM)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
