"""The product service on gRPC: messages, metadata and statuses. What it decides and writes is in its neighbours.

A handler reads the request, runs one transaction, and answers; every error is raised and becomes a status in
`seckill.dtm.serving`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, TypeVar

import grpc
import structlog
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import InvalidTransition, SaleNotFound
from seckill.domain.order import MAX_KEY_LENGTH, NewSale
from seckill.draining import Drain
from seckill.dtm.barrier import in_transaction
from seckill.dtm.database import create_engine
from seckill.dtm.protocol import CANCEL, CONFIRM, TRY
from seckill.dtm.serving import BranchPort, BranchServer, Status, branch_context, serve_on_database
from seckill.dtm.tcc_branch import InvalidRequest
from seckill.product import branches, holds, products, reservations, sales
from seckill.product.messages import (
    ITEMS_MAX,
    group_of,
    hold_message,
    in_range,
    order_key,
    product_message,
    reservation_message,
    sale_message,
)  # fmt: skip
from seckill.product.saga_calls import ProductClientService, decr_stock, decr_stock_revert
from seckill.product.tables import NAME_LENGTH, REASON_LENGTH
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
    "/productclient.Product/DecrStock",
    "/productclient.Product/DecrStockRevert",
)
"""What a coordinator calls: all that the branch port serves."""

HOLDS_MAX = 1_000

Sessions = async_sessionmaker[AsyncSession]
Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")

_REASON = re.compile(rf"[A-Z][A-Z_]{{0,{REASON_LENGTH - 1}}}", re.ASCII)
_CHANGE_ID = re.compile(rf"[\x21-\x7e]{{1,{MAX_KEY_LENGTH}}}", re.ASCII)

log = structlog.get_logger(__name__)


def serve_product(
    settings: ProductSettings, tls: TlsSettings = NO_TLS, drain: Drain | None = None
) -> AbstractAsyncContextManager[BranchServer]:
    """Serves until the block ends, then drains. Port 0 takes a free port. Raises SchemaOutdated."""

    def register(server: grpc.aio.Server, sessions: Sessions) -> None:
        product_pb2_grpc.add_ProductServicer_to_server(ProductService(sessions), server)
        productclient_pb2_grpc.add_ProductServicer_to_server(ProductClientService(sessions), server)
        product_pb2_grpc.add_SalesServicer_to_server(SalesService(sessions), server)

    return serve_on_database(
        settings.grpc,
        register,
        engine=create_engine(
            settings.database_url.get_secret_value(),
            pool_size=settings.pool_size,
            lock_wait_s=settings.lock_wait_s,
            tls=database_context("product", settings),
        ),
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

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

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
        return product_pb2.StaleHoldsReply(holds=map(hold_message, found))

    async def RejectReservations(
        self, request: product_pb2.RejectReservationsRequest, _context: Context
    ) -> product_pb2.ReservationsReply:
        group = group_of(request, sale_id_min=0)
        if not _REASON.fullmatch(request.reason):
            raise InvalidRequest(
                "reason", f"{request.reason[:80]!r} is no code (A to Z and _, {REASON_LENGTH} at most)"
            )
        rows = await self._run(lambda session: branches.reject(session, group, request.reason, now_ms=_now_ms()))
        reach(CrashPoint.PRODUCT_REJECT_COMMITTED)
        return product_pb2.ReservationsReply(reservations=map(reservation_message, rows))

    async def Product(self, request: product_pb2.ProductItemRequest, _context: Context) -> product_pb2.ProductItem:
        product_id = in_range("product_id", request.product_id, low=1)
        return product_message(await self._run(lambda session: products.get(session, product_id)))

    async def _run(self, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        return await in_transaction(self._sessions, work)


class SalesService(product_pb2_grpc.SalesServicer):
    """`product.Sales`: a product's sales and their terms."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def CreateSale(self, request: product_pb2.CreateSaleRequest, _context: Context) -> product_pb2.Sale:
        change_id = _change_id(request.change_id)
        new = _new_sale(request)
        made = await in_transaction(
            self._sessions, lambda session: sales.create(session, change_id, new, now_ms=_now_ms())
        )
        sale = made.sale
        log.info("sale_created", sale_id=sale.sale_id, product_id=sale.product_id, stock=sale.initial)
        return sale_message(sale, created=made.first)

    async def GetSale(self, request: product_pb2.GetSaleRequest, _context: Context) -> product_pb2.Sale:
        return sale_message(await in_transaction(self._sessions, lambda session: sales.get(session, request.sale_id)))

    async def ListSales(
        self, request: product_pb2.ListSalesRequest, _context: Context
    ) -> product_pb2.ListSalesResponse:
        product_id = in_range("product_id", request.product_id, low=0) or None
        state = _state(request.state) if request.state else None
        before = in_range("before_sale_id", request.before_sale_id, low=0) or None
        found = await in_transaction(
            self._sessions,
            lambda session: sales.listed(session, product_id=product_id, state=state, before_sale_id=before),
        )
        return product_pb2.ListSalesResponse(sales=map(sale_message, found))

    async def UpdateSale(self, request: product_pb2.UpdateSaleRequest, _context: Context) -> product_pb2.Sale:
        change_id = _change_id(request.change_id)
        wanted = _sale_update(request)
        sale = await in_transaction(
            self._sessions,
            lambda session: sales.change(session, change_id, request.sale_id, wanted, now_ms=_now_ms()),
        )
        log.info("sale_changed", sale_id=sale.sale_id, change_id=change_id, stock_delta=wanted.stock_delta)
        return sale_message(sale)

    async def SetSaleState(self, request: product_pb2.SetSaleStateRequest, _context: Context) -> product_pb2.Sale:
        state = _state(request.state)
        sale = await in_transaction(
            self._sessions, lambda session: sales.set_state(session, request.sale_id, state, now_ms=_now_ms())
        )
        log.info("sale_state_set", sale_id=sale.sale_id, state=state)
        return sale_message(sale)

    async def SaleChanges(
        self, request: product_pb2.SaleChangesRequest, _context: Context
    ) -> product_pb2.SaleChangesReply:
        found = await in_transaction(self._sessions, lambda session: sales.changes_of(session, request.sale_id))
        return product_pb2.SaleChangesReply(change_ids=found)


