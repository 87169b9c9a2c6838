"""Reconcile on the services past the topic: what a death in between leaves is ended, once, by one or by two of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from uuid import uuid4

import grpc
import pytest
from prometheus_client import REGISTRY

from consumers.reconcile import Reconciler
from seckill.admission.keys import sale_keys
from seckill.checkout.reservations import Reservations, items_of
from seckill.domain.errors import ProductUnavailable
from seckill.domain.order import Order, Sale
from seckill.domain.outcomes import Confirmed, OrderStatus
from seckill.domain.reasons import DeadLetterReason
from seckill.dtm.protocol import TransOptions
from seckill.front.product_client import ProductClient
from seckill.messaging.dead_letters import reason_of
from seckill.messaging.envelope import decode
from seckill.messaging.publisher import open_publisher
from seckill.messaging.reading import read_topic
from seckill.product.sales import LIST_MAX
from seckill.wire import product_pb2, product_pb2_grpc
from seckill.wiring import open_channel, open_dtm, open_reconciler, with_values
from tests.support.backbone import Backbone
from tests.support.branch_calls import branch_calls
from tests.support.redis_servers import raw_redis
from tests.support.relays import Poison, relay_to

pytestmark = pytest.mark.own_redis  # reconcile looks after every product that it finds there


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


# --- the ledger ------------------------------------------------------------------------------------------------------


async def test_an_order_that_was_never_published_is_published(backbone: Backbone, reconciler: Reconciler) -> None:
    """An entry past its time whose order no store knows is published again, and then is due only later."""
    sale = await backbone.open_sale(stock=10)
    orders = await admitted(backbone, sale, 3)
    assert (await reconciler.once()).counts == {"republished": 3}
    assert await published(backbone) == sorted(order.order_id for order in orders)
    assert (await reconciler.once()).counts == {}


async def test_a_product_without_entries_has_no_series(backbone: Backbone, reconciler: Reconciler) -> None:
    """What is told of a product's ledger goes with its last entry, so that past sales cost a process nothing."""
    sale = await backbone.open_sale(stock=10)
    orders = await admitted(backbone, sale, 3, due=False)
    series = ("seckill_ledger_entries", {"product_id": str(sale.product_id)})
    await reconciler.once()
    assert REGISTRY.get_sample_value(*series) == 3
    await backbone.ledger.settle([(order, Confirmed()) for order in orders])
    await reconciler.once()
    assert REGISTRY.get_sample_value(*series) is None


async def test_an_order_whose_reservation_cannot_be_read_keeps_nobody_waiting(backbone: Backbone) -> None:
    """It waits on; the others of its product are looked after."""
    sale = await backbone.open_sale(stock=10)
    orders = await admitted(backbone, sale, 5)
    async with relay_to(backbone.settings.product.grpc) as product:
        product.poison["Reservations"] = Poison(orders[2].key, grpc.StatusCode.INVALID_ARGUMENT)
        settings = with_values(backbone.settings, {"product": {"grpc": product.address}})
        async with open_reconciler(settings) as (reconciler, _):
            assert (await reconciler.once()).counts == {"unread": 1, "republished": 4}
            assert (await reconciler.once()).counts == {}
    others = sorted(order.order_id for order in orders if order is not orders[2])
    assert await published(backbone) == others


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


async def test_an_entry_whose_id_the_database_has_for_another_order_becomes_one_letter(
    backbone: Backbone, reconciler: Reconciler
) -> None:
    """It cannot end by itself: a letter holds the order of the entry, which is parked and troubles no later look."""
    sale = await backbone.open_sale(stock=10)
    (order,) = await admitted(backbone, sale, 1)
    async with open_channel(backbone.settings.product.grpc) as channel:
        reservations = Reservations(channel, address="product", timeout_ms=5_000)
        await reservations.reject([replace(order, user_id=999)], {order.key: "ENDED"})
    assert (await reconciler.once()).counts == {"conflicting": 1}
    kafka = backbone.settings.kafka
    (letter,) = await read_topic(kafka, kafka.dead_letter_topic)
    assert (decode(letter), reason_of(letter)) == ([order], DeadLetterReason.ID_REUSED)
    (entry,) = await backbone.ledger.entries(sale.product_id)
    assert (entry.order, entry.state) == (order, "parked")
    assert (await reconciler.once()).counts == {}
    assert len(await read_topic(kafka, kafka.dead_letter_topic)) == 1


