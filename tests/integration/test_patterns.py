"""The four patterns of a transaction, one contract: the rows decide, an order ends once, and what dies is mended.

On both sides; XA on real servers alone, for SQLite has none.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio

from consumers.reconcile import Reconciler
from consumers.seckill_rmq import SeckillCarrier
from seckill.admission.keys import sale_keys
from seckill.crashpoints import CrashPoint
from seckill.domain.order import Order
from seckill.domain.outcomes import Confirmed, Failed, OrderStatus, Outcome, Rejected, Undecided
from seckill.dtm.errors import Refused
from seckill.dtm.protocol import COMMIT, TransOptions
from seckill.wiring import open_carrier, open_reconciler, with_values
from tests.integration.test_carrier import CONFIRMED, REJECTED, carry, results
from tests.integration.test_reconcile import make_due
from tests.support.backbone import Backbone, open_backbone
from tests.support.pattern_rigs import PatternRig, dying_at, of_pattern, open_pattern_rig, orders_of
from tests.support.pipeline import own_redis
from tests.support.redis_servers import raw_redis
from tests.support.relays import Poison, relay_to
from tests.support.sides import Side
from tests.support.unreliable import Loss
from tests.support.verdicts import judge, open_stores, read_facts

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATTERNS = ("tcc", "saga", "message", "xa")
SINGLE = ("saga", "message")
ORPHANED_S = 2.1
"""Older than that a branch is an orphan: `orphan_after_ms` is a second here, and ages are told in whole ones."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def services(side: Side, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Backbone]:
    """For all tests of a side: each has a sale of its own."""
    folder: Path = tmp_path_factory.mktemp("patterns")
    async with own_redis(side) as own, open_backbone(own, folder) as opened:
        # A sale's orders follow one another through its row: on a slow disk the last of many takes its time.
        opened.settings = with_values(opened.settings, {"dtm": {"branch_timeout_s": 3, "try_timeout_ms": 3_000}})
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reconciler(services: Backbone) -> AsyncIterator[Reconciler]:
    async with open_reconciler(services.settings) as (opened, _):
        yield opened


@pytest.fixture
def pattern(request: pytest.FixtureRequest, side: Side) -> str:
    if request.param == "xa" and side.kind == "embedded":
        pytest.skip("SQLite has no XA")
    return str(request.param)


@pytest_asyncio.fixture(loop_scope="module")
async def rig(services: Backbone, pattern: str) -> AsyncIterator[PatternRig]:
    async with open_pattern_rig(services, pattern) as opened:
        yield opened


