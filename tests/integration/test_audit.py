"""The audit finds what is broken, by id, and takes nothing for broken that is only on its way.

Each breach is made behind the pipeline's back: written straight into a database or into Redis.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import pytest
import redis.asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from consumers.seckill_rmq import SeckillCarrier
from seckill.admission import LedgerEntry, RedisLink
from seckill.admission.inspection import Counted, Inspection
from seckill.admission.keys import sale_keys
from seckill.audit.live import audit
from seckill.audit.reading import Scope, Walk, read
from seckill.audit.rules import Invariant, Verdict, judge
from seckill.audit.stores import Stores, open_stores
from seckill.audit.timeline import timelines
from seckill.domain.order import Order, Sale
from seckill.messaging.envelope import encode
from seckill.messaging.publisher import open_publisher
from tests.integration.test_carrier import carry, free_order
from tests.support.backbone import Backbone
from tests.support.branch_calls import branch_calls

T = TypeVar("T")

PAUSE_S = 0.05
SLOW_MS = 60_000


@dataclass(frozen=True)
class Sold:
    """A sale with some confirmed orders, and the means to break it."""

    backbone: Backbone
    carrier: SeckillCarrier
    stores: Stores
    sale: Sale
    orders: Sequence[Order]

    @property
    def keys(self) -> tuple[str, str]:
        """Redis' counters of the sale, and the result of its first order."""
        keys = sale_keys(self.sale.product_id, self.sale.sale_id)
        return keys.stock, keys.result(self.orders[0].order_id)

    def scope(self, *, at_rest: bool = False, accepted: Sequence[str] = ()) -> Scope:
        return Scope(product_ids=[self.sale.product_id], at_rest=at_rest, accepted=frozenset(accepted))

    async def audit(self, *, at_rest: bool = False, accepted: Sequence[str] = (), slow_ms: int = SLOW_MS) -> Verdict:
        scope = self.scope(at_rest=at_rest, accepted=accepted)
        return await audit(self.stores, scope, pause_s=PAUSE_S, slow_after_ms=slow_ms)

    async def sql(self, service: str, statement: str, **values: object) -> None:
        """Against the database's own rules, too."""
        url = getattr(self.backbone.settings, service).database_url.get_secret_value()
        engine = create_async_engine(url, poolclass=NullPool)
        rules = "PRAGMA ignore_check_constraints=ON" if "sqlite" in url else "SET check_constraint_checks=0"
        try:
            async with engine.begin() as connection:
                await connection.execute(text(rules))
                changed = await connection.execute(text(statement), values)
                assert changed.rowcount > 0, statement
        finally:
            await engine.dispose()

    async def redis(self, *command: str | int) -> None:
        async with redis.asyncio.from_url(self.backbone.settings.redis.url.get_secret_value()) as client:
            await client.execute_command(*command)

    async def more(self, count: int) -> list[Order]:
        first = 1_000 + time.time_ns() % 10**12
        return [await self.backbone.admit(self.sale, first + number) for number in range(count)]


@pytest.fixture
async def sold(backbone: Backbone, carrier: SeckillCarrier) -> AsyncIterator[Sold]:
    sale = await backbone.open_sale(stock=10_000)
    orders = [await backbone.admit(sale, user_id) for user_id in range(1, 5)]
    await carry(carrier, orders[:2])
    await carry(carrier, orders[2:])
    async with asyncio.timeout(30):
        while (await backbone.ledger.stats(sale.product_id)).entries:  # a group was undecided on a slow machine
            await carry(carrier, orders)
    async with open_stores(backbone.settings) as stores:
        yield Sold(backbone, carrier, stores, sale, orders)


def false_ones(verdict: Verdict) -> dict[Invariant, set[str]]:
    """What breaks each invariant that does not hold."""
    return {name: {breach.what for breach in found} for name, found in verdict.breaches.items() if found}


async def test_a_sound_sale_holds(sold: Sold) -> None:
    """Live and at rest, every invariant is true, and the sums are those of the orders."""
    for at_rest in (False, True):
        verdict = await sold.audit(at_rest=at_rest, accepted=[order.order_id for order in sold.orders])
        assert verdict.holds, verdict.breaches
        assert (verdict.confirmed, verdict.lost, verdict.pending, verdict.sales) == (4, (), 0, 1)


# --- what is broken is found -----------------------------------------------------------------------------------------

Break = Callable[[Sold], Awaitable[None]]


async def oversell(sold: Sold) -> None:
    await sold.sql("product", "UPDATE sale SET sold = sold + 1 WHERE sale_id = :id", id=sold.sale.sale_id)


