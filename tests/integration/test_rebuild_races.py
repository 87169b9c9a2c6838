"""What comes between the steps of a rebuild, or beside it: each docstring is the rule that holds nevertheless."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import uuid4

import pytest

from consumers.sales_watch import SalesWatch
from consumers.seckill_rmq import SeckillCarrier
from seckill.admission.gate import Wanted
from seckill.admission.inspection import Inspection
from seckill.admission.ledger import LedgerEntry
from seckill.admission.link import RedisLink
from seckill.admission.rebuild import SaleContents
from seckill.checkout.reservations import Reservations
from seckill.crashpoints import CrashPoint
from seckill.domain.errors import AdmissionUnavailable
from seckill.domain.order import Order, Sale
from seckill.domain.outcomes import Admission, Admitted, AlreadyDecided, OrderResult, OrderStatus, Rejected
from seckill.domain.reasons import Rejection
from seckill.front.orders_api import OrderLookUp
from seckill.front.product_client import ProductClient
from seckill.product.sales import CLOSED
from seckill.wire import product_pb2
from seckill.wiring import open_channel
from tests.integration.test_carrier import carry, direct
from tests.support.backbone import Backbone
from tests.support.branch_calls import branch_calls
from tests.support.rebuilds import (
    at_point,
    entries_of,
    lose,
    pass_everything,
    publish,
    redis_url,
    view_of,
)
from tests.support.redis_servers import raw_redis

pytestmark = pytest.mark.own_redis


async def admit(backbone: Backbone, sale: Sale, *, key: str) -> Admission:
    return await backbone.gate.admit(Wanted(sale.product_id, 1, 1, request_id=key))


def ordered(sale: Sale, answer: Admission) -> Order:
    assert isinstance(answer, Admitted)
    number = answer.admission_number
    return Order(answer.order_id, sale.sale_id, 1, sale.product_id, 1, answer.admitted_at_ms, number)


async def reject(backbone: Backbone, order: Order, reason: str) -> None:
    """In the database alone."""
    address = backbone.settings.product.grpc
    async with open_channel(address) as channel:
        await Reservations(channel, address=address, timeout_ms=2_000).reject([order], {order.key: reason})


# --- two who look after the same Redis -------------------------------------------------------------------------------


async def test_a_server_is_not_complete_while_somebody_is_at_a_sale(backbone: Backbone, watch: SalesWatch) -> None:
    """One rebuilds a closed sale, another one finds nothing else to do, and the first one dies: the sale is not
    forgotten, as it would be if the second one had called the server complete.
    """
    sale = await backbone.open_sale(stock=5)
    order = await backbone.admit(sale, 1)
    async with branch_calls(backbone.settings, [order], uuid4().hex) as lost:
        await lost.product("try")
    await backbone.sales.SetSaleState(product_pb2.SetSaleStateRequest(sale_id=sale.sale_id, state=CLOSED))
    lose(backbone, sale)
    closed = await backbone.rebuilds.close(sale, newest=True)
    assert closed is not None
    assert await watch.once() == []
    await backbone.rebuilds.release(closed)
    assert [each.sale_id for each in await watch.once()] == [sale.sale_id]
    assert (await entries_of(backbone, sale)).keys() == {order.order_id}


async def test_a_doubt_outlives_the_rebuild_that_it_meets(backbone: Backbone) -> None:
    """A worker comes upon an unknown order while a rebuild is under way, which dies; then the sale is closed."""
    sale = await backbone.open_sale(stock=5)
    order = await backbone.admit(sale, 1)
    assert await backbone.rebuilds.close(sale, newest=True) is not None
    await backbone.ledger.doubt([order])
    assert await backbone.rebuilds.doubted() == {(sale.product_id, sale.sale_id)}


async def test_one_sale_that_cannot_be_rebuilt_keeps_back_no_other(backbone: Backbone, watch: SalesWatch) -> None:
    """What goes wrong with one sale goes wrong with it alone: those after it are opened."""
    first, second = await backbone.open_sale(stock=5), await backbone.open_sale(stock=6)
    for sale in (first, second):
        lose(backbone, sale)

    def overtake(_point: CrashPoint) -> None:
        with raw_redis(redis_url(backbone)) as redis:
            redis.hset(f"seckill:{{{second.product_id}}}:{second.sale_id}:stock", "rebuild", "another")

    with at_point(CrashPoint.REBUILD_STAGED, overtake):
        rebuilt = await watch.by_hand(every=False)
    assert [each.sale_id for each in rebuilt] == [first.sale_id]


async def test_an_onlooker_sees_that_a_sale_is_being_rebuilt(backbone: Backbone) -> None:
    """Its counters are nobody's word until the install, though the server is the one that it was warmed on."""
    sale = await backbone.open_sale(stock=5)
    link = RedisLink(backbone.settings.redis)
    vouched = []
    for _ in range(2):
        counted = await Inspection(link).counters([(sale.product_id, sale.sale_id)])
        vouched.append(counted.sales[sale.sale_id].vouched)
        await backbone.rebuilds.close(sale, newest=True)
    await link.close()
    assert vouched == [True, False]


# --- what ends meanwhile ---------------------------------------------------------------------------------------------


