"""`product.Sales` on gRPC: messages and their fields. What it writes is in `seckill.product.sales`."""

from __future__ import annotations

import re
import time
from typing import Any

import grpc
import structlog
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from seckill.domain.order import MAX_KEY_LENGTH, NewSale
from seckill.dtm.barrier import in_transaction
from seckill.dtm.tcc_branch import InvalidRequest
from seckill.product import sales
from seckill.product.messages import in_range, sale_message
from seckill.product.tables import NAME_LENGTH
from seckill.wire import product_pb2, product_pb2_grpc

Sessions = async_sessionmaker[AsyncSession]
Context = grpc.aio.ServicerContext[Any, Any]

_CHANGE_ID = re.compile(rf"[\x21-\x7e]{{1,{MAX_KEY_LENGTH}}}", re.ASCII)

log = structlog.get_logger(__name__)


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
