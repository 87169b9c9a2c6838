"""The product service on gRPC: messages, metadata and statuses. What it decides and writes is in its neighbours.

A handler reads the request, runs one transaction, and answers; every error is raised and becomes a status in
`seckill.dtm.serving`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import cache, partial
from typing import Any, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import InvalidTransition, SaleNotFound
from seckill.draining import Drain
from seckill.dtm.barrier import in_transaction
from seckill.dtm.database import create_engine
from seckill.dtm.protocol import CANCEL, CONFIRM, TRY
from seckill.dtm.serving import BranchPort, BranchServer, Status, branch_context, serve_on_database
from seckill.dtm.tcc_branch import InvalidRequest
from seckill.dtm.xa_branch import XaBranches
from seckill.product import branches, holds, message_calls, products, reservations, xa_calls
from seckill.product.messages import (
    ID_LENGTH,
    ITEMS_MAX,
    group_of,
    hold_message,
    in_range,
    order_key,
    product_message,
    reservation_message,
)  # fmt: skip
from seckill.product.saga_calls import ProductClientService, decr_stock, decr_stock_revert
from seckill.product.sales_service import SalesService
from seckill.product.tables import REASON_LENGTH
from seckill.schema import require
from seckill.security import database_context, server_credentials
from seckill.settings import NO_TLS, ProductSettings, TlsSettings
from seckill.wire import product_pb2, product_pb2_grpc, productclient_pb2_grpc

NAMES = ("product.Product", "product.Sales", "productclient.Product")

BRANCH_METHODS = (
    "/product.Product/CheckProductStock",
    "/product.Product/UpdateProductStock",
    "/product.Product/RollbackProductStock",
    "/product.Product/DecrStock",
    "/product.Product/DecrStockRevert",
    "/product.Product/QueryPrepared",
    "/product.Product/SellStockXa",
    "/productclient.Product/DecrStock",
    "/productclient.Product/DecrStockRevert",
)
"""What a coordinator calls: all that the branch port serves."""

HOLDS_MAX = 1_000

Sessions = async_sessionmaker[AsyncSession]
Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")

_REASON = re.compile(rf"[A-Z][A-Z_]{{0,{REASON_LENGTH - 1}}}", re.ASCII)


def serve_product(
    settings: ProductSettings, tls: TlsSettings = NO_TLS, drain: Drain | None = None
) -> AbstractAsyncContextManager[BranchServer]:
    """Serves until the block ends, then drains. Port 0 takes a free port. Raises SchemaOutdated."""
    engine = create_engine(
        settings.database_url.get_secret_value(),
        pool_size=settings.pool_size,
        lock_wait_s=settings.lock_wait_s,
        tls=database_context("product", settings),
    )
    xa = cache(partial(XaBranches, engine))  # one for both ports; a database without XA is found out by who asks for it

    def register(server: grpc.aio.Server, sessions: Sessions) -> None:
        product_pb2_grpc.add_ProductServicer_to_server(ProductService(sessions, xa), server)
        productclient_pb2_grpc.add_ProductServicer_to_server(ProductClientService(sessions), server)
        product_pb2_grpc.add_SalesServicer_to_server(SalesService(sessions), server)

    return serve_on_database(
        settings.grpc,
        register,
        engine=engine,
        require_schema=partial(require, "product"),
        names=NAMES,
        status_of=status_of,
        drain=drain or Drain(settings.drain_timeout_ms),
        credentials=server_credentials(tls),
        branch_port=BranchPort(settings.branch_grpc, BRANCH_METHODS) if settings.branch_grpc else None,
    )


def status_of(error: Exception) -> Status | None:
    """The statuses of the service's own errors. `seckill-code` is the stable code of the public contract."""
    match error:
        case SaleNotFound():
            return Status(grpc.StatusCode.NOT_FOUND, str(error), (("seckill-code", "UNKNOWN_SALE"),))
        case InvalidTransition():
            return Status(grpc.StatusCode.FAILED_PRECONDITION, str(error), (("seckill-code", "SALE_CONFLICT"),))
        case products.ProductNotFound():
            return Status(grpc.StatusCode.NOT_FOUND, str(error), (("seckill-code", "UNKNOWN_PRODUCT"),))
        case _:
            return None