async def move_a_unit(sold: Sold) -> None:
    change = "UPDATE sale SET sold = sold + 1, stock = stock - 1 WHERE sale_id = :id"
    await sold.sql("product", change, id=sold.sale.sale_id)


async def freeze_a_unit(sold: Sold) -> None:
    change = "UPDATE sale SET frozen = frozen + 1, stock = stock - 1 WHERE sale_id = :id"
    await sold.sql("product", change, id=sold.sale.sale_id)


async def lose_an_order(sold: Sold) -> None:
    await sold.sql("order", "DELETE FROM orders WHERE order_id = :key", key=sold.orders[0].key)


async def confirm_under_another_gid(sold: Sold) -> None:
    await sold.sql("order", "UPDATE orders SET gid = 'another' WHERE order_id = :key", key=sold.orders[0].key)


async def sell_to_another(sold: Sold) -> None:
    await sold.sql("order", "UPDATE orders SET user_id = 99 WHERE order_id = :key", key=sold.orders[0].key)


async def sell_twice_to_one(sold: Sold) -> None:
    for service, table in (("product", "stock_reservation"), ("order", "orders")):
        await sold.sql(service, f"UPDATE {table} SET user_id = 2 WHERE order_id = :key", key=sold.orders[0].key)


async def reject_what_was_told_confirmed(sold: Sold) -> None:
    change = "UPDATE stock_reservation SET state = 4, reason = 'SOLD_OUT' WHERE order_id = :key"
    await sold.sql("product", change, key=sold.orders[0].key)


async def tell_another_end(sold: Sold) -> None:
    await sold.redis("SET", sold.keys[1], "rejected:1:1:SOLD_OUT")


async def tell_of_an_unknown_order(sold: Sold) -> None:
    await sold.redis("SET", sold.keys[1].replace(sold.orders[0].order_id[-32:], f"{1:032x}"), "confirmed:1:1:")


async def release_and_forget(sold: Sold) -> None:
    """The units are back, the transaction was cancelled, and nobody will carry the order again."""
    gid = "gid-of-the-forgotten"
    await sold.sql(
        "product",
        "INSERT INTO stock_reservation (order_id, product_id, sale_id, user_id, quantity, state, reason, gid,"
        " branch_id, admitted_at_ms, created_at_ms, updated_at_ms)"
        " VALUES (:key, :product, :sale, 77, 1, 3, '', :gid, '01', 1, 1, 1)",
        key=(7).to_bytes(16), product=sold.sale.product_id, sale=sold.sale.sale_id, gid=gid,
    )  # fmt: skip
    await sold.sql("product", "INSERT INTO decision VALUES (:gid, '01', 'cancel', 1)", gid=gid)


async def add_a_unit_to_redis(sold: Sold) -> None:
    await sold.redis("HINCRBY", sold.keys[0], "stock", 1)


async def give_back_twice(sold: Sold) -> None:
    await sold.redis("HINCRBY", sold.keys[0], "stock", 1)
    await sold.redis("HINCRBY", sold.keys[0], "admitted", -1)


async def never_give_back(sold: Sold) -> None:
    await sold.redis("HINCRBY", sold.keys[0], "stock", -1)
    await sold.redis("HINCRBY", sold.keys[0], "admitted", 1)


async def raise_redis_alone(sold: Sold) -> None:
    await sold.redis("HINCRBY", sold.keys[0], "stock", 5)
    await sold.redis("HINCRBY", sold.keys[0], "initial", 5)


async def cancel_at_order(sold: Sold) -> None:
    await sold.sql("order", "UPDATE decision SET op = 'cancel' WHERE gid = :gid", gid=await gid_of(sold))


async def forget_the_decision(sold: Sold) -> None:
    await sold.sql("product", "DELETE FROM decision WHERE gid = :gid", gid=await gid_of(sold))


async def gid_of(sold: Sold) -> str:
    statement = "SELECT gid FROM stock_reservation WHERE order_id = :key"
    [(gid,)] = await sold.backbone.query("product", statement, key=sold.orders[0].key)
    return str(gid)


