"""Orders from the topic to their end, through real services, a real coordinator's protocol, Redis and Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import grpc
from aiokafka import TopicPartition

from consumers.seckill_rmq import SeckillCarrier
from seckill.domain.order import Order, derived_order_id
from seckill.domain.outcomes import OrderResult, OrderStatus
from seckill.messaging.delivery import Arrival, Delivered
from seckill.messaging.envelope import Record, encode
from seckill.messaging.offsets import PartitionProgress
from seckill.messaging.reading import read_topic
from seckill.order.tables import orders as orders_table
from seckill.wiring import open_carrier, with_values
from tests.support.backbone import Backbone
from tests.support.redis_servers import lose_product
from tests.support.relays import relay_to

CONFIRMED = OrderStatus.CONFIRMED
REJECTED = OrderStatus.REJECTED


def delivered(order: Order, offset: int = 0) -> Delivered:
    partition = TopicPartition("orders", 0)
    record = Record("orders", 0, offset, 1_700_000_000_000, order.order_id.encode(), encode(order))
    return Delivered(order, record, Arrival(partition, PartitionProgress(), record))


def direct(order: Order) -> Order:
    """The same order as if it had been published past the front."""
    return replace(order, admission_number=None, sale_id=0)


async def carry(carrier: SeckillCarrier, orders: Sequence[Order]) -> None:
    await carrier.carry([delivered(order, offset) for offset, order in enumerate(orders)])


async def results(backbone: Backbone, orders: Sequence[Order]) -> list[tuple[OrderStatus, str]]:
    found = await backbone.ledger.results([order.order_id for order in orders])
    answers = [found.get(order.order_id, OrderResult(order.order_id, OrderStatus.PROCESSING, "?")) for order in orders]
    return [(answer.status, answer.reason) for answer in answers]


async def letters(backbone: Backbone) -> list[dict[str, str]]:
    records = await read_topic(backbone.settings.kafka, backbone.settings.kafka.dead_letter_topic)
    return [{name: value.decode() for name, value in record.headers} for record in records]


async def test_a_group_ends_confirmed(backbone: Backbone, carrier: SeckillCarrier) -> None:
    """Every admitted order is sold, stands as a confirmed order, is told as confirmed, and leaves the ledger."""
    sale = await backbone.open_sale(stock=30)
    orders = [await backbone.admit(sale, user) for user in range(1, 21)]
    await carry(carrier, orders)
    assert await results(backbone, orders) == [(CONFIRMED, "")] * 20
    row = await backbone.read_sale(sale)
    assert (row.stock, row.frozen, row.sold) == (10, 0, 20)
    stats = await backbone.ledger.stats(sale.product_id)
    assert (stats.entries, stats.parked) == (0, 0)
    gids = await backbone.query("order", "SELECT DISTINCT gid FROM orders WHERE status = 1")
    assert len(gids) == 1


async def test_a_redelivered_record_does_not_order_twice(backbone: Backbone, carrier: SeckillCarrier) -> None:
    """A record that comes again, beside its twin or after its end, changes nothing."""
    sale = await backbone.open_sale(stock=5)
    order = await backbone.admit(sale, 1)
    await carry(carrier, [order, order])
    await carry(carrier, [order])
    row = await backbone.read_sale(sale)
    assert (row.stock, row.frozen, row.sold) == (4, 0, 1)
    assert await backbone.query("order", "SELECT count(*) FROM orders") == [(1,)]


async def test_the_database_refuses_what_it_has_no_units_for(backbone: Backbone, carrier: SeckillCarrier) -> None:
    """When SQL has fewer units than were admitted, it is SQL's number that is sold; the rest ends SOLD_OUT."""
    sale = await backbone.open_sale(stock=10)
    orders = [await backbone.admit(sale, user) for user in range(1, 11)]
    await backbone.query("product", "UPDATE sale SET stock = 6, initial = 6 WHERE sale_id = :id", id=sale.sale_id)
    await carry(carrier, orders)
    assert await results(backbone, orders) == [(CONFIRMED, "")] * 6 + [(REJECTED, "SOLD_OUT")] * 4
    view = await backbone.book.read(sale.product_id)
    assert view is not None
    assert view.stock == 0  # a SOLD_OUT of the database gives no units back


async def test_an_order_that_order_refuses_ends_alone(backbone: Backbone, carrier: SeckillCarrier) -> None:
    """Order takes none of a group it refuses one of; that one ends rejected, the others confirm under a new gid."""
    sale = await backbone.open_sale(stock=10)
    orders = [await backbone.admit(sale, user) for user in range(1, 4)]
    taken = orders[1]
    await carry(carrier, [orders[0]])
    await take_by_another(backbone, taken)
    await carry(carrier, orders[1:])
    assert await results(backbone, orders) == [(CONFIRMED, ""), (REJECTED, "ORDER_CONFLICT"), (CONFIRMED, "")]
    sold = await backbone.read_sale(sale)
    assert (sold.stock, sold.frozen, sold.sold) == (8, 0, 2)
    view = await backbone.book.read(sale.product_id)
    assert view is not None
    assert view.stock == 8  # its unit is given back


