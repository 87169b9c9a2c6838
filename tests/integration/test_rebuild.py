"""Rebuilding what Redis lost of a sale: what comes back, what it must not do, and what comes in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import pytest

from consumers.reconcile import Reconciler
from consumers.sales_watch import SalesWatch
from consumers.seckill_rmq import HELD_PAUSE_MS, SeckillCarrier
from seckill.admission.rebuild import PATIENCE_MS, RebuildFailed
from seckill.crashpoints import CrashPoint
from seckill.domain.errors import BranchFailed
from seckill.domain.order import Order, Sale
from seckill.domain.outcomes import OrderStatus, Refused
from seckill.domain.reasons import DeadLetterReason, Refusal
from seckill.front.orders_api import OrderLookUp
from seckill.front.product_client import ProductClient
from seckill.front.sale_desk import SaleChange, SaleDesk
from seckill.messaging.dead_letters import DeadLetters, Letter
from seckill.messaging.publisher import open_publisher
from seckill.wire import product_pb2
from seckill.wiring import open_channel
from tests.integration.test_carrier import CONFIRMED, REJECTED, carry, delivered, free_order, letters, results
from tests.support.backbone import Backbone
from tests.support.branch_calls import branch_calls
from tests.support.rebuilds import (
    at_point,
    entries_of,
    lose,
    open_watch,
    pass_everything,
    publish,
    redis_url,
    view_of,
)
from tests.support.redis_servers import raw_redis

pytestmark = pytest.mark.own_redis


@pytest.fixture
async def desk(backbone: Backbone) -> AsyncIterator[SaleDesk]:
    address = backbone.settings.product.grpc
    async with open_channel(address) as channel:
        yield SaleDesk(ProductClient(channel, address=address), backbone.book)


async def close_in_sql(backbone: Backbone, sale: Sale) -> None:
    """By an operator whose front dies before it tells Redis."""
    await backbone.sales.SetSaleState(product_pb2.SetSaleStateRequest(sale_id=sale.sale_id, state="closed"))


async def bury(backbone: Backbone, order: Order, reason: DeadLetterReason = DeadLetterReason.BRANCH_FAILED) -> None:
    """The letter, and not the parking of the entry."""
    kafka = backbone.settings.kafka
    letter = Letter(reason, BranchFailed("try", "INTERNAL", "for the test"), attempts=3, first_failed_ms=1)
    async with open_publisher(kafka) as publisher:
        letters = DeadLetters(publisher, topic=kafka.dead_letter_topic, group=kafka.group)
        await letters.bury(delivered(order).record, letter)


async def ended(backbone: Backbone, carrier: SeckillCarrier, orders: list[Order]) -> list[tuple[OrderStatus, str]]:
    """How the orders ended. A slow coordinator leaves one undecided for a while: then its record comes again."""
    async with asyncio.timeout(30):
        while (OrderStatus.PROCESSING, "") in (found := await results(backbone, orders)):
            await asyncio.sleep(0.3)
            await carry(carrier, orders)
    return found


# --- what comes back -------------------------------------------------------------------------------------------------


async def test_a_lost_sale_comes_back_whole(backbone: Backbone, watch: SalesWatch, carrier: SeckillCarrier) -> None:
    """Sold units, an order on its way, one that a transaction holds: each is counted once, and the rest is stock."""
    sale = await backbone.open_sale(stock=10, per_user_limit=2)
    sold = await backbone.admit(sale, 1, quantity=2)
    await carry(carrier, [sold])
    on_its_way, held = await backbone.admit(sale, 2), await backbone.admit(sale, 3)
    await publish(backbone, [sold, on_its_way])
    async with branch_calls(backbone.settings, [held], uuid4().hex) as lost:
        await lost.product("try")
    lose(backbone, sale)
    (rebuilt,) = await watch.by_hand(every=False)
    assert (rebuilt.stock, rebuilt.sold, rebuilt.pending, rebuilt.parked, rebuilt.surplus) == (6, 2, 2, 0, 0)
    view = await view_of(backbone, sale)
    assert (view.stock, view.admitted, view.initial, view.state) == (6, 4, 10, "open")
    entries = await entries_of(backbone, sale)
    assert entries.keys() == {on_its_way.order_id, held.order_id}
    assert entries[on_its_way.order_id].order == on_its_way
    assert await backbone.book.units_of_buyers(sale.product_id, sale.sale_id) == {1: 2, 2: 1, 3: 1}
    assert await watch.by_hand(every=False) == []


async def test_an_order_past_the_front_waits_for_the_rebuild(
    backbone: Backbone, watch: SalesWatch, carrier: SeckillCarrier
) -> None:
    """It meets a Redis that has lost its sale: it waits, however many times it is refused meanwhile, and is carried."""
    sale = await backbone.open_sale(stock=2)
    lose(backbone, sale)
    carrying = asyncio.create_task(carry(carrier, [order := free_order(sale.product_id, 1)]))
    waits_ms = (backbone.settings.retry.attempts_max + 1) * HELD_PAUSE_MS
    finished, _ = await asyncio.wait({carrying}, timeout=waits_ms / 1_000)
    assert not finished
    await watch.by_hand(every=False)
    await carrying
    assert await ended(backbone, carrier, [order]) == [(CONFIRMED, "")]
    assert await letters(backbone) == []


async def test_an_order_that_only_the_ledger_brought_back_is_not_forgotten(
    backbone: Backbone, watch: SalesWatch, reconciler: Reconciler
) -> None:
    """The group has passed its record while it was undecided, and no transaction holds it: the topic is read from the
    creation of the sale on, and reconcile publishes the order again at once.
    """
    sale = await backbone.open_sale(stock=5)
    order = await backbone.admit(sale, 1)
    await publish(backbone, [order])
    await pass_everything(backbone)
    lose(backbone, sale)
    (rebuilt,) = await watch.by_hand(every=False)
    assert (rebuilt.stock, rebuilt.pending, rebuilt.lost_by_redis) == (4, 1, 1)
    assert (await entries_of(backbone, sale))[order.order_id].published_at_ms == 0
    assert (await reconciler.once()).counts["republished"] == 1


async def test_a_letters_parked_order_stays_parked(backbone: Backbone, watch: SalesWatch) -> None:
    """What a letter sets aside stays aside and keeps its units; a letter about a reused id sets nothing aside."""
    sale = await backbone.open_sale(stock=5)
    aside, true = await backbone.admit(sale, 1), await backbone.admit(sale, 2)
    await publish(backbone, [aside, true])
    await pass_everything(backbone)
    await bury(backbone, aside)
    await bury(backbone, replace(true, quantity=3), DeadLetterReason.ID_REUSED)
    lose(backbone, sale)
    (rebuilt,) = await watch.by_hand(every=False)
    assert (rebuilt.stock, rebuilt.pending, rebuilt.parked) == (3, 1, 1)
    states = {order_id: entry.state for order_id, entry in (await entries_of(backbone, sale)).items()}
    assert states == {aside.order_id: "parked", true.order_id: "pending"}


async def test_an_older_sale_is_rebuilt_and_not_made_current(backbone: Backbone, watch: SalesWatch) -> None:
    """A closed sale with an unfinished order comes back beside its product's current one."""
    old = await backbone.open_sale(stock=5)
    order = await backbone.admit(old, 1)
    async with branch_calls(backbone.settings, [order], uuid4().hex) as lost:
        await lost.product("try")
    new = await backbone.replace_sale(old, stock=7)
    lose(backbone, old)
    rebuilt = await watch.by_hand(every=False)
    assert [each.sale_id for each in rebuilt] == [new.sale_id, old.sale_id]
    assert (await view_of(backbone, new)).stock == 7
    assert (await entries_of(backbone, old)).keys() == {order.order_id}


