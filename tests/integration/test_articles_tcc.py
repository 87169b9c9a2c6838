"""The first article's forms, as its own programs send them: array records, and a TCC of the original fields alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

import pytest
from aiokafka import AIOKafkaProducer

from seckill.domain.order import Order
from seckill.domain.outcomes import OrderResult, OrderStatus
from seckill.dtm import Channels, DtmClient, Refused, Tcc, Unavailable
from seckill.dtm.protocol import TRY, BranchContext
from seckill.messaging.envelope import decode
from seckill.messaging.reading import read_topic
from seckill.settings import Settings
from seckill.wiring import ROLES, open_dtm, with_values
from tests.support.backbone import Backbone
from tests.support.originals import TRY_TIMEOUT_MS, WAITING, Shop, buy, fields

CONFIRMED = 1


@pytest.fixture
async def client(backbone: Backbone) -> AsyncIterator[DtmClient]:
    async with open_dtm(backbone.settings) as opened:
        yield opened


# --- array records ---------------------------------------------------------------------------------------------------


async def publish_array(settings: Settings, items: Sequence[tuple[int, int]]) -> list[Order]:
    """Sends `[{"uid", "pid"}, …]` as the article's front does: no key, no headers. The orders that it stands for."""
    value = json.dumps([{"uid": uid, "pid": pid} for uid, pid in items]).encode()
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap)
    await producer.start()
    try:
        await producer.send_and_wait(settings.kafka.topic, value)
    finally:
        await producer.stop()
    (record,) = [each for each in await read_topic(settings.kafka, settings.kafka.topic) if each.value == value]
    return decode(record)


async def told(backbone: Backbone, orders: Sequence[Order]) -> list[tuple[OrderStatus, str]]:
    """What the orders' buyers are told, once all of them have ended."""
    ids = [order.order_id for order in orders]
    async with asyncio.timeout(60):
        while True:
            found = await backbone.ledger.results(ids)
            if all(_ended(found.get(each)) for each in ids):
                return [(found[each].status, found[each].reason) for each in ids]
            await asyncio.sleep(0.1)


def _ended(result: OrderResult | None) -> bool:
    return result is not None and result.status in (OrderStatus.CONFIRMED, OrderStatus.REJECTED)


async def test_array_records_are_orders(backbone: Backbone) -> None:
    """`[{"uid", "pid"}]` is carried to its end: each item an order, sold within stock and limit, told and settled."""
    sale = await backbone.open_sale(stock=3)
    other = await backbone.open_sale(stock=5)
    pid = sale.product_id
    async with ROLES["worker"](backbone.settings):
        first = await publish_array(backbone.settings, [(1, pid), (2, other.product_id), (2, pid)])
        assert await told(backbone, first) == [(OrderStatus.CONFIRMED, "")] * 3
        second = await publish_array(backbone.settings, [(1, pid), (3, pid), (4, pid)])
        answers = await told(backbone, second)
    assert answers == [
        (OrderStatus.REJECTED, "ALREADY_ORDERED"),
        (OrderStatus.CONFIRMED, ""),
        (OrderStatus.REJECTED, "SOLD_OUT"),
    ]
    row, beside = await backbone.read_sale(sale), await backbone.read_sale(other)
    assert (row.stock, row.frozen, row.sold, beside.sold) == (0, 0, 3, 1)
    ordered = await backbone.query("order", "SELECT user_id FROM orders WHERE product_id = :id ORDER BY 1", id=pid)
    assert ordered == [(1,), (2,), (3,)]
    assert (await backbone.ledger.stats(pid)).entries == 0


async def test_an_array_record_that_comes_again_orders_nothing_more(backbone: Backbone) -> None:
    """The same record read by another group gives the same ids, so every order has ended already."""
    sale = await backbone.open_sale(stock=10, per_user_limit=5)
    settings = backbone.settings
    async with ROLES["worker"](settings):
        orders = await publish_array(settings, [(1, sale.product_id), (1, sale.product_id)])
        await told(backbone, orders)
    again = with_values(settings, {"kafka": {"group": f"{settings.kafka.group}-again"}})
    async with ROLES["worker"](again):
        last = await publish_array(again, [(2, sale.product_id)])
        await told(backbone, last)
    row = await backbone.read_sale(sale)
    assert (row.stock, row.frozen, row.sold) == (7, 0, 3)
    assert await backbone.query("order", "SELECT count(*) FROM orders") == [(3,)]


# --- TCC of the original fields --------------------------------------------------------------------------------------