async def take_by_another(backbone: Backbone, taken: Order) -> None:
    """A foreign row under the order's id, made of one that the order service has, so that it will refuse the order."""
    columns = await backbone.query("order", "SELECT * FROM orders")
    names = orders_table.columns.keys()
    row = dict(zip(names, columns[0], strict=True)) | {"order_id": taken.key, "user_id": 999, "gid": "foreign"}
    fields = ", ".join(f":{name}" for name in names)
    await backbone.query("order", f"INSERT INTO orders ({', '.join(names)}) VALUES ({fields})", **row)


async def test_orders_past_the_front_are_admitted_late(backbone: Backbone, carrier: SeckillCarrier) -> None:
    """A directly published order takes its unit from Redis like any other; what admission refuses ends rejected."""
    sale = await backbone.open_sale(stock=2)
    orders = [
        Order(derived_order_id(sale.product_id, user, at_ms=1), 0, user, sale.product_id, 1, 0) for user in (1, 2, 3, 3)
    ]
    await carry(carrier, orders[:3])
    assert await results(backbone, orders[:3]) == [(CONFIRMED, "")] * 2 + [(REJECTED, "SOLD_OUT")]
    await carry(carrier, orders)
    view = await backbone.book.read(sale.product_id)
    assert view is not None
    assert (view.stock, (await backbone.read_sale(sale)).sold) == (0, 2)


def free_order(product_id: int, user_id: int) -> Order:
    return Order(derived_order_id(product_id, "free", user_id, at_ms=1), 0, user_id, product_id, 1, 0)


async def test_an_unknown_product_is_a_final_answer(backbone: Backbone, carrier: SeckillCarrier) -> None:
    """A directly published order of a product without a sale ends rejected, and its buyer can read so."""
    order = free_order(987_654_321, 4)
    await carry(carrier, [order])
    assert await results(backbone, [order]) == [(REJECTED, "UNKNOWN_PRODUCT")]


async def test_other_contents_under_a_known_id_are_set_aside(backbone: Backbone, carrier: SeckillCarrier) -> None:
    """An impostor is dead-lettered; the true order confirms and its ledger entry is not parked."""
    sale = await backbone.open_sale(stock=5, per_user_limit=3)
    order = await backbone.admit(sale, 1)
    await carry(carrier, [order, replace(order, quantity=3)])
    assert await results(backbone, [order]) == [(CONFIRMED, "")]
    (letter,) = await letters(backbone)
    assert letter["seckill-dlq-reason"] == "ID_REUSED"
    assert (await backbone.read_sale(sale)).sold == 1


async def test_an_undecided_order_waits_and_is_no_attempt(backbone: Backbone, carrier: SeckillCarrier) -> None:
    """With the order service down in the middle, the group waits in the ledger; later it confirms exactly once."""
    sale = await backbone.open_sale(stock=5)
    orders = [await backbone.admit(sale, user) for user in range(1, 4)]
    await backbone.stop("order")
    await carry(carrier, orders)
    assert await results(backbone, orders) == [(OrderStatus.PROCESSING, "")] * 3
    assert await letters(backbone) == []
    await backbone.start("order")
    await until_free(backbone)
    await carry(carrier, orders)
    assert await results(backbone, orders) == [(CONFIRMED, "")] * 3
    row = await backbone.read_sale(sale)
    assert (row.stock, row.frozen, row.sold) == (2, 0, 3)


async def test_an_undecided_order_without_a_ledger_entry_stays_in_hand(
    backbone: Backbone, carrier: SeckillCarrier
) -> None:
    """Redis has lost the sale. Nothing would bring the order back, so its record is not routed before it has ended."""
    sale = await backbone.open_sale(stock=5)
    order = await backbone.admit(sale, 1)
    lose_product(backbone.settings.redis.url.get_secret_value(), sale.product_id)
    await backbone.stop("order")
    carrying = asyncio.create_task(carry(carrier, [order]))
    await asyncio.sleep(1.5)
    assert not carrying.done()
    await backbone.start("order")
    async with asyncio.timeout(20):
        await carrying
    assert await results(backbone, [order]) == [(CONFIRMED, "")]
    assert await letters(backbone) == []


async def test_what_still_fails_is_set_aside_and_parked(backbone: Backbone) -> None:
    """A service that is up and fails with an order: attempts end, letter written, entry parked, nothing reserved."""
    sale = await backbone.open_sale(stock=5)
    order = await backbone.admit(sale, 1)
    async with relay_to(backbone.settings.product.grpc) as product:
        product.lost["CheckProductStock"] = [grpc.StatusCode.INTERNAL] * 3
        settings = with_values(backbone.settings, {"product": {"grpc": product.address}})
        async with open_carrier(settings) as (carrier, _):
            await carry(carrier, [order])
    (letter,) = await letters(backbone)
    assert (letter["seckill-dlq-reason"], letter["seckill-dlq-attempts"]) == ("RETRIES_EXHAUSTED", "3")
    assert letter["seckill-dlq-exception"] == "ProductUnavailable"
    assert await results(backbone, [order]) == [(OrderStatus.DELAYED, "")]
    stats = await backbone.ledger.stats(sale.product_id)
    assert (stats.entries - stats.parked, stats.parked) == (0, 1)


async def until_free(backbone: Backbone) -> None:
    """Waits until the coordinator has cancelled what was left prepared."""
    async with asyncio.timeout(20):
        while await backbone.query("product", "SELECT 1 FROM sale WHERE frozen > 0"):
            await asyncio.sleep(0.1)