# --- what must not happen --------------------------------------------------------------------------------------------


async def test_a_sale_that_is_closed_during_a_rebuild_does_not_reopen(backbone: Backbone, watch: SalesWatch) -> None:
    """The row is closed by a front that dies before it tells Redis, while the rebuild has already read the row."""
    sale = await backbone.open_sale(stock=5)
    lose(backbone, sale)
    closing: list[asyncio.Task[None]] = []
    with at_point(
        CrashPoint.REBUILD_CLOSED,
        lambda _: closing.append(asyncio.ensure_future(close_in_sql(backbone, sale))),
    ):
        assert len(await watch.by_hand(every=False)) == 1
    await asyncio.gather(*closing)
    assert (await view_of(backbone, sale)).state == "closed"


async def test_of_two_rebuilds_one_steps_back(backbone: Backbone, watch: SalesWatch) -> None:
    """Two at once: each sale is rebuilt by one of them, and the other neither waits for it nor undoes it."""
    sale = await backbone.open_sale(stock=5)
    lose(backbone, sale)
    async with open_watch(backbone) as other:
        done = await asyncio.gather(watch.by_hand(every=False), other.by_hand(every=False))
    assert sorted(map(len, done)) == [0, 1]
    assert (await view_of(backbone, sale)).stock == 5