async def test_original_fields_buy(backbone: Backbone, client: DtmClient) -> None:
    """`product_id, num` and `uid, pid` through the coordinator: units sold, the order written under the gid."""
    shop = await Shop.open(backbone, stock=5)
    gid = await buy(client, shop, user_id=41, units=2)
    assert await shop.stock() == 3
    assert await shop.orders() == [(41, 1, CONFIRMED)]
    assert await shop.barrier("product", gid) == [("01", "try", "try"), ("01", "confirm", "confirm")]
    assert await shop.barrier("order", gid) == [("02", "try", "try"), ("02", "confirm", "confirm")]
    (row,) = await backbone.query("product", "SELECT quantity, state FROM stock_reservation WHERE gid = :g", g=gid)
    assert row == (2, 2)  # sold


async def test_a_short_stock_refuses(backbone: Backbone, client: DtmClient) -> None:
    """Try answers ABORTED; the transaction is aborted, its Cancel is empty, and there is no order."""
    shop = await Shop.open(backbone, stock=1)
    stock, _ = shop.tcc_branches()
    tcc = await Tcc.begin(client, await client.new_gid(), options=WAITING)
    with pytest.raises(Refused) as refused:
        await tcc.call_branch(stock, fields(shop.product_id, 2), timeout_ms=TRY_TIMEOUT_MS)
    assert "1 units left" in refused.value.detail
    await tcc.abort()
    assert await shop.stock() == 1
    assert await shop.orders() == []
    assert await shop.barrier("product", tcc.gid) == [("01", "try", "cancel"), ("01", "cancel", "cancel")]


async def test_the_last_units_are_sold_once(backbone: Backbone, client: DtmClient) -> None:
    """Twelve buyers of two units each at five units: two get them, ten are refused, one unit stays."""
    shop = await Shop.open(backbone, stock=5)
    ends = await asyncio.gather(
        *(buy(client, shop, user_id=user, units=2) for user in range(1, 13)), return_exceptions=True
    )
    assert [type(end) for end in ends if not isinstance(end, str)] == [Refused] * 10
    assert await shop.stock() == 1
    assert [(quantity, status) for _, quantity, status in await shop.orders()] == [(1, CONFIRMED)] * 2


async def test_a_failed_order_gives_the_stock_back(backbone: Backbone, client: DtmClient) -> None:
    """The second branch fails after the first one has reserved: its Cancel gives the units back."""
    shop = await Shop.open(backbone, stock=5)
    with pytest.raises(Unavailable):  # a buyer without an id is INVALID_ARGUMENT
        await buy(client, shop, user_id=0, units=2)
    assert await shop.stock() == 5
    assert await shop.orders() == []


async def test_an_empty_cancel_changes_nothing(backbone: Backbone, client: DtmClient) -> None:
    """Both branches are registered and neither Try arrives: the Cancels add no unit and close no order."""
    shop = await Shop.open(backbone, stock=5)
    await buy(client, shop, user_id=7, units=1)
    gid = await registered(client, shop, user_id=7)
    await client.abort(gid)
    assert await shop.stock() == 4
    assert await shop.orders() == [(7, 1, CONFIRMED)]
    assert await shop.barrier("order", gid) == [("02", "try", "cancel"), ("02", "cancel", "cancel")]


async def test_a_try_that_hangs_until_after_its_cancel_is_refused(backbone: Backbone, client: DtmClient) -> None:
    """Try was on its way while the transaction was cancelled: it answers ABORTED and reserves nothing."""
    shop = await Shop.open(backbone, stock=5)
    gid = await registered(client, shop, user_id=7)
    await client.abort(gid)
    stock, order = shop.tcc_branches()
    async with Channels() as channels:
        for target, branch_id, payload in (
            (stock.try_, "01", fields(shop.product_id, 1)),
            (order.try_, "02", fields(7, shop.product_id)),
        ):
            context = BranchContext(gid, "tcc", branch_id, TRY, client.address)
            with pytest.raises(Refused):
                await channels.call(target, payload, context.metadata(), timeout_ms=TRY_TIMEOUT_MS)
    assert await shop.stock() == 5
    assert await shop.orders() == []


async def registered(client: DtmClient, shop: Shop, *, user_id: int) -> str:
    """A prepared transaction with both branches, none of whose Tries has been sent."""
    gid = await client.new_gid()
    await client.prepare(gid, options=WAITING)
    stock, order = shop.tcc_branches()
    for branch_id, branch, payload in (
        ("01", stock, fields(shop.product_id, 1)),
        ("02", order, fields(user_id, shop.product_id)),
    ):
        await client.register_branch(
            gid,
            trans_type="tcc",
            branch_id=branch_id,
            data={"confirm": branch.confirm, "cancel": branch.cancel},
            payload=payload,
        )
    return gid
