"""The order service on gRPC: messages, metadata and statuses. What it checks and writes is in its neighbours.

A handler reads the request, runs one transaction, and answers; every error is raised and becomes a status in
`seckill.dtm.serving`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import cache, partial
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.empty_pb2 import Empty
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from seckill.crashpoints import CrashPoint, reach
from seckill.domain.order import parse_order_id
from seckill.draining import Drain
from seckill.dtm.barrier import in_transaction
from seckill.dtm.database import create_engine
from seckill.dtm.protocol import CANCEL, CONFIRM, TRY
from seckill.dtm.serving import BranchPort, BranchServer, Status, branch_context, serve_on_database
from seckill.dtm.tcc_branch import InvalidRequest
from seckill.dtm.xa_branch import XaBranches
from seckill.order import branches
from seckill.order.messages import group_of, in_range, order_message
from seckill.order.saga_calls import OrderClientService, create_order, revert_order
from seckill.order.types import StoredOrder
from seckill.order.xa_calls import create_orders
from seckill.schema import require
from seckill.security import database_context, server_credentials
from seckill.settings import NO_TLS, OrderSettings, TlsSettings
from seckill.wire import order_pb2, order_pb2_grpc, orderclient_pb2_grpc

NAMES = ("order.Order", "orderclient.Order")

BRANCH_METHODS = (
    "/order.Order/CreateOrderCheck",
    "/order.Order/CreateOrder",
    "/order.Order/RollbackOrder",
    "/order.Order/CreateOrderDTM",
    "/order.Order/CreateOrderDTMRevert",
    "/order.Order/CreateOrderXa",
    "/orderclient.Order/Create",
    "/orderclient.Order/CreateRevert",
)
"""What a coordinator calls: all that the branch port serves."""
PAGE_DEFAULT = 50
PAGE_MAX = 200

Sessions = async_sessionmaker[AsyncSession]
Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")

log = structlog.get_logger(__name__)


class OrderNotFound(Exception):
    def __init__(self, order_id: str) -> None:
        super().__init__(f"order {order_id} does not exist")
        self.order_id = order_id


def serve_order(
    settings: OrderSettings, tls: TlsSettings = NO_TLS, drain: Drain | None = None
) -> AbstractAsyncContextManager[BranchServer]:
    """Serves until the block ends, then drains. Port 0 takes a free port. Raises SchemaOutdated."""
    engine = create_engine(
        settings.database_url.get_secret_value(),
        pool_size=settings.pool_size,
        lock_wait_s=settings.lock_wait_s,
        tls=database_context("order", settings),
    )
    xa = cache(partial(XaBranches, engine))  # one for both ports; a database without XA is found out by who asks for it

    def register(server: grpc.aio.Server, sessions: Sessions) -> None:
        order_pb2_grpc.add_OrderServicer_to_server(OrderService(sessions, xa), server)
        orderclient_pb2_grpc.add_OrderServicer_to_server(OrderClientService(sessions), server)

    return serve_on_database(
        settings.grpc,
        register,
        engine=engine,
        require_schema=partial(require, "order"),
        names=NAMES,
        status_of=status_of,
        drain=drain or Drain(settings.drain_timeout_ms),
        credentials=server_credentials(tls),
        branch_port=BranchPort(settings.branch_grpc, BRANCH_METHODS) if settings.branch_grpc else None,
    )


def status_of(error: Exception) -> Status | None:
    """The statuses of the service's own errors. `seckill-code` is the stable code of the public contract."""
    match error:
        case OrderNotFound():
            return Status(grpc.StatusCode.NOT_FOUND, str(error), (("seckill-code", "UNKNOWN_ORDER"),))
        case _:
            return None


class OrderService(order_pb2_grpc.OrderServicer):
    """`order.Order`: the order branch, and what has been ordered."""

    def __init__(self, sessions: Sessions, xa: Callable[[], XaBranches]) -> None:
        self._sessions = sessions
        self._xa = xa

    async def CreateOrderCheck(
        self, request: order_pb2.CreateOrderRequest, context: Context
    ) -> order_pb2.CreateOrderResponse:
        branch = branch_context(context, op=TRY)
        group = group_of(request, branch)
        await self._run(lambda session: branches.try_group(session, branch, group))
        reach(CrashPoint.ORDER_TRY_COMMITTED)
        return order_pb2.CreateOrderResponse()

    async def CreateOrder(
        self, request: order_pb2.CreateOrderRequest, context: Context
    ) -> order_pb2.CreateOrderResponse:
        branch = branch_context(context, op=CONFIRM)
        group = group_of(request, branch)
        await self._run(lambda session: branches.confirm(session, branch, group, now_ms=_now_ms()))
        reach(CrashPoint.ORDER_CONFIRM_COMMITTED)
        return order_pb2.CreateOrderResponse()

    async def RollbackOrder(
        self, _request: order_pb2.CreateOrderRequest, context: Context
    ) -> order_pb2.CreateOrderResponse:
        branch = branch_context(context, op=CANCEL)
        await self._run(lambda session: branches.cancel(session, branch, now_ms=_now_ms()))
        reach(CrashPoint.ORDER_CANCEL_COMMITTED)
        return order_pb2.CreateOrderResponse()

    async def CreateOrderDTM(self, request: order_pb2.AddOrderReq, context: Context) -> order_pb2.AddOrderResp:
        return order_pb2.AddOrderResp(id=await create_order(self._sessions, request, context))

    async def CreateOrderDTMRevert(self, _request: order_pb2.AddOrderReq, context: Context) -> order_pb2.AddOrderResp:
        await revert_order(self._sessions, context)
        return order_pb2.AddOrderResp()

    async def CreateOrderXa(
        self, request: order_pb2.CreateOrderRequest, context: Context
    ) -> order_pb2.CreateOrderResponse:
        await create_orders(self._xa(), request, context)
        return order_pb2.CreateOrderResponse()

    async def PreparedXa(self, _request: Empty, _context: Context) -> order_pb2.PreparedXaReply:
        prepared = await self._xa().prepared()
        return order_pb2.PreparedXaReply(
            branches=[order_pb2.XaBranch(gid=each.gid, branch_id=each.branch_id) for each in prepared]
        )

    async def OrdersOfGid(self, request: order_pb2.OrdersOfGidRequest, _context: Context) -> order_pb2.OrdersResponse:
        if not request.gid:
            raise InvalidRequest("gid", "is empty")
        found = await self._run(lambda session: branches.orders_of_gid(session, request.gid))
        return order_pb2.OrdersResponse(orders=map(order_message, found))

    async def GetOrderById(self, request: order_pb2.GetOrderByIdRequest, _context: Context) -> order_pb2.OrderItem:
        return order_message(await self._find("id", request.id))

    async def Orders(self, request: order_pb2.OrdersRequest, _context: Context) -> order_pb2.OrdersResponse:
        user_id = in_range("user_id", request.user_id, low=1)
        limit = in_range("limit", request.limit or PAGE_DEFAULT, low=1, high=PAGE_MAX)
        before = await self._find("before", request.before) if request.before else None
        found = await self._run(lambda session: branches.orders_of(session, user_id, limit=limit, before=before))
        return order_pb2.OrdersResponse(orders=map(order_message, found))

    async def _find(self, field: str, order_id: str) -> StoredOrder:
        try:
            product_id, key = parse_order_id(order_id)
        except ValueError as error:
            raise InvalidRequest(field, str(error)) from error
        found = await self._run(lambda session: branches.find_order(session, key))
        if found is None or found.product_id != product_id:
            raise OrderNotFound(order_id)
        return found

    async def _run(self, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        return await in_transaction(self._sessions, work)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