async def test_orders_of_another_pipeline_are_left_alone(backbone: Backbone, reconciler: Reconciler) -> None:
    """Entries of a sale that the product database does not know are somebody else's, who shares this Redis."""
    sale = await backbone.open_sale(stock=10)
    strange = replace(sale, sale_id=sale.sale_id + 1_000, product_id=sale.product_id + 1)
    await backbone.book.warm(strange)
    await admitted(backbone, strange, 2)
    assert (await reconciler.once()).counts == {}
    assert await published(backbone) == []
    assert (await backbone.ledger.stats(strange.product_id)).entries == 2


async def test_an_order_of_an_old_sale_is_ours_however_many_came_since(
    backbone: Backbone, reconciler: Reconciler
) -> None:
    """A product's sales are asked for by their ids: a list of them has an end."""
    sale = await backbone.open_sale(stock=10)
    await admitted(backbone, sale, 1)
    await many_later_sales(backbone, sale)
    assert (await reconciler.once()).counts == {"republished": 1}


async def test_sales_are_read_page_by_page(backbone: Backbone) -> None:
    """Who needs every sale gets every sale, though one call answers a bounded number."""
    sale = await backbone.open_sale(stock=10)
    await many_later_sales(backbone, sale)
    address = backbone.settings.product.grpc
    async with open_channel(address) as channel:
        product = ProductClient(channel, address=address)
        page = await product.list_sales(product_id=sale.product_id)
        everything = await product.all_sales(product_id=sale.product_id)
    assert (len(page), len(everything)) == (LIST_MAX, LIST_MAX + 1)
    assert sale in everything
    assert sale not in page


async def many_later_sales(backbone: Backbone, sale: Sale) -> None:
    """As many closed ones of the same product as a list holds."""
    columns = (
        "product_id, name, starts_at_ms, ends_at_ms, per_user_limit, price_cents, state, initial, stock, frozen, sold, "
        "created_at_ms, updated_at_ms"
    )
    values = ", ".join(["(:product_id, 'later', 1, 2, 1, 0, 'closed', 0, 0, 0, 0, 3, 3)"] * LIST_MAX)
    await backbone.query("product", f"INSERT INTO sale ({columns}) VALUES {values}", product_id=sale.product_id)


async def test_an_entry_that_nobody_can_read_keeps_only_its_product_waiting(
    backbone: Backbone, reconciler: Reconciler
) -> None:
    """A product whose ledger fails is named, look for look; those that come after it are looked after."""
    broken, sale = [await backbone.open_sale(stock=10, product_id=product_id) for product_id in (100, 101)]
    orders = await admitted(backbone, broken, 1) + await admitted(backbone, sale, 2)
    with raw_redis(backbone.settings.redis.url.get_secret_value()) as client:
        client.hset(sale_keys(broken.product_id, broken.sale_id).ledger, orders[0].order_id, "not an entry")
    found = await reconciler.once()
    assert found.counts == {"republished": 2}
    assert {type(error) for error in found.cut_short.values()} == {ValueError}


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


async def test_a_transaction_that_confirmed_its_orders_is_confirmed(backbone: Backbone, reconciler: Reconciler) -> None:
    """An order that stands confirmed under a lost gid decides the gid: its units are sold, not released."""
    sale = await backbone.open_sale(stock=10)
    orders = await admitted(backbone, sale, 2, due=False)
    async with branch_calls(backbone.settings, orders, uuid4().hex) as lost:
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
        carried = await stack.enter_async_context(branch_calls(backbone.settings, orders, gid))
        await carried.product("try")
        await asyncio.sleep(2.1)
        assert (await reconciler.once()).counts == {"carried": 1}
        assert (await backbone.read_sale(sale)).frozen == 1
        await client.abort(gid)
