"""Reconcile on the services past the topic: what a death in between leaves is ended, once, by one or by two of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import grpc
import pytest

from consumers.reconcile import Reconciler
from seckill.checkout.reservations import items_of
from seckill.domain.errors import ProductUnavailable
from seckill.domain.order import Order, Sale
from seckill.domain.outcomes import OrderStatus
from seckill.dtm.protocol import BranchContext, TransOptions
from seckill.embedded import embedded_redis
from seckill.messaging.envelope import decode
from seckill.messaging.lag import read_topic
from seckill.messaging.publisher import open_publisher
from seckill.wire import order_pb2, order_pb2_grpc, product_pb2, product_pb2_grpc
from seckill.wiring import open_channel, open_dtm, open_reconciler
from tests.support.backbone import Backbone, open_backbone
from tests.support.sides import Side

REDIS_DATABASE = 5


@pytest.fixture
async def backbone(side: Side, tmp_path: Path) -> AsyncIterator[Backbone]:
    """On a Redis that nobody shares: reconcile looks after every product that it finds there."""
    with ExitStack() as stack:
        own = stack.enter_context(embedded_redis()) if side.kind == "embedded" else side.empty_redis(REDIS_DATABASE)
        async with open_backbone(replace(side, redis=own), tmp_path) as opened:
            yield opened


@pytest.fixture
async def reconciler(backbone: Backbone) -> AsyncIterator[Reconciler]:
    async with open_reconciler(backbone.settings) as (opened, _):
        yield opened


async def admitted(backbone: Backbone, sale: Sale, count: int, *, due: bool = True) -> list[Order]:
    orders = [await backbone.admit(sale, user_id) for user_id in range(1, count + 1)]
    if due:
        await make_due(backbone, orders)
    return orders


async def make_due(backbone: Backbone, orders: Sequence[Order]) -> None:
    await backbone.ledger.postpone(orders, delay_ms=0)
    await asyncio.sleep(0.005)


async def published(backbone: Backbone) -> list[str]:
    """Order ids in the topic, in no order."""
    records = await read_topic(backbone.settings.kafka, backbone.settings.kafka.topic)
    return sorted(order.order_id for record in records for order in decode(record))


async def publish(backbone: Backbone, orders: Sequence[Order]) -> None:
    async with open_publisher(backbone.settings.kafka) as publisher:
        await asyncio.gather(*map(publisher.publish, orders))


class Branches:
    """Calls branches as a coordinator does, under a gid that no coordinator knows."""

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

    async def product(self, op: str) -> None:
        method = {
            "try": self._product.CheckProductStock,
            "confirm": self._product.UpdateProductStock,
            "cancel": self._product.RollbackProductStock,
        }[op]
        await method(self._stock, metadata=BranchContext(self.gid, "tcc", "01", op).metadata())

    async def order(self, op: str) -> None:
        method = {"try": self._order.CreateOrderCheck, "confirm": self._order.CreateOrder}[op]
        await method(self._orders, metadata=BranchContext(self.gid, "tcc", "02", op).metadata())


async def branches_of(backbone: Backbone, stack: AsyncExitStack, orders: Sequence[Order], gid: str) -> Branches:
    product = await stack.enter_async_context(open_channel(backbone.settings.product.grpc))
    order = await stack.enter_async_context(open_channel(backbone.settings.order.grpc))
    return Branches(product, order, orders, gid)


# --- the ledger ------------------------------------------------------------------------------------------------------


async def test_an_order_that_was_never_published_is_published(backbone: Backbone, reconciler: Reconciler) -> None:
    """An entry past its time whose order no store knows is published again, and then is due only later."""
    sale = await backbone.open_sale(stock=10)
    orders = await admitted(backbone, sale, 3)
    assert (await reconciler.once()).counts == {"republished": 3}
    assert await published(backbone) == sorted(order.order_id for order in orders)
    assert (await reconciler.once()).counts == {}


async def test_an_order_that_is_only_slow_is_not_published_again(backbone: Backbone, reconciler: Reconciler) -> None:
    """A record that the group has not reached yet stays alone: slow is not lost."""
    sale = await backbone.open_sale(stock=10)
    orders = await admitted(backbone, sale, 3, due=False)
    await publish(backbone, orders)
    await make_due(backbone, orders)
    assert (await reconciler.once()).counts == {"slow": 3}
    assert len(await published(backbone)) == 3


async def test_two_reconcilers_publish_an_order_once(backbone: Backbone, reconciler: Reconciler) -> None:
    """Of two that see the same entries, one gets each of them."""
    sale = await backbone.open_sale(stock=100)
    orders = await admitted(backbone, sale, 60)
    async with open_reconciler(backbone.settings) as (other, _):
        found = await asyncio.gather(reconciler.once(), other.once())
    assert sum(each.counts["republished"] for each in found) == 60
    assert await published(backbone) == sorted(order.order_id for order in orders)


async def test_an_order_that_has_ended_is_settled(backbone: Backbone, reconciler: Reconciler) -> None:
    """What SQL rejected and nobody told is told, and its units come back once."""
    sale = await backbone.open_sale(stock=10)
    (order,) = await admitted(backbone, sale, 1)
    async with open_channel(backbone.settings.product.grpc) as channel:
        await product_pb2_grpc.ProductStub(channel).RejectReservations(
            product_pb2.RejectReservationsRequest(
                product_id=sale.product_id, sale_id=sale.sale_id, reason="DISCARDED", items=items_of([order])
            )
        )
    assert (await reconciler.once()).counts == {"settled": 1}
    result = (await backbone.ledger.results([order.order_id]))[order.order_id]
    assert (result.status, result.reason) == (OrderStatus.REJECTED, "DISCARDED")
    view = await backbone.book.read(sale.product_id)
    assert view is not None
    assert (view.stock, view.admitted) == (10, 0)


async def test_orders_of_another_pipeline_are_left_alone(backbone: Backbone, reconciler: Reconciler) -> None:
    """Entries of a sale that the product database does not know are somebody else's, who shares this Redis."""
    sale = await backbone.open_sale(stock=10)
    strange = replace(sale, sale_id=sale.sale_id + 1_000, product_id=sale.product_id + 1)
    await backbone.book.warm(strange)
    await admitted(backbone, strange, 2)
    assert (await reconciler.once()).counts == {}
    assert await published(backbone) == []
    assert (await backbone.ledger.stats(strange.product_id)).entries == 2