async def test_a_rebuild_that_died_is_taken_over(backbone: Backbone, watch: SalesWatch) -> None:
    """Killed half way, it leaves the sale closed; when its token has aged another rebuild begins, and not before."""
    sale = await backbone.open_sale(stock=5)
    admission_closed = await backbone.rebuilds.close(sale, newest=True)
    assert admission_closed is not None
    assert await watch.by_hand(every=False) == []
    with raw_redis(redis_url(backbone)) as redis:
        key = f"seckill:{{{sale.product_id}}}:{sale.sale_id}:stock"
        redis.hincrby(key, "rebuild_at_ms", -PATIENCE_MS)
    assert len(await watch.by_hand(every=False)) == 1
    assert (await view_of(backbone, sale)).stock == 5


async def test_a_rebuild_that_was_overtaken_installs_nothing(backbone: Backbone, watch: SalesWatch) -> None:
    """It stood still after it had staged, another one took over: the token is compared at the end."""
    sale = await backbone.open_sale(stock=5)
    lose(backbone, sale)

    def overtake(_point: CrashPoint) -> None:
        with raw_redis(redis_url(backbone)) as redis:
            redis.hset(f"seckill:{{{sale.product_id}}}:{sale.sale_id}:stock", "rebuild", "another")

    with at_point(CrashPoint.REBUILD_STAGED, overtake), pytest.raises(RebuildFailed, match="overtaken"):
        await watch.by_hand(every=False)
    assert await backbone.book.read(sale.product_id) is None


async def test_what_was_staged_is_installed_whole_or_not_at_all(backbone: Backbone, watch: SalesWatch) -> None:
    """Staged keys that expired, or that a failover lost, are noticed; admission stays closed, the next attempt ends."""
    sale = await backbone.open_sale(stock=5)
    order = await backbone.admit(sale, 1)
    await publish(backbone, [order])
    lose(backbone, sale)

    def expire(_point: CrashPoint) -> None:
        with raw_redis(redis_url(backbone)) as redis:
            redis.delete(*redis.scan_iter(f"seckill:{{{sale.product_id}}}:{sale.sale_id}:buyers:*"))

    with at_point(CrashPoint.REBUILD_STAGED, expire), pytest.raises(RebuildFailed, match="incomplete"):
        await watch.by_hand(every=False)
    (answer,) = await backbone.gate.admit_late([replace(order, order_id=order.order_id[:-4] + "0000")])
    assert answer == Refused(Refusal.PAUSED, rebuilding=True)
    assert len(await watch.by_hand(every=False)) == 1
    assert (await view_of(backbone, sale)).stock == 4


@pytest.mark.parametrize("delta", [3, -3])
async def test_a_change_that_is_repeated_after_a_rebuild_moves_nothing(
    backbone: Backbone, watch: SalesWatch, desk: SaleDesk, delta: int
) -> None:
    """A repeated PATCH finds its units in the row: Redis, which forgot the change, does not take them in twice."""
    sale = await backbone.open_sale(stock=5)
    await desk.change("change-1", sale.sale_id, SaleChange(), stock_delta=delta)
    if delta > 0:
        lose(backbone, sale)
    await watch.by_hand(every=True)
    assert (await view_of(backbone, sale)).initial == 5 + delta
    await desk.change("change-1", sale.sale_id, SaleChange(), stock_delta=delta)
    view = await view_of(backbone, sale)
    assert (view.initial, view.stock) == (5 + delta, 5 + delta)
    assert (await backbone.read_sale(sale)).initial == 5 + delta


async def test_a_change_that_is_half_way_is_made_whole(backbone: Backbone, watch: SalesWatch, desk: SaleDesk) -> None:
    """Redis gave units up and the row was never told: both sides have them again, and the repeat lowers both."""
    sale = await backbone.open_sale(stock=5)
    assert await backbone.book.take_units(sale, "change-1", 2) == 2
    (rebuilt,) = await watch.by_hand(every=False)
    assert (rebuilt.stock, (await view_of(backbone, sale)).initial) == (5, 5)
    changed = await desk.change("change-1", sale.sale_id, SaleChange(), stock_delta=-2)
    assert (changed.taken, changed.sale.initial, (await view_of(backbone, sale)).initial) == (2, 3, 3)


async def test_a_repeated_create_does_not_warm_what_was_lost(
    backbone: Backbone, watch: SalesWatch, desk: SaleDesk
) -> None:
    """The row is untouched, and an order of the sale is on its way: only the create that made the row may warm it."""
    sale = await backbone.open_sale(stock=5)
    order = await backbone.admit(sale, 1)
    await publish(backbone, [order])
    lose(backbone, sale)
    await desk.set_state(sale.sale_id, "paused")
    await desk.set_state(sale.sale_id, "open")
    assert await backbone.book.read(sale.product_id) is None
    await watch.by_hand(every=False)
    assert (await view_of(backbone, sale)).stock == 4


# --- what comes late -------------------------------------------------------------------------------------------------