CASES: list[tuple[Break, Invariant, str]] = [
    (oversell, Invariant.UNITS_ADD_UP, "sale {sale}"),
    (oversell, Invariant.SOLD_IS_CONFIRMED, "sale {sale}"),
    (move_a_unit, Invariant.SOLD_IS_CONFIRMED, "sale {sale}"),
    (freeze_a_unit, Invariant.UNITS_ADD_UP, "sale {sale}"),
    (lose_an_order, Invariant.SOLD_IS_CONFIRMED, "order {order}"),
    (lose_an_order, Invariant.EVERY_ORDER_ENDS, "order {order}"),
    (confirm_under_another_gid, Invariant.BRANCHES_AGREE, "gid {gid}"),
    (sell_to_another, Invariant.SOLD_IS_CONFIRMED, "order {order}"),
    (sell_twice_to_one, Invariant.LIMIT_HOLDS, "buyer 2 of sale {sale}"),
    (reject_what_was_told_confirmed, Invariant.SOLD_IS_CONFIRMED, "order {order}"),
    (reject_what_was_told_confirmed, Invariant.EVERY_ORDER_ENDS, "order {order}"),
    (tell_another_end, Invariant.EVERY_ORDER_ENDS, "order {order}"),
    (tell_of_an_unknown_order, Invariant.EVERY_ORDER_ENDS, "order {product}-00000000000000000000000000000001"),
    (release_and_forget, Invariant.EVERY_ORDER_ENDS, "order {product}-00000000000000000000000000000007"),
    (add_a_unit_to_redis, Invariant.REDIS_AGREES, "sale {sale}"),
    (give_back_twice, Invariant.REDIS_AGREES, "sale {sale}"),
    (never_give_back, Invariant.REDIS_AGREES, "sale {sale}"),
    (raise_redis_alone, Invariant.REDIS_AGREES, "sale {sale}"),
    (cancel_at_order, Invariant.BRANCHES_AGREE, "gid {gid}"),
    (forget_the_decision, Invariant.BRANCHES_AGREE, "gid {gid}"),
]


@pytest.mark.parametrize(("break_it", "invariant", "what"), CASES, ids=[f"{c[0].__name__}-{c[1]}" for c in CASES])
async def test_what_is_broken_is_named(sold: Sold, break_it: Break, invariant: Invariant, what: str) -> None:
    """Whatever is written behind the pipeline's back breaks its invariant, live, and the audit says which id it is."""
    names = {
        "sale": sold.sale.sale_id, "product": sold.sale.product_id, "order": sold.orders[0].order_id,
        "gid": await gid_of(sold),
    }  # fmt: skip
    await break_it(sold)
    verdict = await sold.audit()
    assert not verdict.holds
    assert what.format(**names) in false_ones(verdict).get(invariant, set()), verdict.breaches


async def test_an_accepted_order_that_is_nowhere_is_lost(sold: Sold) -> None:
    """An order id that a client was given, and that no store knows."""
    nowhere = f"{sold.sale.product_id}-{5:032x}"
    verdict = await sold.audit(accepted=[nowhere, sold.orders[0].order_id])
    assert verdict.lost == (nowhere,)
    assert false_ones(verdict) == {Invariant.EVERY_ORDER_ENDS: {f"order {nowhere}"}}


async def test_many_pieces_find_the_same(sold: Sold) -> None:
    """However finely the keys are cut, a sound sale holds, and the one order that is missing is found."""
    scope = replace(sold.scope(), piece_rows=1)
    sound = await audit(sold.stores, scope, pause_s=PAUSE_S, slow_after_ms=SLOW_MS)
    assert (sound.holds, sound.confirmed) == (True, 4)
    await lose_an_order(sold)
    verdict = await audit(sold.stores, scope, pause_s=PAUSE_S, slow_after_ms=SLOW_MS)
    assert false_ones(verdict)[Invariant.SOLD_IS_CONFIRMED] == {f"order {sold.orders[0].order_id}"}


async def test_results_are_compared_a_part_at_a_time(sold: Sold) -> None:
    """Readings that compare only some results come upon every one of them, and look at a suspicion again by its id."""
    await tell_another_end(sold)
    unasked = await audit(sold.stores, replace(sold.scope(), results=None), pause_s=0, slow_after_ms=SLOW_MS)
    assert unasked.holds, "nothing else is wrong with the order"
    walk = Walk(at_most=1)
    scope = replace(sold.scope(), results=walk)
    async with asyncio.timeout(20):
        while (verdict := await audit(sold.stores, scope, pause_s=0, slow_after_ms=SLOW_MS)).holds:
            assert walk.cursor, "all of them were compared"
    assert false_ones(verdict) == {Invariant.EVERY_ORDER_ENDS: {f"order {sold.orders[0].order_id}"}}


