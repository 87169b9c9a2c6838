"""The saga's calls of the order service, and `orderclient.Order`, the second article's name for it."""

from __future__ import annotations

import time
from typing import Any

import grpc
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from seckill.domain.order import OrderId
from seckill.dtm.barrier import in_transaction
from seckill.dtm.protocol import ACTION, COMPENSATE
from seckill.dtm.saga_branch import invalid_is_refused
from seckill.dtm.serving import branch_context
from seckill.order import saga
from seckill.order.messages import saga_order
from seckill.wire import order_pb2, orderclient_pb2, orderclient_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
Sessions = async_sessionmaker[AsyncSession]
CreateRequest = order_pb2.AddOrderReq | orderclient_pb2.CreateRequest


async def create_order(sessions: Sessions, request: CreateRequest, context: Context) -> OrderId:
    """Writes the order of the call's gid and branch; under both names."""
    branch = branch_context(context, op=ACTION, trans_type="saga")
    with invalid_is_refused():
        order = saga_order(request)
    await in_transaction(sessions, lambda session: saga.create(session, branch, order, now_ms=_now_ms()))
    return saga.order_id_of(branch, order.product_id)


async def revert_order(sessions: Sessions, context: Context) -> None:
    """Closes the order of the call's gid and branch; under both names."""
    branch = branch_context(context, op=COMPENSATE, trans_type="saga")
    await in_transaction(sessions, lambda session: saga.close(session, branch, now_ms=_now_ms()))


class OrderClientService(orderclient_pb2_grpc.OrderServicer):
    """`orderclient.Order`."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def Create(self, request: orderclient_pb2.CreateRequest, context: Context) -> orderclient_pb2.CreateResponse:
        await create_order(self._sessions, request, context)
        return orderclient_pb2.CreateResponse()

    async def CreateRevert(
        self, _request: orderclient_pb2.CreateRequest, context: Context
    ) -> orderclient_pb2.CreateResponse:
        await revert_order(self._sessions, context)
        return orderclient_pb2.CreateResponse()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