async def test_a_service_that_is_down_is_said_and_waited_for(backbone: Backbone, reconciler: Reconciler) -> None:
    """Nothing is done on a guess: a look that cannot ask is cut short, named, and made good by the next one."""
    sale = await backbone.open_sale(stock=10)
    await admitted(backbone, sale, 2)
    await backbone.stop("product")
    found = await reconciler.once()
    assert found.counts == {}
    assert {type(error) for error in found.cut_short.values()} == {ProductUnavailable}
    await backbone.start("product")
    async with asyncio.timeout(20):
        while not (found := await reconciler.once()).counts:
            await asyncio.sleep(0.2)
    assert found.counts == {"republished": 2}


# --- transactions that nobody carries any more -----------------------------------------------------------------------


async def test_a_transaction_that_its_coordinator_lost_is_cancelled(backbone: Backbone, reconciler: Reconciler) -> None:
    """Frozen under a gid that the coordinator does not know: released, and the order is carried anew."""
    sale = await backbone.open_sale(stock=10)
    orders = await admitted(backbone, sale, 2)
    async with AsyncExitStack() as stack:
        lost = await branches_of(backbone, stack, orders, uuid4().hex)
        await lost.product("try")
        assert (await reconciler.once()).counts == {"waiting": 2}
        await asyncio.sleep(2.1)  # its age is told in whole seconds
        assert (await reconciler.once()).counts == {"orphan_cancelled": 1}
        row = await backbone.read_sale(sale)
        assert (row.stock, row.frozen) == (10, 0)
        with pytest.raises(grpc.aio.AioRpcError) as stray:
            await lost.product("confirm")
        assert stray.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await make_due(backbone, orders)
    assert (await reconciler.once()).counts == {"republished": 2}


async def test_a_transaction_that_confirmed_its_orders_is_confirmed(backbone: Backbone, reconciler: Reconciler) -> None:
    """An order that stands confirmed under a lost gid decides the gid: its units are sold, not released."""
    sale = await backbone.open_sale(stock=10)
    orders = await admitted(backbone, sale, 2, due=False)
    async with AsyncExitStack() as stack:
        lost = await branches_of(backbone, stack, orders, uuid4().hex)
        await lost.product("try")
        await lost.order("try")
        await lost.order("confirm")
        await asyncio.sleep(2.1)
        assert (await reconciler.once()).counts == {"orphan_confirmed": 1}
        with pytest.raises(grpc.aio.AioRpcError) as stray:
            await lost.product("cancel")
        assert stray.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    row = await backbone.read_sale(sale)
    assert (row.stock, row.frozen, row.sold) == (8, 0, 2)
    await make_due(backbone, orders)
    assert (await reconciler.once()).counts == {"settled": 2}


async def test_a_transaction_that_is_carried_is_left_alone(backbone: Backbone, reconciler: Reconciler) -> None:
    """While the coordinator itself says that a gid is prepared, nobody else ends it."""
    sale = await backbone.open_sale(stock=10)
    orders = await admitted(backbone, sale, 1, due=False)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_dtm(backbone.settings))
        gid = uuid4().hex
        await client.prepare(gid, options=TransOptions(timeout_to_fail_s=600))
        carried = await branches_of(backbone, stack, orders, gid)
        await carried.product("try")
        await asyncio.sleep(2.1)
        assert (await reconciler.once()).counts == {"carried": 1}
        assert (await backbone.read_sale(sale)).frozen == 1
        await client.abort(gid)