async def test_a_breach_of_another_product_is_not_ours(sold: Sold) -> None:
    """A filter leaves out what others have broken."""
    other = await sold.backbone.open_sale(stock=5)
    await sold.sql("product", "UPDATE sale SET sold = sold + 1 WHERE sale_id = :id", id=other.sale_id)
    assert (await sold.audit()).holds
    everything = await audit(sold.stores, Scope(), pause_s=PAUSE_S, slow_after_ms=SLOW_MS)
    assert f"sale {other.sale_id}" in false_ones(everything)[Invariant.UNITS_ADD_UP]
    named = await audit(sold.stores, Scope(sale_ids=[other.sale_id]), pause_s=PAUSE_S, slow_after_ms=SLOW_MS)
    assert (named.sales, named.holds) == (1, False)


# --- what is on its way is not broken --------------------------------------------------------------------------------


async def test_a_group_in_flight_is_fine(sold: Sold) -> None:
    """Frozen, or confirmed at order and not yet at product: right for a running pipeline, wrong for one at rest."""
    orders = await sold.more(3)
    async with branch_calls(sold.backbone.settings, orders, "gid-in-flight") as calls:
        for branch, op in (("product", "try"), ("order", "try"), ("order", "confirm")):
            await calls.call(branch, op)
            verdict = await sold.audit(accepted=[order.order_id for order in orders])
            assert verdict.holds, (branch, op, verdict.breaches)
            assert verdict.pending == 3
            resting = await sold.audit(at_rest=True)
            assert f"sale {sold.sale.sale_id}" in false_ones(resting)[Invariant.UNITS_ADD_UP]
        await calls.call("product", "confirm")
        assert (await sold.audit()).holds


async def test_a_cancelled_group_is_fine(sold: Sold) -> None:
    """Released orders that the ledger still holds come back: nothing is wrong before, between or after the Cancels."""
    orders = await sold.more(2)
    async with branch_calls(sold.backbone.settings, orders, "gid-cancelled") as calls:
        for branch, op in (("product", "try"), ("order", "try"), ("order", "cancel"), ("product", "cancel")):
            await calls.call(branch, op)
            verdict = await sold.audit()
            assert verdict.holds, (branch, op, verdict.breaches)


async def test_a_slow_order_is_a_warning(sold: Sold) -> None:
    """An order that is pending for longer than it should be is named, and breaks nothing."""
    (order,) = await sold.more(1)
    await asyncio.sleep(0.01)
    verdict = await sold.audit(slow_ms=5)
    assert verdict.holds
    assert [order_id for order_id, _ in verdict.slow] == [order.order_id]
    assert not (await sold.audit(at_rest=True)).holds


async def test_a_refused_order_is_fine(sold: Sold) -> None:
    """An order that came past the front and was refused has a row and a result, and no units."""
    await sold.backbone.book.set_state(sold.sale, "closed")
    order = free_order(sold.sale.product_id, 900)
    await carry(sold.carrier, [order])
    verdict = await sold.audit()
    assert verdict.holds, verdict.breaches
    assert sum(verdict.rejected.values()) == 1


async def test_a_parked_order_is_fine(sold: Sold) -> None:
    """A dead letter is an end until somebody replays it, at rest as well; and it is found in the topic."""
    (order,) = await sold.more(1)
    kafka = sold.backbone.settings.kafka
    async with open_publisher(kafka) as publisher:
        await publisher.send(kafka.dead_letter_topic, key=order.order_id.encode(), value=encode(order), headers=())
    await sold.backbone.ledger.park([order])
    for at_rest in (False, True):
        verdict = await sold.audit(at_rest=at_rest, accepted=[order.order_id])
        assert verdict.holds, verdict.breaches
        assert verdict.dead_lettered == 1


class Meanwhile(Inspection):
    """Redis as an audit reads it, while something happens right after the counters, or after the ledger."""

    def __init__(self, link: RedisLink, after: str, happen: Callable[[], Awaitable[None]]) -> None:
        super().__init__(link)
        self._after = after
        self._happen = happen

    async def counters(self, places: Sequence[tuple[int, int]]) -> Counted:
        return await self._then("counters", await super().counters(places))

    async def entries(self, product_id: int, sale_id: int) -> dict[str, LedgerEntry]:
        return await self._then("ledger", await super().entries(product_id, sale_id))

    async def _then(self, read: str, answer: T) -> T:
        if read == self._after:
            await asyncio.sleep(0.005)
            await self._happen()
        return answer


async def reading_while(sold: Sold, after: str, happen: Callable[[], Awaitable[None]]) -> Verdict:
    """One reading only: nothing here needs a second one."""
    link = RedisLink(sold.backbone.settings.redis)
    try:
        stores = replace(sold.stores, inspection=Meanwhile(link, after, happen))
        return judge(await read(stores, sold.scope()))
    finally:
        await link.close()