def _new_sale(request: product_pb2.CreateSaleRequest) -> NewSale:
    new = NewSale(
        product_id=in_range("product_id", request.product_id, low=1),
        name=_name(request.name),
        starts_at_ms=in_range("starts_at_ms", request.starts_at_ms, low=0),
        ends_at_ms=in_range("ends_at_ms", request.ends_at_ms, low=1),
        per_user_limit=in_range("per_user_limit", request.per_user_limit, low=1),
        price_cents=in_range("price_cents", request.price_cents, low=0),
        stock=in_range("stock", request.stock, low=0),
    )
    if new.ends_at_ms <= new.starts_at_ms:
        raise InvalidRequest("ends_at_ms", f"{new.ends_at_ms} is not after starts_at_ms {new.starts_at_ms}")
    return new


def _sale_update(request: product_pb2.UpdateSaleRequest) -> sales.SaleUpdate:
    lowest = {"starts_at_ms": 0, "ends_at_ms": 1, "per_user_limit": 1, "price_cents": 0}
    numbers = {
        field: in_range(field, getattr(request, field), low=low)
        for field, low in lowest.items()
        if request.HasField(field)  # type: ignore[arg-type]  # the stubs want a literal
    }
    name = _name(request.name) if request.HasField("name") else None
    return sales.SaleUpdate(name=name, stock_delta=request.stock_delta, **numbers)


def _change_id(value: str) -> str:
    if not _CHANGE_ID.fullmatch(value):
        raise InvalidRequest("change_id", f"must be 1 to {MAX_KEY_LENGTH} visible ASCII characters")
    return value


def _name(value: str) -> str:
    if len(value) > NAME_LENGTH:
        raise InvalidRequest("name", f"{len(value)} characters, {NAME_LENGTH} is the most")
    return value


def _state(value: str) -> str:
    if value not in sales.STATES:
        raise InvalidRequest("state", f"{value[:80]!r} is none of {', '.join(sales.STATES)}")
    return value


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
