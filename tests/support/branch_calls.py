"""Calls of both branches as a coordinator makes them, with none behind: a test says what comes, and in which order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc

from seckill.checkout.reservations import items_of
from seckill.domain.order import Order
from seckill.dtm.protocol import BranchContext
from seckill.settings import Settings
from seckill.wire import order_pb2, order_pb2_grpc, product_pb2, product_pb2_grpc
from seckill.wiring import open_channel


class BranchCalls:
    """The branches of one gid, for one group of orders. Each call raises AioRpcError as gRPC does."""

    def __init__(self, product: grpc.aio.Channel, order: grpc.aio.Channel, orders: Sequence[Order], gid: str) -> None:
        self.gid = gid
        self._product = product_pb2_grpc.ProductStub(product)
        self._order = order_pb2_grpc.OrderStub(order)
        first, items = orders[0], items_of(orders)
        self._stock = product_pb2.UpdateProductStockRequest(
            product_id=first.product_id, sale_id=first.sale_id, items=items
        )
        self._orders = order_pb2.CreateOrderRequest(
            pid=first.product_id,
            sale_id=first.sale_id,
            items=[
                order_pb2.Item(order_id=item.order_id, user_id=item.user_id, quantity=item.quantity, admitted_at_ms=1)
                for item in items
            ],
        )

    async def call(self, branch: str, op: str) -> None:
        """`branch`: product or order; `op`: try, confirm or cancel."""
        await (self.product(op) if branch == "product" else self.order(op))

    async def product(self, op: str) -> product_pb2.UpdateProductStockResponse:
        method = {
            "try": self._product.CheckProductStock,
            "confirm": self._product.UpdateProductStock,
            "cancel": self._product.RollbackProductStock,
        }[op]
        return await method(self._stock, metadata=BranchContext(self.gid, "tcc", "01", op).metadata())

    async def order(self, op: str) -> order_pb2.CreateOrderResponse:
        method = {
            "try": self._order.CreateOrderCheck,
            "confirm": self._order.CreateOrder,
            "cancel": self._order.RollbackOrder,
        }[op]
        return await method(self._orders, metadata=BranchContext(self.gid, "tcc", "02", op).metadata())


@asynccontextmanager
async def branch_calls(settings: Settings, orders: Sequence[Order], gid: str) -> AsyncIterator[BranchCalls]:
    async with open_channel(settings.product.grpc) as product, open_channel(settings.order.grpc) as order:
        yield BranchCalls(product, order, orders, gid)