@pytest.mark.parametrize("after", ["counters", "ledger"])
async def test_units_sold_after_the_counters_were_read_are_not_held(sold: Sold, after: str) -> None:
    """An order is admitted, sold and settled while the audit reads: one reading takes nothing for wrong."""

    async def buy() -> None:
        await carry(sold.carrier, await sold.more(3))

    verdict = await reading_while(sold, after, buy)
    assert verdict.holds, verdict.breaches
    assert verdict.confirmed == 7


@pytest.mark.parametrize("after", ["counters", "ledger"])
async def test_units_are_held_once(sold: Sold, after: str) -> None:
    """Orders that were pending when the counters were read are sold before or after the ledger is read."""
    orders = await sold.more(3)
    verdict = await reading_while(sold, after, lambda: carry(sold.carrier, orders))
    assert verdict.holds, verdict.breaches
    assert verdict.confirmed == 7


@pytest.mark.slow
async def test_load_is_no_breach_and_hides_none(sold: Sold) -> None:
    """Audits without a pause between two, while orders are admitted, carried and refused: nothing is wrong, every time.

    Then one order is deleted under the same load, and the audit names it and nothing else.
    """
    enough = asyncio.Event()
    buying = [asyncio.create_task(keep_buying(sold, enough)) for _ in range(2)]
    try:
        ends = time.monotonic() + 5
        readings = 0
        while time.monotonic() < ends:
            verdict = await sold.audit()
            assert verdict.holds, verdict.breaches
            readings += 1
        assert readings >= 3
        assert verdict.confirmed > 50
        await lose_an_order(sold)
        verdict = await sold.audit()
        assert {*false_ones(verdict)[Invariant.SOLD_IS_CONFIRMED]} == {f"order {sold.orders[0].order_id}"}
        assert Invariant.REDIS_AGREES not in false_ones(verdict)
    finally:
        enough.set()
        await asyncio.gather(*buying)
    await sold.sql("product", "DELETE FROM stock_reservation WHERE order_id = :key", key=sold.orders[1].key)
    assert f"order {sold.orders[1].order_id}" in false_ones(await sold.audit())[Invariant.EVERY_ORDER_ENDS]


async def keep_buying(sold: Sold, enough: asyncio.Event) -> None:
    """Groups of the front's orders, and of orders past it."""
    while not enough.is_set():
        orders = await sold.more(7)
        past = [free_order(sold.sale.product_id, order.user_id + 10**13) for order in orders[:2]]
        await carry(sold.carrier, [*orders, *past])


# --- what is told of it ----------------------------------------------------------------------------------------------


async def test_a_broken_order_has_its_story(sold: Sold) -> None:
    """From admission to what the buyer is told, with both branches and the coordinator's word; and how many more."""
    await lose_an_order(sold)
    verdict = await sold.audit()
    (told,), more = await timelines(sold.stores, verdict, limit=1)
    gid = await gid_of(sold)
    assert told.of == f"order {sold.orders[0].order_id}"
    assert more == 1  # the gid, whose branches no longer agree
    assert any(problem.startswith("sold_is_confirmed: ") for problem in told.problems)
    story = [(event.store, event.what) for event in told.events]
    assert ("product", f"reservation sold, gid {gid}") in story
    assert ("order", "no order") in story
    assert ("product", f"gid {gid}: decided confirm") in story
    assert ("order", f"gid {gid}: decided confirm") in story
    assert ("product", f"gid {gid}: barrier passed by try, confirm") in story
    assert ("redis", f"the buyer is told confirmed (sale {sold.sale.sale_id})") in story
    assert any(store == "coordinator" and what.startswith(f"gid {gid}: succeed") for store, what in story)
    times = [event.at_ms for event in told.events if event.at_ms is not None]
    assert times == sorted(times)


async def test_a_story_names_ledger_and_letter(sold: Sold) -> None:
    """An order that waits is told with its number and times in the ledger, and its dead letter."""
    (order,) = await sold.more(1)
    kafka = sold.backbone.settings.kafka
    async with open_publisher(kafka) as publisher:
        headers = (("seckill-dlq-reason", b"UNEXPECTED"), ("seckill-dlq-attempts", b"4"))
        await publisher.send(kafka.dead_letter_topic, key=order.order_id.encode(), value=encode(order), headers=headers)
    verdict = await sold.audit(at_rest=True)  # pending, so it breaks one at rest
    (told,), _ = await timelines(sold.stores, verdict, limit=1)
    whats = [event.what for event in told.events]
    assert f"admitted, number {order.admission_number}" in whats
    assert {"published last", "due", "no reservation", "no order"} <= {*whats}
    assert any("UNEXPECTED after 4 attempts" in what for what in whats)