async def test_what_was_aside_and_ended_meanwhile_does_not_stay_aside(backbone: Backbone) -> None:
    """A letter is discarded after its reservation was read and before the install: the entry that is put back is due,
    so that it gives back what it holds. Nobody would look at it if it were set aside.
    """
    sale = await backbone.open_sale(stock=5)
    order = await backbone.admit(sale, 1)
    await backbone.ledger.park([order])
    closed = await backbone.rebuilds.close(sale, newest=True)
    assert closed is not None
    aside = LedgerEntry(order, 0, closed.at_ms - 1, "parked")
    contents = SaleContents(5, 4, 1_000, [aside], {1: (1, [order.order_id])}, {})
    await backbone.rebuilds.stage(closed, contents)
    await backbone.ledger.settle([(order, Rejected(Rejection.DISCARDED))])
    await backbone.rebuilds.install(closed, contents)
    assert [entry.order for entry in await backbone.ledger.due(sale.product_id, limit=9)] == [order]
    await backbone.ledger.settle([(order, Rejected(Rejection.DISCARDED))])
    assert ((await view_of(backbone, sale)).stock, await entries_of(backbone, sale)) == (5, {})


# --- what buyers were told -------------------------------------------------------------------------------------------


async def test_a_rejection_is_told_again_after_a_rebuild(backbone: Backbone, watch: SalesWatch) -> None:
    """The results were lost: who repeats the request with its key hears the same end, and takes no unit for it."""
    sale = await backbone.open_sale(stock=5)
    order = ordered(sale, await admit(backbone, sale, key="first"))
    await reject(backbone, order, Rejection.SOLD_OUT)
    lose(backbone, sale)
    await watch.by_hand(every=False)
    end = OrderResult(order.order_id, OrderStatus.REJECTED, Rejection.SOLD_OUT)
    assert await admit(backbone, sale, key="first") == AlreadyDecided(order.order_id, end)
    assert (await view_of(backbone, sale)).stock == 5


async def test_every_order_of_a_buyer_is_told_again_after_a_rebuild(
    backbone: Backbone, watch: SalesWatch, carrier: SeckillCarrier
) -> None:
    """However many a buyer has: the ids that the buyer's own entry has no room for are told by results."""
    sale = await backbone.open_sale(stock=30, per_user_limit=20)
    keys = [f"key-{number}" for number in range(10)]
    await carry(carrier, [ordered(sale, await admit(backbone, sale, key=key)) for key in keys])
    assert (await backbone.read_sale(sale)).sold == 10
    lose(backbone, sale)
    await watch.by_hand(every=False)
    answers = [await admit(backbone, sale, key=key) for key in keys]
    assert {answer.result.status for answer in answers if isinstance(answer, AlreadyDecided)} == {OrderStatus.CONFIRMED}
    assert (await view_of(backbone, sale)).admitted == 10


async def test_an_accepted_order_is_not_denied_before_the_rebuild(backbone: Backbone, watch: SalesWatch) -> None:
    """Its record is in the topic, and nothing else is left of it: nobody is told that there is no such order."""
    sale = await backbone.open_sale(stock=5)
    order = await backbone.admit(sale, 1)
    await publish(backbone, [order])
    lose(backbone, sale)
    address = backbone.settings.product.grpc
    async with open_channel(address) as channel:
        look = OrderLookUp(backbone.ledger, ProductClient(channel, address=address))
        with pytest.raises(AdmissionUnavailable):
            await look.find(order.order_id, wait_ms=0)
        await watch.by_hand(every=False)
        found = await look.find(order.order_id, wait_ms=0)
        assert found is not None
        assert found.status is OrderStatus.PROCESSING
        stranger = replace(order, order_id=order.order_id[:-4] + "0000")
        assert await look.find(stranger.order_id, wait_ms=0) is None


# --- orders past the front -------------------------------------------------------------------------------------------


@pytest.mark.own_coordinator
async def test_an_order_past_the_front_that_waits_out_an_outage_is_counted(
    backbone: Backbone, watch: SalesWatch, carrier: SeckillCarrier
) -> None:
    """A worker has admitted it, and waits for the coordinator. Redis is lost and rebuilt meanwhile, and nothing tells
    of that admission: it is asked for again with the next attempt.
    """
    sale = await backbone.open_sale(stock=5)
    order = Order((await backbone.admit(sale, 1)).order_id, 0, 1, sale.product_id, 1, 0)
    lose(backbone, sale)
    await watch.by_hand(every=False)
    await publish(backbone, [order])
    await backbone.stop("coordinator")
    carrying = asyncio.create_task(carry(carrier, [order]))
    async with asyncio.timeout(10):
        while not await entries_of(backbone, sale):
            await asyncio.sleep(0.05)
        while not carrier.held_back():
            await asyncio.sleep(0.05)
    lose(backbone, sale)
    await watch.by_hand(every=False)
    assert (await view_of(backbone, sale)).stock == 5
    await backbone.start("coordinator")
    async with asyncio.timeout(40):
        while not carrying.done():  # its number, of an earlier life of Redis, has the sale rebuilt once more
            await watch.once()
            await asyncio.sleep(0.2)
    await carrying
    assert ((await view_of(backbone, sale)).stock, (await backbone.read_sale(sale)).stock) == (4, 4)


@pytest.mark.parametrize("only_the_row_is_left", [False, True])
async def test_an_order_without_a_sale_stays_in_the_one_that_admitted_it(
    backbone: Backbone, watch: SalesWatch, *, only_the_row_is_left: bool
) -> None:
    """The sale was replaced since: its successor, rebuilt, does not count the order a second time."""
    old = await backbone.open_sale(stock=5)
    order = await backbone.admit(old, 1)
    await publish(backbone, [direct(order)])
    await pass_everything(backbone)
    new = await backbone.replace_sale(old, stock=7)
    if only_the_row_is_left:
        async with branch_calls(backbone.settings, [order], uuid4().hex) as lost:
            await lost.product("try")
        lose(backbone, old)
    await watch.by_hand(every=True)
    assert (await view_of(backbone, new)).stock == 7
    assert await entries_of(backbone, new) == {}
    assert (await entries_of(backbone, old)).keys() == {order.order_id}
