"""The schedules that an order's fate has to survive, each by name. Those of transactions: test_schedules_transactions.

Not here, because it needs a worker and no ledger at all: offsets that are committed before routing
(test_worker.py::test_nothing_is_committed_before_it_is_routed).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from aiokafka import TopicPartition

from consumers.reconcile import Reconciler
from consumers.seckill_rmq import SeckillCarrier
from seckill.checkout.reservations import items_of
from seckill.domain.order import Order, OrderId, Sale
from seckill.domain.outcomes import Admitted, OrderStatus
from seckill.messaging.delivery import Arrival, Delivered
from seckill.messaging.envelope import decode
from seckill.messaging.offsets import PartitionProgress
from seckill.messaging.publisher import open_publisher
from seckill.messaging.reading import read_topic
from seckill.settings import Settings
from seckill.wire import product_pb2, product_pb2_grpc
from seckill.wiring import open_carrier, open_channel, open_reconciler, with_values
from tests.integration.test_carrier import CONFIRMED, REJECTED, carry, direct, free_order, letters, results
from tests.integration.test_reconcile import admitted, make_due, publish, published
from tests.support.backbone import Backbone
from tests.support.pipeline import Pipeline, open_pipeline
from tests.support.relays import relay_to
from tests.support.rigs import Rig
from tests.support.sides import Side

pytestmark = pytest.mark.own_redis


async def untouched(backbone: Backbone, sale: Sale) -> bool:
    """Whether nobody has taken a unit or an allowance of this current sale, in Redis or in SQL."""
    row, view = await backbone.read_sale(sale), await backbone.book.read(sale.product_id)
    buyers = await backbone.book.units_of_buyers(sale.product_id, sale.sale_id)
    assert view is not None
    assert view.sale_id == sale.sale_id
    return (row.stock, view.stock, view.admitted, buyers) == (row.initial, row.initial, 0, {})


# --- a refusal stays -------------------------------------------------------------------------------------------------


async def test_a_refusal_that_is_redelivered_after_stock_came_back_stays_refused(
    backbone: Backbone, rig: Rig, carrier: SeckillCarrier
) -> None:
    """SQL has no unit for an admitted order; its worker is killed before it tells; the sale is restocked; the record
    comes again.

    The row says rejected, and no later transaction takes it: that is what is told, and the new units stay.
    """
    sale = await backbone.open_sale(stock=2)
    orders = [await backbone.admit(sale, user) for user in (1, 2)]
    await backbone.query("product", "UPDATE sale SET stock = 1, initial = 1 WHERE sale_id = :id", id=sale.sale_id)
    await rig.checkout.run(orders)
    await backbone.restock(sale, 5)
    await carry(carrier, orders)
    assert await results(backbone, orders) == [(CONFIRMED, ""), (REJECTED, "SOLD_OUT")]
    row = await backbone.read_sale(sale)
    assert (row.stock, row.frozen, row.sold) == (5, 0, 1)


async def test_a_refusal_past_the_front_that_is_redelivered_after_stock_came_back_stays_refused(
    backbone: Backbone, carrier: SeckillCarrier
) -> None:
    """Admission refuses a directly published order; the sale is restocked; the record comes again.

    The refusal was written before it was told, so it is found though Redis would now admit the order.
    """
    sale = await backbone.open_sale(stock=1)
    first, late = await backbone.admit(sale, 1), direct(free_order(sale.product_id, 2))
    await carry(carrier, [late])
    await backbone.restock(sale, 5)
    backbone.forget_result(late)
    await carry(carrier, [late, first])
    assert await results(backbone, [late, first]) == [(REJECTED, "SOLD_OUT"), (CONFIRMED, "")]


# --- a record that comes again ---------------------------------------------------------------------------------------


async def test_a_slow_order_is_not_republished_while_its_original_waits(
    backbone: Backbone, reconciler: Reconciler
) -> None:
    """Orders are past their time, and their records lie in the topic where the group has not come yet.

    Slow is not lost: nothing is published again.
    """
    sale = await backbone.open_sale(stock=10)
    orders = await admitted(backbone, sale, 3, due=False)
    await publish(backbone, orders)
    await make_due(backbone, orders)
    assert (await reconciler.once()).counts == {"slow": 3}
    assert len(await published(backbone)) == 3


async def test_a_slow_order_republished_while_its_original_still_waits(
    backbone: Backbone, carrier: SeckillCarrier, reconciler: Reconciler
) -> None:
    """A publish takes longer than its bound, reconcile publishes the order again, and then the original arrives too.
    One worker has it in hand, order's Try hangs; another worker takes the copy.

    The copy finds the units frozen, waits in the ledger and ends nothing; the original confirms, once.
    """
    sale = await backbone.open_sale(stock=5)
    (order,) = await admitted(backbone, sale, 1)
    assert (await reconciler.once()).counts == {"republished": 1}
    await publish(backbone, [order])
    assert await published(backbone) == [order.order_id] * 2
    settings = backbone.settings
    async with relay_to(settings.order.grpc) as slow, carrier_by(settings, order=slow.address) as other:
        slow.held["CreateOrderCheck"] = asyncio.Event()
        original = asyncio.create_task(carry(other, [order]))
        await slow.until_called("CreateOrderCheck")
        await carry(carrier, [order])
        assert await results(backbone, [order]) == [(OrderStatus.PROCESSING, "")]
        slow.held["CreateOrderCheck"].set()
        await original
    assert await results(backbone, [order]) == [(CONFIRMED, "")]
    assert await letters(backbone) == []
    row = await backbone.read_sale(sale)
    assert (row.stock, row.frozen, row.sold) == (4, 0, 1)
    assert (await backbone.ledger.stats(sale.product_id)).entries == 0


@asynccontextmanager
async def carrier_by(settings: Settings, **services: str) -> AsyncIterator[SeckillCarrier]:
    """Another worker's carrier, which finds these services at these addresses."""
    over = {name: {"grpc": address} for name, address in services.items()}
    async with open_carrier(with_values(settings, over)) as (opened, _):
        assert isinstance(opened, SeckillCarrier)
        yield opened


