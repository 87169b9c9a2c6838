"""The saga's calls of the product service, and `productclient.Product`, the second article's name for it."""

from __future__ import annotations

import time
from typing import Any

import grpc
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from seckill.crashpoints import CrashPoint, reach
from seckill.dtm.barrier import in_transaction
from seckill.dtm.protocol import ACTION, COMPENSATE, MSG, SAGA, BranchContext
from seckill.dtm.saga_branch import ActionRefused, invalid_is_refused
from seckill.dtm.serving import branch_context
from seckill.product import holding, saga
from seckill.product.messages import group_of_one, in_range
from seckill.product.sales import SalePruned
from seckill.wire import product_pb2, productclient_pb2, productclient_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
Sessions = async_sessionmaker[AsyncSession]
DecrStockRequest = product_pb2.DecrStockRequest | productclient_pb2.DecrStockRequest


async def decr_stock(sessions: Sessions, request: DecrStockRequest, context: Context) -> None:
    """Takes units of the product; under both names. Those of a sale's order if the request holds one."""
    branch = branch_context(context, op=ACTION, trans_type=SAGA)
    if isinstance(request, product_pb2.DecrStockRequest) and request.HasField("item"):
        await _freeze(sessions, request, branch)
        reach(CrashPoint.SAGA_TAKEN_COMMITTED)
        return
    with invalid_is_refused():
        product_id, units = in_range("id", request.id, low=1), in_range("num", request.num, low=1)
    await in_transaction(sessions, lambda session: saga.sell(session, branch, product_id, units, now_ms=_now_ms()))


async def decr_stock_revert(sessions: Sessions, context: Context) -> None:
    """Gives back what the call's gid and branch have taken; under both names. A message's too, which is not sent."""
    branch = branch_context(context, op=COMPENSATE, trans_type=(SAGA, MSG))
    undo = holding.drop if branch.trans_type == MSG else saga.give_back
    await in_transaction(sessions, lambda session: undo(session, branch, now_ms=_now_ms()))
    reach(CrashPoint.PRODUCT_COMPENSATION_COMMITTED)


async def _freeze(sessions: Sessions, request: product_pb2.DecrStockRequest, branch: BranchContext) -> None:
    now_ms = _now_ms()
    with invalid_is_refused():
        group = group_of_one(request)
    try:
        row = await holding.taken_or_refused(
            sessions, branch, group, lambda session: holding.act(session, branch, group, now_ms=now_ms), now_ms=now_ms
        )
    except SalePruned as error:  # its own status would have the coordinator repeat the action for ever
        raise ActionRefused(str(error)) from error
    if row is not None:
        raise ActionRefused(f"order {row.order_id.hex()} is {row.state.name} {row.reason} of gid {row.gid or 'none'}")


class ProductClientService(productclient_pb2_grpc.ProductServicer):
    """`productclient.Product`."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def DecrStock(
        self, request: productclient_pb2.DecrStockRequest, context: Context
    ) -> productclient_pb2.DecrStockResponse:
        await decr_stock(self._sessions, request, context)
        return productclient_pb2.DecrStockResponse()

    async def DecrStockRevert(
        self, _request: productclient_pb2.DecrStockRequest, context: Context
    ) -> productclient_pb2.DecrStockResponse:
        await decr_stock_revert(self._sessions, context)
        return productclient_pb2.DecrStockResponse()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
