"""The product and order services over gRPC as coordinators call them in every pattern, each on its own database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import uuid4

import grpc
from google.protobuf.empty_pb2 import Empty
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from seckill.dtm.database import create_engine
from seckill.dtm.protocol import BranchContext
from seckill.order.service import serve_order
from seckill.product.service import serve_product
from seckill.settings import OrderSettings, ProductSettings
from seckill.wire import order_pb2, order_pb2_grpc, product_pb2, product_pb2_grpc

PRICE_CENTS = 250

_NUMBERS = count(1)

Metadata = tuple[tuple[str, str], ...]


def new_gid() -> str:
    return uuid4().hex


def called(gid: str, trans_type: str, branch_id: str, op: str) -> Metadata:
    return BranchContext(gid, trans_type, branch_id, op).metadata()


@dataclass(frozen=True, slots=True)
class Offer:
    """A sale, and the orders of it."""

    product_id: int
    sale_id: int

    def item(self, *, user_id: int = 0, quantity: int = 1) -> product_pb2.Item:
        number = next(_NUMBERS)
        key = uuid4().bytes
        return product_pb2.Item(order_id=key, user_id=user_id or 100 + number, quantity=quantity, admitted_at_ms=5)


def told(row: product_pb2.Reservation) -> tuple[str, str, str]:
    """State, gid and reason."""
    return product_pb2.ReservationState.Name(row.state), row.gid, row.reason


@dataclass(frozen=True, slots=True)
class Services:
    """Both services, their databases, and each pattern's calls in few words."""

    product: product_pb2_grpc.ProductAsyncStub
    sales: product_pb2_grpc.SalesAsyncStub
    order: order_pb2_grpc.OrderAsyncStub
    databases: Mapping[str, AsyncEngine]

    # --- what there is

    async def offer(self, *, stock: int = 10, limit: int = 100) -> Offer:
        product_id = uuid4().int % 10**12 + 1
        sale = await self.sales.CreateSale(
            product_pb2.CreateSaleRequest(
                change_id=uuid4().hex, product_id=product_id, ends_at_ms=10, per_user_limit=limit, stock=stock
            )
        )
        return Offer(product_id, sale.sale_id)

    async def counters(self, offer: Offer) -> tuple[int, int, int]:
        """stock, frozen, sold"""
        sale = await self.sales.GetSale(product_pb2.GetSaleRequest(sale_id=offer.sale_id))
        return sale.stock, sale.frozen, sale.sold

    async def reservation(self, item: product_pb2.Item) -> tuple[str, str, str] | None:
        reply = await self.product.Reservations(product_pb2.ReservationsRequest(order_ids=[item.order_id]))
        return told(reply.reservations[0]) if reply.reservations else None

    async def orders(self, gid: str) -> list[tuple[str, int, int]]:
        """Status, buyer and units of what the gid has written."""
        reply = await self.order.OrdersOfGid(order_pb2.OrdersOfGidRequest(gid=gid))
        return [(order.status, order.user_id, order.quantity) for order in reply.orders]

    async def rows(self, service: str, statement: str, **values: object) -> list[tuple[Any, ...]]:
        async with self.databases[service].begin() as connection:
            result = await connection.execute(text(statement), values)
            return [tuple(row) for row in result] if result.returns_rows else []

    async def barrier(self, service: str, gid: str) -> list[tuple[Any, ...]]:
        """Operation, and who wrote its row."""
        return await self.rows(service, "SELECT op, reason FROM barrier WHERE gid = :gid ORDER BY id", gid=gid)

    async def decisions(self, service: str, gid: str) -> list[str]:
        return [op for (op,) in await self.rows(service, "SELECT op FROM decision WHERE gid = :gid", gid=gid)]

    # --- saga

    async def decr(self, offer: Offer, item: product_pb2.Item, gid: str) -> None:
        request = product_pb2.DecrStockRequest(id=offer.product_id, sale_id=offer.sale_id, item=item)
        await self.product.DecrStock(request, metadata=called(gid, "saga", "02", "action"))

    async def decr_revert(self, gid: str) -> None:
        await self.product.DecrStockRevert(
            product_pb2.DecrStockRequest(), metadata=called(gid, "saga", "02", "compensate")
        )

    async def create(self, offer: Offer, item: product_pb2.Item, gid: str, *, trans_type: str = "saga") -> str:
        request = order_pb2.AddOrderReq(
            productid=offer.product_id,
            sale_id=offer.sale_id,
            item=order_pb2.Item.FromString(item.SerializeToString()),
            price_cents=PRICE_CENTS,
        )
        reply = await self.order.CreateOrderDTM(request, metadata=called(gid, trans_type, "01", "action"))
        return reply.id

    async def create_revert(self, gid: str, *, trans_type: str = "saga") -> None:
        metadata = called(gid, trans_type, "01", "compensate")
        await self.order.CreateOrderDTMRevert(order_pb2.AddOrderReq(), metadata=metadata)

    # --- message

    async def take(self, offer: Offer, *items: product_pb2.Item, gid: str) -> list[tuple[str, str, str]]:
        reply = await self.product.TakeStock(stock(offer, items), metadata=called(gid, "msg", "00", "msg"))
        return [told(row) for row in reply.outcomes]

    async def query(self, gid: str) -> None:
        await self.product.QueryPrepared(Empty(), metadata=called(gid, "msg", "00", "msg"))

    async def drop(self, gid: str) -> None:
        await self.product.DecrStockRevert(
            product_pb2.DecrStockRequest(), metadata=called(gid, "msg", "00", "compensate")
        )

    async def confirm_holds(self, trans_type: str, *gids: str) -> list[tuple[str, str, str]]:
        branch_id = {"saga": "02", "msg": "00"}[trans_type]
        holds = [product_pb2.HoldId(gid=gid, branch_id=branch_id, trans_type=trans_type) for gid in gids]
        reply = await self.product.ConfirmHolds(product_pb2.ConfirmHoldsRequest(holds=holds))
        return [told(row) for row in reply.reservations]

    # --- TCC

    async def try_stock(self, offer: Offer, *items: product_pb2.Item, gid: str) -> list[tuple[str, str, str]]:
        reply = await self.product.CheckProductStock(stock(offer, items), metadata=called(gid, "tcc", "01", "try"))
        return [told(row) for row in reply.outcomes]

    # --- XA

    async def sell(self, offer: Offer, *items: product_pb2.Item, gid: str) -> list[tuple[str, str, str]]:
        reply = await self.product.SellStockXa(stock(offer, items), metadata=called(gid, "xa", "01", "action"))
        return [told(row) for row in reply.outcomes]

    async def end_stock(self, gid: str, op: str) -> None:
        request = product_pb2.UpdateProductStockRequest()
        await self.product.SellStockXa(request, metadata=called(gid, "xa", "01", op))

    async def write(self, offer: Offer, *items: product_pb2.Item, gid: str) -> None:
        request = order_pb2.CreateOrderRequest(
            pid=offer.product_id,
            sale_id=offer.sale_id,
            price_cents=PRICE_CENTS,
            items=[order_pb2.Item.FromString(item.SerializeToString()) for item in items],
        )
        await self.order.CreateOrderXa(request, metadata=called(gid, "xa", "02", "action"))

    async def end_order(self, gid: str, op: str) -> None:
        await self.order.CreateOrderXa(order_pb2.CreateOrderRequest(), metadata=called(gid, "xa", "02", op))

    async def prepared(self) -> list[tuple[str, str]]:
        """Gid and branch of all that either database holds prepared, product's first."""
        replies = [await self.product.PreparedXa(Empty()), await self.order.PreparedXa(Empty())]
        return [(branch.gid, branch.branch_id) for reply in replies for branch in reply.branches]