async def test_a_publish_that_was_in_flight_is_carried(
    backbone: Backbone, watch: SalesWatch, carrier: SeckillCarrier
) -> None:
    """A front stood still between admission and publish for longer than a rebuild takes. Its order's units were given
    back, so the worker admits it again, under its own id: sold once, and counted once.
    """
    sale = await backbone.open_sale(stock=5)
    order = await backbone.admit(sale, 1)
    lose(backbone, sale)
    await watch.by_hand(every=False)
    assert (await view_of(backbone, sale)).stock == 5
    await carry(carrier, [order])
    assert await ended(backbone, carrier, [order]) == [(CONFIRMED, "")]
    view = await view_of(backbone, sale)
    assert (view.stock, view.admitted, (await backbone.read_sale(sale)).sold) == (4, 1, 1)


async def test_a_publish_that_was_in_flight_is_refused_when_its_units_are_gone(
    backbone: Backbone, watch: SalesWatch, carrier: SeckillCarrier
) -> None:
    """The units went to others, who were told so: the late order ends as sold out, and they keep theirs."""
    sale = await backbone.open_sale(stock=1)
    late = await backbone.admit(sale, 1)
    lose(backbone, sale)
    await watch.by_hand(every=False)
    other = await backbone.admit(sale, 2)
    await carry(carrier, [late, other])
    assert await ended(backbone, carrier, [late, other]) == [(REJECTED, "SOLD_OUT"), (CONFIRMED, "")]
    assert (await view_of(backbone, sale)).stock == 0


async def test_a_record_stays_in_hand_while_its_sale_is_rebuilt(
    backbone: Backbone, watch: SalesWatch, carrier: SeckillCarrier
) -> None:
    """It came after the topic was read: nobody has counted it, so it is carried only after the install."""
    sale = await backbone.open_sale(stock=5)
    order = await backbone.admit(sale, 1)
    lose(backbone, sale)
    carrying: list[asyncio.Task[None]] = []
    with at_point(CrashPoint.REBUILD_STAGED, lambda _: carrying.append(asyncio.ensure_future(carry(carrier, [order])))):
        (rebuilt,) = await watch.by_hand(every=False)
    assert rebuilt.pending == 0
    async with asyncio.timeout(20):
        await asyncio.gather(*carrying)
    assert await ended(backbone, carrier, [order]) == [(CONFIRMED, "")]
    assert (await view_of(backbone, sale)).stock == 4


async def test_a_worker_that_sees_more_than_redis_knows_closes_the_sale(
    backbone: Backbone, watch: SalesWatch, carrier: SeckillCarrier
) -> None:
    """A number above Redis' own says that Redis went back: admission is closed until the sale has been rebuilt."""
    sale = await backbone.open_sale(stock=5)
    order = await backbone.admit(sale, 1)
    await publish(backbone, [order])
    with raw_redis(redis_url(backbone)) as redis:  # the server is the same one, and knows less: no run id tells
        root = f"seckill:{{{sale.product_id}}}:{sale.sale_id}"
        redis.hset(f"{root}:stock", mapping={"stock": 5, "admitted": 0, "number": 0})
        redis.delete(f"{root}:buyers", f"{root}:ledger", f"{root}:due", f"{root}:ages")
    carrying = asyncio.create_task(carry(carrier, [order]))
    async with asyncio.timeout(5):
        while (view := await backbone.book.read(sale.product_id)) is None or view.vouched:
            await asyncio.sleep(0.05)
    (rebuilt,) = await watch.once()
    assert (rebuilt.stock, rebuilt.pending) == (4, 1)
    async with asyncio.timeout(20):
        await carrying
    assert await ended(backbone, carrier, [order]) == [(CONFIRMED, "")]
    assert (await view_of(backbone, sale)).stock == 4


async def test_what_a_buyer_was_told_is_told_again_before_the_rebuild(
    backbone: Backbone, carrier: SeckillCarrier, desk: SaleDesk
) -> None:
    """Redis went back to before the order ended: until somebody vouches for it again, SQL is asked."""
    sale = await backbone.open_sale(stock=5)
    order = await backbone.admit(sale, 1)
    root = f"seckill:{{{sale.product_id}}}:{sale.sale_id}"
    with raw_redis(redis_url(backbone)) as redis:
        (entry,) = redis.hvals(f"{root}:ledger")
        await carry(carrier, [order])
        redis.delete(f"{root}:result:{order.order_id}")
        redis.hset(f"{root}:ledger", order.order_id, entry)
    await backbone.ledger.doubt([replace(order, admission_number=2)])
    look = OrderLookUp(backbone.ledger, desk.product)
    for wait_ms in (0, 50):
        found = await look.find(order.order_id, wait_ms=wait_ms)
        assert found is not None
        assert found.status is OrderStatus.CONFIRMED