class ProductService(product_pb2_grpc.ProductServicer):
    """`product.Product`: the stock branch, and what reservations say."""

    def __init__(self, sessions: Sessions, xa: Callable[[], XaBranches]) -> None:
        self._sessions = sessions
        self._xa = xa

    async def CheckProductStock(
        self, request: product_pb2.UpdateProductStockRequest, context: Context
    ) -> product_pb2.UpdateProductStockResponse:
        branch = branch_context(context, op=TRY)
        now_ms = _now_ms()
        if request.items:
            group = group_of(request, sale_id_min=1)
            reply = await self._run(lambda session: branches.try_group(session, branch, group, now_ms=now_ms))
            reach(CrashPoint.PRODUCT_TRY_COMMITTED)
        else:
            product_id = in_range("product_id", request.product_id, low=1)
            units = in_range("num", request.num, low=1)
            reply = await self._run(
                lambda session: branches.try_own_stock(session, branch, product_id, units, now_ms=now_ms)
            )
        return product_pb2.UpdateProductStockResponse.FromString(reply)

    async def UpdateProductStock(
        self, _request: product_pb2.UpdateProductStockRequest, context: Context
    ) -> product_pb2.UpdateProductStockResponse:
        branch = branch_context(context, op=CONFIRM)
        await self._run(lambda session: branches.confirm(session, branch, now_ms=_now_ms()))
        reach(CrashPoint.PRODUCT_CONFIRM_COMMITTED)
        return product_pb2.UpdateProductStockResponse()

    async def RollbackProductStock(
        self, _request: product_pb2.UpdateProductStockRequest, context: Context
    ) -> product_pb2.UpdateProductStockResponse:
        branch = branch_context(context, op=CANCEL)
        await self._run(lambda session: branches.cancel(session, branch, now_ms=_now_ms()))
        reach(CrashPoint.PRODUCT_CANCEL_COMMITTED)
        return product_pb2.UpdateProductStockResponse()

    async def DecrStock(self, request: product_pb2.DecrStockRequest, context: Context) -> product_pb2.DecrStockResponse:
        await decr_stock(self._sessions, request, context)
        return product_pb2.DecrStockResponse()

    async def DecrStockRevert(
        self, _request: product_pb2.DecrStockRequest, context: Context
    ) -> product_pb2.DecrStockResponse:
        await decr_stock_revert(self._sessions, context)
        return product_pb2.DecrStockResponse()

    async def TakeStock(
        self, request: product_pb2.UpdateProductStockRequest, context: Context
    ) -> product_pb2.UpdateProductStockResponse:
        reply = await message_calls.take_stock(self._sessions, request, context)
        return product_pb2.UpdateProductStockResponse.FromString(reply)

    async def QueryPrepared(self, _request: Empty, context: Context) -> Empty:
        await message_calls.query_prepared(self._sessions, context)
        return Empty()

    async def ConfirmHolds(
        self, request: product_pb2.ConfirmHoldsRequest, _context: Context
    ) -> product_pb2.ConfirmHoldsReply:
        return await message_calls.confirm_holds(self._sessions, request)

    async def SellStockXa(
        self, request: product_pb2.UpdateProductStockRequest, context: Context
    ) -> product_pb2.UpdateProductStockResponse:
        return await xa_calls.sell_stock(self._xa(), request, context)

    async def PreparedXa(self, _request: Empty, _context: Context) -> product_pb2.PreparedXaReply:
        prepared = await self._xa().prepared()
        return product_pb2.PreparedXaReply(
            branches=[product_pb2.XaBranch(gid=each.gid, branch_id=each.branch_id) for each in prepared]
        )

    async def ReservationsOfGid(
        self, request: product_pb2.ReservationsOfGidRequest, _context: Context
    ) -> product_pb2.ReservationsReply:
        if not request.gid:
            raise InvalidRequest("gid", "is empty")
        rows = await self._run(lambda session: reservations.reservations_of_gid(session, request.gid))
        return product_pb2.ReservationsReply(reservations=map(reservation_message, rows))

    async def Reservations(
        self, request: product_pb2.ReservationsRequest, _context: Context
    ) -> product_pb2.ReservationsReply:
        if len(request.order_ids) > ITEMS_MAX:
            raise InvalidRequest("order_ids", f"{len(request.order_ids)} ids, {ITEMS_MAX} is the most")
        keys = [order_key(f"order_ids[{index}]", key) for index, key in enumerate(request.order_ids)]
        rows = await self._run(lambda session: reservations.reservations_of_orders(session, keys))
        return product_pb2.ReservationsReply(reservations=map(reservation_message, rows.values()))

    async def ReservationsOfSale(
        self, request: product_pb2.ReservationsOfSaleRequest, _context: Context
    ) -> product_pb2.ReservationsReply:
        limit = in_range("limit", request.limit, low=1)
        if limit > ITEMS_MAX:
            raise InvalidRequest("limit", f"{limit}, {ITEMS_MAX} is the most")
        after = (in_range("after_user_id", request.after_user_id, low=0), request.after_order_id)
        sale_id = in_range("sale_id", request.sale_id, low=1)
        rows = await self._run(
            lambda session: reservations.reservations_of_sale(
                session, sale_id, after=after, limit=limit, open_only=request.open_only
            )
        )
        return product_pb2.ReservationsReply(reservations=map(reservation_message, rows))

    async def StaleHolds(
        self, request: product_pb2.StaleHoldsRequest, _context: Context
    ) -> product_pb2.StaleHoldsReply:
        limit = in_range("limit", request.limit, low=1)
        if limit > HOLDS_MAX:
            raise InvalidRequest("limit", f"{limit}, {HOLDS_MAX} is the most")
        older_than_ms = in_range("older_than_ms", request.older_than_ms, low=0)
        newer_than_ms = in_range("newer_than_ms", request.newer_than_ms, low=0) or None
        found = await self._run(
            lambda session: holds.stale_holds(
                session, older_than_ms=older_than_ms, newer_than_ms=newer_than_ms, limit=limit
            )
        )
        return product_pb2.StaleHoldsReply(
            holds=map(hold_message, found.holds), looked_until_ms=found.looked_until_ms or 0
        )

    async def RejectReservations(
        self, request: product_pb2.RejectReservationsRequest, _context: Context
    ) -> product_pb2.ReservationsReply:
        group = group_of(request, sale_id_min=0)
        if len(request.gid) > ID_LENGTH or not request.gid.isascii():
            raise InvalidRequest("gid", f"must be at most {ID_LENGTH} ASCII characters")
        if not _REASON.fullmatch(request.reason):
            raise InvalidRequest(
                "reason", f"{request.reason[:80]!r} is no code (A to Z and _, {REASON_LENGTH} at most)"
            )
        rows = await self._run(
            lambda session: branches.reject(session, group, request.reason, gid=request.gid, now_ms=_now_ms())
        )
        reach(CrashPoint.PRODUCT_REJECT_COMMITTED)
        return product_pb2.ReservationsReply(reservations=map(reservation_message, rows))

    async def Product(self, request: product_pb2.ProductItemRequest, _context: Context) -> product_pb2.ProductItem:
        product_id = in_range("product_id", request.product_id, low=1)
        return product_message(await self._run(lambda session: products.get(session, product_id)))

    async def _run(self, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        return await in_transaction(self._sessions, work)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
