"""Calls of sagas and messages of the order service, and `orderclient.Order`, the second article's name for it."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import grpc
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from seckill.crashpoints import CrashPoint, reach
from seckill.domain.order import OrderId, order_id_from_key
from seckill.dtm.barrier import in_transaction
from seckill.dtm.protocol import ACTION, COMPENSATE, MSG, SAGA, BranchContext
from seckill.dtm.saga_branch import invalid_is_refused
from seckill.dtm.serving import branch_context
from seckill.order import saga
from seckill.order.messages import group_of_one, saga_order
from seckill.wire import order_pb2, orderclient_pb2, orderclient_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
Sessions = async_sessionmaker[AsyncSession]
CreateRequest = order_pb2.AddOrderReq | orderclient_pb2.CreateRequest


async def create_order(sessions: Sessions, request: CreateRequest, context: Context) -> OrderId:
    """Writes the order of the call's gid and branch; under both names. That of a sale if the request holds one."""
    if isinstance(request, order_pb2.AddOrderReq) and request.HasField("item"):
        return await _create_of_sale(sessions, request, branch_context(context, op=ACTION, trans_type=(SAGA, MSG)))
    branch = branch_context(context, op=ACTION, trans_type=SAGA)
    with invalid_is_refused():
        order = saga_order(request)
    await in_transaction(sessions, lambda session: saga.create(session, branch, order, now_ms=_now_ms()))
    return saga.order_id_of(branch, order.product_id)


async def _create_of_sale(sessions: Sessions, request: order_pb2.AddOrderReq, branch: BranchContext) -> OrderId:
    with invalid_is_refused() if branch.trans_type == SAGA else nullcontext():  # a message's action may not refuse
        group = group_of_one(request)
    await in_transaction(sessions, lambda session: saga.create_of_sale(session, branch, group, now_ms=_now_ms()))
    reach(CrashPoint.ORDER_ACTION_COMMITTED)
    return order_id_from_key(group.product_id, group.orders[0].order_id)


async def revert_order(sessions: Sessions, context: Context) -> None:
    """Closes the order of the call's gid and branch; under both names."""
    branch = branch_context(context, op=COMPENSATE, trans_type=(SAGA, MSG))
    await in_transaction(sessions, lambda session: saga.close(session, branch, now_ms=_now_ms()))
    reach(CrashPoint.ORDER_COMPENSATION_COMMITTED)


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