async def test_two_reconcilers(backbone: Backbone, reconciler: Reconciler) -> None:
    """Two reconcilers see the same lost orders at the same time: each order is published once, by one of them."""
    sale = await backbone.open_sale(stock=100)
    orders = await admitted(backbone, sale, 60)
    async with open_reconciler(backbone.settings) as (other, _):
        found = await asyncio.gather(reconciler.once(), other.once())
    assert sum(each.counts["republished"] for each in found) == 60
    assert await published(backbone) == sorted(order.order_id for order in orders)


# --- an old sale and a new one ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("old_first", [True, False], ids=["old order first", "new order first"])
@pytest.mark.parametrize("kept", [1, 0], ids=["confirmed", "refused"])
async def test_a_sale_recreated_with_an_order_still_on_its_way(
    backbone: Backbone, carrier: SeckillCarrier, old_first: bool, kept: int
) -> None:
    """An order is on its way; its sale is closed and another one of the product opened, in which its buyer orders too.

    Whichever arrives first, and whatever becomes of the old one, each has units and allowance of its own sale only.
    """
    old = await backbone.open_sale(stock=1)
    of_old = await backbone.admit(old, 1)
    await backbone.query("product", "UPDATE sale SET stock = :kept, initial = :kept", kept=kept)
    new = await backbone.replace_sale(old, stock=1)
    of_new = await backbone.admit(new, 1)
    for order in (of_old, of_new) if old_first else (of_new, of_old):
        await carry(carrier, [order])
    assert await results(backbone, [of_new]) == [(CONFIRMED, "")]
    assert await results(backbone, [of_old]) == [(CONFIRMED, "") if kept else (REJECTED, "SOLD_OUT")]
    rows = [await backbone.read_sale(sale) for sale in (old, new)]
    assert [(row.stock, row.frozen, row.sold) for row in rows] == [(0, 0, kept), (0, 0, 1)]
    view = await backbone.book.read(new.product_id)
    assert view is not None
    assert (view.sale_id, view.stock, view.admitted) == (new.sale_id, 0, 1)
    assert await backbone.book.units_of_buyers(new.product_id, new.sale_id) == {1: 1}


async def test_a_sale_recreated_with_an_order_past_the_front_still_on_its_way(
    backbone: Backbone, carrier: SeckillCarrier
) -> None:
    """A worker admits a direct order, which names no sale, and is killed before its Try; the sale is replaced; the
    record comes again.

    The order belongs to the sale that admitted it: the new sale gives nothing, and no ledger keeps an entry.
    """
    old = await backbone.open_sale(stock=3)
    order = free_order(old.product_id, 1)
    (answer,) = await backbone.gate.admit_late([order])
    assert isinstance(answer, Admitted)
    new = await backbone.replace_sale(old, stock=3)
    await carry(carrier, [order])
    assert await results(backbone, [order]) == [(CONFIRMED, "")]
    assert (await backbone.read_sale(old)).sold == 1
    assert await untouched(backbone, new)
    assert (await backbone.ledger.stats(old.product_id)).entries == 0