def stock(offer: Offer, items: Sequence[product_pb2.Item]) -> product_pb2.UpdateProductStockRequest:
    return product_pb2.UpdateProductStockRequest(product_id=offer.product_id, sale_id=offer.sale_id, items=items)


@asynccontextmanager
async def open_services(product_url: str, order_url: str, *, lock_wait_s: int = 1) -> AsyncIterator[Services]:
    """On databases of the newest schema."""
    product = ProductSettings(grpc="127.0.0.1:0", database_url=SecretStr(product_url), lock_wait_s=lock_wait_s)
    order = OrderSettings(grpc="127.0.0.1:0", database_url=SecretStr(order_url), lock_wait_s=lock_wait_s)
    async with AsyncExitStack() as stack:
        of_product = await stack.enter_async_context(serve_product(product))
        of_order = await stack.enter_async_context(serve_order(order))
        to_product = await stack.enter_async_context(grpc.aio.insecure_channel(of_product.address))
        to_order = await stack.enter_async_context(grpc.aio.insecure_channel(of_order.address))
        databases = {}
        for name, url in (("product", product_url), ("order", order_url)):
            databases[name] = create_engine(url, pool_size=1, lock_wait_s=lock_wait_s)
            stack.push_async_callback(databases[name].dispose)
        yield Services(
            product_pb2_grpc.ProductStub(to_product),
            product_pb2_grpc.SalesStub(to_product),
            order_pb2_grpc.OrderStub(to_order),
            databases,
        )
