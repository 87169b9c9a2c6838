"""The saga's calls of the product service, and `productclient.Product`, the second article's name for it."""

from __future__ import annotations

import time
from typing import Any

import grpc
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from seckill.dtm.barrier import in_transaction
from seckill.dtm.protocol import ACTION, COMPENSATE
from seckill.dtm.saga_branch import invalid_is_refused
from seckill.dtm.serving import branch_context
from seckill.product import saga
from seckill.product.messages import in_range
from seckill.wire import product_pb2, productclient_pb2, productclient_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
Sessions = async_sessionmaker[AsyncSession]
DecrStockRequest = product_pb2.DecrStockRequest | productclient_pb2.DecrStockRequest


async def decr_stock(sessions: Sessions, request: DecrStockRequest, context: Context) -> None:
    """Sells units of the product; under both names."""
    branch = branch_context(context, op=ACTION, trans_type="saga")
    with invalid_is_refused():
        product_id, units = in_range("id", request.id, low=1), in_range("num", request.num, low=1)
    await in_transaction(sessions, lambda session: saga.sell(session, branch, product_id, units, now_ms=_now_ms()))


async def decr_stock_revert(sessions: Sessions, context: Context) -> None:
    """Takes back what the call's gid and branch have sold; under both names."""
    branch = branch_context(context, op=COMPENSATE, trans_type="saga")
    await in_transaction(sessions, lambda session: saga.give_back(session, branch, now_ms=_now_ms()))


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
