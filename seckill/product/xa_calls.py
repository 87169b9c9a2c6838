"""The product service's branch of an XA transaction: what was decided is written sold or rejected, and prepared.

Nobody sees any of it before the coordinator has it committed, so nothing is frozen. The `decision` row stands in the
same transaction: a row that took effect has one in every pattern.
"""

from __future__ import annotations

import time
from typing import Any

import grpc
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.crashpoints import CrashPoint, reach
from seckill.dtm.protocol import ACTION, COMMIT, CONFIRM, ROLLBACK, XA, BranchContext
from seckill.dtm.serving import branch_context
from seckill.dtm.tcc_branch import decide
from seckill.dtm.xa_branch import XaBranches
from seckill.product import sales
from seckill.product.branches import units_of, verdicts_of
from seckill.product.decide import Group, State
from seckill.product.messages import group_of, reservation_message
from seckill.product.reservations import write_verdicts
from seckill.wire import product_pb2

Context = grpc.aio.ServicerContext[Any, Any]
Response = product_pb2.UpdateProductStockResponse


async def sell_stock(xa: XaBranches, request: product_pb2.UpdateProductStockRequest, context: Context) -> Response:
    """Op `action` sells what each order may have and prepares that; `commit` and `rollback` end it."""
    branch = branch_context(context, op=(ACTION, COMMIT, ROLLBACK), trans_type=XA)
    if branch.op != ACTION:
        await xa.finish(branch)
        reach(CrashPoint.PRODUCT_XA_COMMITTED if branch.op == COMMIT else CrashPoint.PRODUCT_XA_ROLLED_BACK)
        return Response()
    group = group_of(request, sale_id_min=1)
    reply = await xa.run(branch, lambda session: sell(session, branch, group, now_ms=_now_ms()))
    reach(CrashPoint.PRODUCT_XA_PREPARED)
    return reply


async def sell(session: AsyncSession, context: BranchContext, group: Group, *, now_ms: int) -> Response:
    """One outcome per order: sold, rejected, or another transaction's row as it stands."""
    verdicts = await verdicts_of(session, group)
    outcomes = await write_verdicts(
        session, group, verdicts, gid=context.gid, branch_id=context.branch_id, now_ms=now_ms, taken=State.SOLD
    )
    await sales.shift(session, group.sale_id, stock=-units_of(verdicts), sold=units_of(verdicts))
    if units_of(verdicts):  # a group that was wholly refused has no other branch that could agree
        await decide(session, context, CONFIRM)
    return Response(outcomes=map(reservation_message, outcomes))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