def each(*patterns: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("pattern", patterns, indirect=True)


async def counters(services: Backbone, order: Order) -> tuple[object, ...]:
    """Stock, frozen and sold of the order's sale."""
    query = "SELECT stock, frozen, sold FROM sale WHERE sale_id = :id"
    (row,) = await services.query("product", query, id=order.sale_id)
    return row


async def confirmed_orders(services: Backbone, order: Order) -> int:
    query = "SELECT count(*) FROM orders WHERE sale_id = :id AND status = 1"
    ((count,),) = await services.query("order", query, id=order.sale_id)
    return int(str(count))


async def require_invariants(services: Backbone, order: Order) -> None:
    """All six hold of the order's product."""
    async with open_stores(services.settings) as stores:
        verdict = judge(await read_facts(stores, product_ids=[order.product_id]))
    assert not any(verdict.breaches.values()), verdict.breaches


async def until_all_ended(
    services: Backbone, carrier: SeckillCarrier, reconciler: Reconciler, orders: list[Order]
) -> None:
    """What a slow disk has left undecided is looked after; what is published again is carried."""
    async with asyncio.timeout(30):
        while True:
            told = zip(orders, await results(services, orders), strict=True)
            if not (left := [order for order, (status, _) in told if status is OrderStatus.PROCESSING]):
                return
            await make_due(services, left)
            if (await reconciler.once()).counts["republished"]:
                await carry(carrier, left)
            await asyncio.sleep(0.2)


async def until_ended(rig: PatternRig, gid: str) -> str:
    """The status with which the coordinator has finished the transaction."""
    async with asyncio.timeout(20):
        while True:
            found = await rig.client.query(gid)
            if found is not None and found.finished:
                return found.status
            await rig.client.reset_cron_time(later_than_s=1)
            await asyncio.sleep(0.1)


def kinds(outcomes: dict[object, Outcome]) -> Counter[object]:
    return Counter(str(one.reason) if isinstance(one, Rejected) else type(one) for one in outcomes.values())


# --- what is the same in each ----------------------------------------------------------------------------------------


@each(*PATTERNS)
async def test_fifty_orders_for_thirty_units(services: Backbone, reconciler: Reconciler, pattern: str) -> None:
    """30 end confirmed and 20 sold out, a group that is wholly refused among them; every invariant holds, and a batch
    that comes again changes nothing.
    """
    sale = await services.open_sale(stock=50)
    orders = [await services.admit(sale, user) for user in range(1, 51)]
    await services.query("product", "UPDATE sale SET stock = 30, initial = 30 WHERE sale_id = :id", id=sale.sale_id)
    with raw_redis(services.settings.redis.url.get_secret_value()) as redis:
        # A Redis that has forgotten 20 of the units it gave away, and gave them away once more.
        redis.hset(sale_keys(sale.product_id, sale.sale_id).stock, mapping={"initial": 30, "admitted": 30})
    async with open_carrier(of_pattern(services.settings, pattern)) as (carrier, _):
        for batch in (orders[:25], orders[25:40], orders[40:], orders[20:45]):
            await carry(carrier, batch)
        await until_all_ended(services, carrier, reconciler, orders)
    ended = Counter(await results(services, orders))
    assert ended == {(CONFIRMED, ""): 30, (REJECTED, "SOLD_OUT"): 20}
    assert await counters(services, orders[0]) == (0, 0, 30)
    view = await services.book.read(sale.product_id)
    assert view is not None
    assert view.stock == 0  # a SOLD_OUT of the database gives no units back
    async with open_stores(services.settings) as stores:
        facts = await read_facts(stores, product_ids=[sale.product_id], accepted=[o.order_id for o in orders])
    verdict = judge(facts)
    assert not any(verdict.breaches.values()), verdict.breaches
    assert not verdict.lost


@each(*PATTERNS)
async def test_two_buyers_with_a_limit(rig: PatternRig) -> None:
    """Of 64 orders of two buyers who may have three each, six confirm; run once more, each has the same end."""
    orders = await orders_of(rig.backbone, [1, 2] * 32, stock=40, limit=3)
    outcomes = await rig.checkout.run(orders)
    assert kinds(dict(outcomes)) == {Confirmed: 6, "LIMIT_EXCEEDED": 58}
    assert await rig.checkout.run(orders) == outcomes
    assert await counters(rig.backbone, orders[0]) == (34, 0, 6)
    assert await confirmed_orders(rig.backbone, orders[0]) == 6


@each(*PATTERNS)
async def test_a_lost_answer_of_submit_changes_nothing(rig: PatternRig) -> None:
    """Nobody is told what no row says: a hold that nobody may sell yet waits for reconcile, the rest is read."""
    orders = await orders_of(rig.backbone, [1], stock=5)
    rig.client.submit_losses = [Loss.ANSWER]
    (outcome,) = (await rig.checkout.run(orders)).values()
    if rig.trans_type in ("saga", "msg"):
        assert isinstance(outcome, Undecided)
        assert await counters(rig.backbone, orders[0]) == (4, 1, 0)
        await sell_what_is_finished(rig, outcome.gid)
    assert await counters(rig.backbone, orders[0]) == (4, 0, 1)
    assert list((await rig.checkout.run(orders)).values()) == [Confirmed()]


async def sell_what_is_finished(rig: PatternRig, gid: str) -> None:
    """As reconcile's look does."""
    assert await until_ended(rig, gid) == "succeed"
    await rig.orphans.end(await rig.orphans.look(gid))


# --- saga ------------------------------------------------------------------------------------------------------------


@each("saga")
async def test_a_saga_that_its_coordinator_lost_heals(services: Backbone, rig: PatternRig) -> None:
    """The coordinator forgot it after the order was written: the next saga of the order undoes it, and the one after
    that confirms. What is still on its way of the lost one does nothing any more.
    """
    sale = await services.open_sale(stock=5)
    order = await services.admit(sale, 1)
    lost = uuid4().hex
    await rig.order(lost, [order])
    async with open_carrier(of_pattern(services.settings, "saga")) as (carrier, _):
        await carry(carrier, [order])
    assert await results(services, [order]) == [(CONFIRMED, "")]
    with pytest.raises(Refused):
        await rig.product(lost, [order])
    with pytest.raises(Refused):
        await rig.order(lost, [order])
    await require_invariants(services, order)


@each("saga")
async def test_a_saga_that_goes_on_is_left_alone(services: Backbone, reconciler: Reconciler, pattern: str) -> None:
    """While the coordinator repeats an action, its order waits, and so does another saga of the same order, which finds
    it written: neither undoes it. Once it has finished, reconcile sells what it holds.
    """
    (order,) = await orders_of(services, [1], stock=5)
    async with relay_to(services.settings.product.grpc) as product:
        product.poison["DecrStock"] = Poison(order.key, grpc.StatusCode.UNAVAILABLE)
        async with open_pattern_rig(services, pattern, product={"branch_grpc": product.address}) as rig:
            (first,) = (await rig.checkout.run([order])).values()
            (second,) = (await rig.checkout.run([order])).values()
            assert isinstance(first, Undecided)
            assert isinstance(second, Undecided)
            assert second.gid == first.gid
            assert await confirmed_orders(services, order) == 1
            product.poison.clear()
            assert await until_ended(rig, first.gid) == "succeed"
    await asyncio.sleep(ORPHANED_S)
    await reconciler.once()
    assert await counters(services, order) == (4, 0, 1)


# --- message ---------------------------------------------------------------------------------------------------------


@each("message")
async def test_a_message_whose_worker_died_is_sent(services: Backbone, rig: PatternRig, reconciler: Reconciler) -> None:
    """Between local commit and Submit: the coordinator asks, sends it, and reconcile sells what it holds."""
    sale = await services.open_sale(stock=5)
    order = await services.admit(sale, 1)
    with dying_at(CrashPoint.PRODUCT_TRIED):
        await rig.checkout.run([order])
    ((gid,),) = await services.query(
        "product", "SELECT gid FROM stock_reservation WHERE sale_id = :id", id=sale.sale_id
    )
    assert await until_ended(rig, str(gid)) == "succeed"
    assert await counters(services, order) == (4, 1, 0)
    await asyncio.sleep(ORPHANED_S)
    assert (await reconciler.once()).counts["orphan_confirmed"] == 1
    await make_due(services, [order])
    assert (await reconciler.once()).counts == {"settled": 1}
    assert await results(services, [order]) == [(CONFIRMED, "")]
    await require_invariants(services, order)


@each("message")
async def test_a_message_whose_local_part_did_not_happen_is_not_sent(rig: PatternRig) -> None:
    """A TakeStock that is still on its way is kept out, the order is free; what arrives later freezes nothing."""
    (order,) = await orders_of(rig.backbone, [1], stock=5)
    rig.channels.delayed["TakeStock"] = []
    (outcome,) = (await rig.checkout.run([order])).values()
    assert isinstance(outcome, Failed)
    (late,) = rig.channels.delayed.pop("TakeStock")
    with pytest.raises(Refused):
        await late()
    assert await counters(rig.backbone, order) == (5, 0, 0)
    assert await confirmed_orders(rig.backbone, order) == 0
    assert list((await rig.checkout.run([order])).values()) == [Confirmed()]


@each("message")
async def test_a_message_whose_local_part_got_no_answer_is_sent(rig: PatternRig) -> None:
    """It has happened, as the question to product says: the order confirms, and its units are taken once."""
    (order,) = await orders_of(rig.backbone, [1], stock=5)
    rig.channels.answer_losses["TakeStock"] = 1
    assert list((await rig.checkout.run([order])).values()) == [Confirmed()]
    assert await counters(rig.backbone, order) == (4, 0, 1)


# --- XA --------------------------------------------------------------------------------------------------------------


@each("xa")
@pytest.mark.parametrize("committed", [False, True], ids=["rolled back", "committed"])
async def test_a_lost_xa_is_ended_as_product_stands(
    services: Backbone, rig: PatternRig, reconciler: Reconciler, committed: bool
) -> None:
    """Both branches are prepared under a gid that no coordinator knows: what product has committed is committed in
    order, else both are rolled back; nothing stays prepared.
    """
    orders = await orders_of(services, [1, 2], stock=5)
    lost = uuid4().hex
    await rig.product(lost, orders)
    await rig.order(lost, orders)
    if committed:
        await rig.product(lost, orders, COMMIT)
    assert lost in await rig.prepared()
    await reconciler.once()
    assert lost in await rig.prepared()  # it may be new: nobody is in a hurry
    await asyncio.sleep(ORPHANED_S)
    found = await reconciler.once()
    assert found.counts["orphan_confirmed" if committed else "orphan_cancelled"] == 1
    assert await rig.prepared() == set()
    assert await counters(services, orders[0]) == ((3, 0, 2) if committed else (5, 0, 0))
    assert list((await rig.checkout.run(orders)).values()) == [Confirmed()] * 2
    assert await confirmed_orders(services, orders[0]) == 2


@each("xa")
async def test_an_order_waits_for_its_own_older_xa(services: Backbone, reconciler: Reconciler, pattern: str) -> None:
    """Published again while its first XA is prepared and carried: waiting is no attempt, reconcile keeps its hands off,
    and once the first one is committed the order is confirmed by it.
    """
    orders = await orders_of(services, [1], stock=5)
    first = uuid4().hex
    # Product's lock wait ends before the patience of worker and coordinator: it is told, and nobody is cut off.
    async with open_pattern_rig(services, pattern, dtm={"try_timeout_ms": 5_000, "timeout_to_fail_s": 10}) as rig:
        await prepare_both(rig, first, orders)
        await reconciler.once()
        assert list((await rig.checkout.run(orders)).values()) == [
            Undecided(first, "a prepared transaction may hold it")
        ]
        assert (await reconciler.once()).counts["carried"] == 1
        await rig.client.submit(first, trans_type="xa", options=TransOptions(wait_result=True))
        assert list((await rig.checkout.run(orders)).values()) == [Confirmed()]
        assert await rig.prepared() == set()
    assert await counters(services, orders[0]) == (4, 0, 1)


async def prepare_both(rig: PatternRig, gid: str, orders: list[Order]) -> None:
    """As a worker that dies before Submit."""
    await rig.client.prepare(gid, trans_type="xa", options=TransOptions(timeout_to_fail_s=600, wait_result=True))
    for branch_id, url in (("01", rig.plan.product("SellStockXa")), ("02", rig.plan.order("CreateOrderXa"))):
        await rig.client.register_branch(gid, trans_type="xa", branch_id=branch_id, data={"url": url}, payload=b"")
    await rig.product(gid, orders)
    await rig.order(gid, orders)