@pytest.mark.parametrize(
    ("past_front", "end"),
    [(False, (CONFIRMED, "")), (True, (OrderStatus.DELAYED, ""))],
    ids=["admitted by the front", "past the front"],
)
async def test_a_letter_of_an_old_sale_replayed_during_a_new_one(
    backbone: Backbone, carrier: SeckillCarrier, past_front: bool, end: tuple[OrderStatus, str]
) -> None:
    """Product fails with an order until it becomes a letter; its sale is replaced; the letter comes on the topic again.

    It ends in its own sale, or stays set aside: the new one gives no unit and no allowance.
    """
    old = await backbone.open_sale(stock=3)
    order = free_order(old.product_id, 1) if past_front else await backbone.admit(old, 1)
    async with relay_to(backbone.settings.product.grpc) as product:
        product.lost["CheckProductStock"] = [grpc.StatusCode.INTERNAL] * backbone.settings.retry.attempts_max
        async with carrier_by(backbone.settings, product=product.address) as failing:
            await carry(failing, [order])
    assert await results(backbone, [order]) == [(OrderStatus.DELAYED, "")]
    new = await backbone.replace_sale(old, stock=3)
    await replay_letters(backbone)
    await carry_topic(backbone, carrier)
    assert await results(backbone, [order]) == [end]
    row = await backbone.read_sale(old)
    assert (row.frozen, row.sold) == (0, 0 if past_front else 1)
    assert await untouched(backbone, new)


async def replay_letters(backbone: Backbone) -> None:
    """Every letter's bytes on the topic again."""
    kafka = backbone.settings.kafka
    async with open_publisher(kafka) as publisher:
        for letter in await read_topic(kafka, kafka.dead_letter_topic):
            await publisher.send(kafka.topic, key=letter.key, value=letter.value, headers=letter.headers)


async def carry_topic(backbone: Backbone, carrier: SeckillCarrier) -> None:
    """Every record of the topic, as a worker carries it that begins at its start."""
    for record in await read_topic(backbone.settings.kafka, backbone.settings.kafka.topic):
        arrival = Arrival(TopicPartition(record.topic, record.partition), PartitionProgress(), record)
        await carrier.carry([Delivered(order, record, arrival) for order in decode(record)])


# --- a buyer who asks again ------------------------------------------------------------------------------------------


@pytest.fixture
async def pipeline(side: Side, tmp_path: Path) -> AsyncIterator[Pipeline]:
    async with open_pipeline(side, tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("end", [("confirmed", ""), ("rejected", "DISCARDED")], ids=["confirmed", "refused"])
async def test_a_buyer_who_repeats_after_a_lost_reply_and_again_after_the_results_ttl(
    pipeline: Pipeline, end: tuple[str, str]
) -> None:
    """A buyer's reply is lost, so the request comes again with its key; again when the order has ended; and again
    when the sale was prolonged beyond the time that its result is kept.

    It is one order with one end, each time, and takes its unit once.
    """
    backbone = pipeline.backbone
    sale = await backbone.open_sale(stock=5, per_user_limit=5)
    await pipeline.post(user_id=1, product_id=sale.product_id, key="k")  # its reply is lost
    status, document = await pipeline.post(user_id=1, product_id=sale.product_id, key="k")
    assert status == 202
    order = Order(OrderId(document["order_id"]), sale.sale_id, 1, sale.product_id, 1, 0)
    if end != ("confirmed", ""):
        await reject(backbone, order, end[1])
    async with pipeline.worker():
        assert await pipeline.end(order.order_id) == end
        for ttl_is_over in (False, True):
            if ttl_is_over:
                backbone.forget_result(order)
            _, document = await pipeline.post(user_id=1, product_id=sale.product_id, key="k")
            assert document["order_id"] == order.order_id
            assert await pipeline.end(order.order_id) == end
    row, view = await backbone.read_sale(sale), await backbone.book.read(sale.product_id)
    assert view is not None
    assert (row.stock, view.stock) == ((4, 4) if end == ("confirmed", "") else (5, 5))
    assert await backbone.query("order", "SELECT count(*) FROM orders") == [(row.sold,)]


async def reject(backbone: Backbone, order: Order, reason: str) -> None:
    """As an operator discards an order."""
    async with open_channel(backbone.settings.product.grpc) as channel:
        await product_pb2_grpc.ProductStub(channel).RejectReservations(
            product_pb2.RejectReservationsRequest(
                product_id=order.product_id, sale_id=order.sale_id, reason=reason, items=items_of([order])
            )
        )
