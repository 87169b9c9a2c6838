"""The contract of the ledger, on every Redis that it may run on."""

from __future__ import annotations

import asyncio
import time

import pytest

from seckill.admission import Admission, Ledger, LedgerStats, Wanted
from seckill.admission.keys import sale_keys
from seckill.domain.order import Order, order_id_from_key
from seckill.domain.outcomes import Admitted, Confirmed, OrderResult, OrderStatus, Rejected
from seckill.domain.reasons import Rejection
from tests.support.redis_servers import Backend, a_sale, admission_on, claim_due, raw_redis

PROCESSING, CONFIRMED, REJECTED, DELAYED = (
    OrderStatus.PROCESSING, OrderStatus.CONFIRMED, OrderStatus.REJECTED, OrderStatus.DELAYED,
)  # fmt: skip


async def admitted(admission: Admission, product_id: int, users: range, *, quantity: int = 1) -> list[Order]:
    orders = []
    for user in users:
        answer = await admission.gate.admit(Wanted(product_id, user, quantity))
        assert isinstance(answer, Admitted), answer
        orders.append(
            Order(answer.order_id, answer.sale_id, user, product_id, quantity, answer.admitted_at_ms,
                  answer.admission_number)
        )  # fmt: skip
    return orders


async def stock_of(admission: Admission, product_id: int) -> int:
    view = await admission.sales.read(product_id)
    assert view is not None
    assert view.stock + view.admitted == view.initial
    return view.stock


async def states(admission: Admission, product_id: int) -> dict[str, str]:
    return {entry.order.order_id: entry.state for entry in await admission.ledger.entries(product_id)}


# --- settling -----------------------------------------------------------------------------------------------------


async def test_confirmed_gives_nothing_back(admission: Admission, product_id: int) -> None:
    """A confirmed order leaves the ledger; its units and its buyer's allowance stay taken."""
    sale = a_sale(product_id)
    await admission.sales.warm(sale)
    (order,) = await admitted(admission, product_id, range(1, 2))
    for _ in range(2):
        await admission.ledger.settle([(order, Confirmed())])
    assert await stock_of(admission, product_id) == 9
    assert await admission.sales.units_of_buyers(product_id, sale.sale_id) == {1: 1}
    assert await admission.ledger.entries(product_id) == []
    assert await admission.ledger.results([order.order_id]) == {order.order_id: OrderResult(order.order_id, CONFIRMED)}


@pytest.mark.parametrize(
    ("reason", "units_back"), [(Rejection.SOLD_OUT, 0), (Rejection.LIMIT_EXCEEDED, 2), ("SOME_NEW_REASON", 2)]
)
async def test_a_rejection_gives_back_once(
    admission: Admission, product_id: int, reason: Rejection | str, units_back: int
) -> None:
    """The allowance goes back always, the units unless the database is sold out; a repeat gives nothing more."""
    sale = a_sale(product_id, per_user_limit=3)
    await admission.sales.warm(sale)
    (kept,) = await admitted(admission, product_id, range(1, 2))
    (order,) = await admitted(admission, product_id, range(1, 2), quantity=2)
    for _ in range(3):
        await admission.ledger.settle([(order, Rejected(reason)), (order, Rejected(reason))])
    assert await stock_of(admission, product_id) == 7 + units_back
    assert await admission.sales.units_of_buyers(product_id, sale.sale_id) == {1: 1}
    result = (await admission.ledger.results([order.order_id]))[order.order_id]
    assert result == OrderResult(order.order_id, REJECTED, str(reason))
    refused = [await admission.gate.admit(Wanted(product_id, 1, quantity)) for quantity in (2, 1)]
    assert isinstance(refused[0], Admitted)
    assert getattr(refused[1], "order_id", None) == kept.order_id


async def test_a_result_never_changes(admission: Admission, product_id: int) -> None:
    """The first result stands, whatever is settled later; what goes back follows the one that stands."""
    sale = a_sale(product_id)
    await admission.sales.warm(sale)
    first, second = await admitted(admission, product_id, range(1, 3))
    await admission.ledger.settle([(first, Confirmed()), (second, Rejected(Rejection.DISCARDED))])
    await admission.ledger.settle([(first, Rejected(Rejection.DISCARDED)), (second, Confirmed())])
    results = await admission.ledger.results([first.order_id, second.order_id])
    assert [results[order.order_id].status for order in (first, second)] == [CONFIRMED, REJECTED]
    assert await stock_of(admission, product_id) == 9


async def test_an_order_without_entry_gets_a_result_and_gives_nothing_back(
    admission: Admission, product_id: int
) -> None:
    """Settling an order that this Redis never admitted records its end and moves no units, held sale or not."""
    sale = a_sale(product_id)
    await admission.sales.warm(sale)
    held = Order(order_id_from_key(product_id, bytes(16)), sale.sale_id, 9, product_id, 1, 0)
    not_held = Order(order_id_from_key(product_id + 1, bytes(16)), 55, 9, product_id + 1, 1, 0)
    await admission.ledger.settle([(held, Rejected(Rejection.ENDED)), (not_held, Confirmed())])
    assert await stock_of(admission, product_id) == 10
    assert await admission.sales.read(product_id + 1) is None
    results = await admission.ledger.results([held.order_id, not_held.order_id])
    assert {order_id: result.status for order_id, result in results.items()} == {
        held.order_id: REJECTED,
        not_held.order_id: CONFIRMED,
    }


async def test_results_live_from_the_end_of_the_sale(redis_backend: Backend, product_id: int) -> None:
    """A result expires its TTL after the end of the sale, or after settling when that is later."""
    ends = {product_id: time.time_ns() // 1_000_000 + 500_000, product_id + 1: time.time_ns() // 1_000_000 + 300}
    async with admission_on(redis_backend, result_ttl_s=100) as admission:
        for product, end in ends.items():
            await admission.sales.warm(a_sale(product, ends_at_ms=end))
        running, ended = [(await admitted(admission, product, range(1, 2)))[0] for product in ends]
        await asyncio.sleep(0.4)
        settled_ms = time.time_ns() // 1_000_000
        await admission.ledger.settle([(running, Confirmed()), (ended, Confirmed())])
    with raw_redis(redis_backend.url) as client:
        expires = [
            client.execute_command("PEXPIRETIME", sale_keys(order.product_id, order.sale_id).result(order.order_id))
            for order in (running, ended)
        ]
    assert expires[0] == ends[product_id] + 100_000
    assert settled_ms + 95_000 <= expires[1] <= settled_ms + 105_000


async def test_settling_many_products_at_once(admission: Admission, product_id: int) -> None:
    """Orders of several products and more than one call's worth are settled together."""
    products = (product_id, product_id + 1)
    orders = []
    for product in products:
        await admission.sales.warm(a_sale(product, stock=700))
        late = [Order(order_id_from_key(product, n.to_bytes(16, "big")), 0, n, product, 1, 0) for n in range(1, 601)]
        answers = await admission.gate.admit_late(late)
        orders += [
            Order(a.order_id, a.sale_id, o.user_id, product, 1, a.admitted_at_ms, a.admission_number)
            for o, a in zip(late, answers, strict=True)
            if isinstance(a, Admitted)
        ]
    assert len(orders) == 1_200
    await admission.ledger.settle([(order, Rejected(Rejection.ENDED)) for order in orders])
    assert [await stock_of(admission, product) for product in products] == [700, 700]
    results = await admission.ledger.results([order.order_id for order in orders])
    assert {result.status for result in results.values()} == {REJECTED}
    assert len(results) == 1_200


# --- what is known ------------------------------------------------------------------------------------------------


async def test_results_of_pending_parked_and_unknown(admission: Admission, product_id: int) -> None:
    """A pending entry is PROCESSING, a parked one DELAYED, and an order that nobody admitted is absent."""
    await admission.sales.warm(a_sale(product_id))
    pending, parked = await admitted(admission, product_id, range(1, 3))
    await admission.ledger.park([parked])
    unknown = order_id_from_key(product_id, bytes(16))
    elsewhere = order_id_from_key(product_id + 5, bytes(16))
    results = await admission.ledger.results([pending.order_id, parked.order_id, unknown, elsewhere])
    assert results == {
        pending.order_id: OrderResult(pending.order_id, PROCESSING),
        parked.order_id: OrderResult(parked.order_id, DELAYED),
    }
    assert await admission.ledger.results([]) == {}


async def test_waiting_ends_with_the_result(admission: Admission, product_id: int) -> None:
    """All who wait for an order are told its end soon after it was settled."""
    await admission.sales.warm(a_sale(product_id))
    (order,) = await admitted(admission, product_id, range(1, 2))
    waiting = [asyncio.create_task(admission.ledger.wait_result(order.order_id, timeout_ms=10_000)) for _ in range(50)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in waiting)
    started = time.monotonic()
    await admission.ledger.settle([(order, Confirmed())])
    assert set(await asyncio.gather(*waiting)) == {OrderResult(order.order_id, CONFIRMED)}
    assert time.monotonic() - started < 2


async def test_waiting_ends_with_the_time(admission: Admission, product_id: int) -> None:
    """When the time is up, who waits is told what is known: PROCESSING, or nothing of an unknown order."""
    await admission.sales.warm(a_sale(product_id))
    (order,) = await admitted(admission, product_id, range(1, 2))
    started = time.monotonic()
    known, unknown = await asyncio.gather(
        admission.ledger.wait_result(order.order_id, timeout_ms=200),
        admission.ledger.wait_result(order_id_from_key(product_id, bytes(16)), timeout_ms=200),
    )
    assert known == OrderResult(order.order_id, PROCESSING)
    assert unknown is None
    assert 0.19 <= time.monotonic() - started < 2


async def test_many_waiters_share_one_poll(redis_backend: Backend, product_id: int) -> None:
    """The number of calls to Redis does not grow with the number of waiters."""
    async with admission_on(redis_backend) as admission:
        await admission.sales.warm(a_sale(product_id, stock=200))
        orders = await admitted(admission, product_id, range(1, 101))
        with raw_redis(redis_backend.url) as client:
            connections = len(client.client_list())
            tasks = [
                asyncio.create_task(admission.ledger.wait_result(order.order_id, timeout_ms=5_000)) for order in orders
            ]
            await asyncio.sleep(0.2)
            assert len(client.client_list()) <= connections + 1
        await admission.ledger.settle([(order, Confirmed()) for order in orders])
        assert {result.status for result in await asyncio.gather(*tasks) if result} == {CONFIRMED}


# --- due, claiming, parking ---------------------------------------------------------------------------------------


async def test_claiming_takes_what_is_due_and_moves_it(redis_backend: Backend, product_id: int) -> None:
    """An entry can be claimed once it is due, comes with everything to publish it, and is then due later again."""
    async with admission_on(redis_backend, republish_after_ms=50) as admission:
        await admission.sales.warm(a_sale(product_id))
        orders = await admitted(admission, product_id, range(1, 4))
        await asyncio.sleep(0.06)
        claimed = await claim_due(admission.ledger, product_id, limit=2, republish_after_ms=60_000)
        assert claimed == orders[:2]
        claimed = await claim_due(admission.ledger, product_id, limit=10, republish_after_ms=60_000)
        assert claimed == orders[2:]
        assert await claim_due(admission.ledger, product_id, limit=10, republish_after_ms=60_000) == []
        for entry in await admission.ledger.entries(product_id):
            assert entry.published_at_ms >= entry.order.admitted_at_ms + 50
            assert entry.due_ms == entry.published_at_ms + 60_000


async def test_an_old_entry_is_claimed_less_often(redis_backend: Backend, product_id: int) -> None:
    """The pause until an entry is due again grows with its age, within bounds."""
    async with admission_on(redis_backend, republish_after_ms=1) as admission:
        await admission.sales.warm(a_sale(product_id))
        await admitted(admission, product_id, range(1, 2))
        await asyncio.sleep(0.3)
        pauses = []
        for republish_after_ms in (100, 20):
            await claim_due(admission.ledger, product_id, limit=1, republish_after_ms=republish_after_ms)
            (entry,) = await admission.ledger.entries(product_id)
            pauses.append(entry.due_ms - entry.published_at_ms)
            await admission.ledger.postpone([entry.order], delay_ms=0)
        age_ms = entry.published_at_ms - entry.order.admitted_at_ms
        assert 290 <= pauses[0] <= age_ms < 1_000
        assert pauses[1] == 200


async def claim_all(ledger: Ledger, product_id: int) -> list[Order]:
    """Looks and claims until nothing is due."""
    claimed: list[Order] = []
    while entries := await ledger.due(product_id, limit=40):
        claimed += await ledger.claim(entries, republish_after_ms=60_000)
    return claimed


async def test_two_claimers_never_share_an_entry(redis_backend: Backend, product_id: int) -> None:
    """Claimers that run at once split the due entries between them."""
    async with admission_on(redis_backend, republish_after_ms=1) as admission:
        await admission.sales.warm(a_sale(product_id, stock=300))
        late = [Order(order_id_from_key(product_id, n.to_bytes(16, "big")), 0, n, product_id, 1, 0)
                for n in range(1, 301)]  # fmt: skip
        await admission.gate.admit_late(late)
        await asyncio.sleep(0.05)
        async with admission_on(redis_backend) as other:
            parts = await asyncio.gather(*(claim_all(each.ledger, product_id) for each in (admission, other) * 5))
        claimed = [order.order_id for part in parts for order in part]
        assert len(claimed) == len(set(claimed)) == 300


async def test_postponing_moves_pending_entries_only(redis_backend: Backend, product_id: int) -> None:
    """`due` moves to the given time from now; orders without an entry and parked ones are left alone."""
    async with admission_on(redis_backend, republish_after_ms=1) as admission:
        await admission.sales.warm(a_sale(product_id))
        pending, parked, settled = await admitted(admission, product_id, range(1, 4))
        await admission.ledger.park([parked])
        await admission.ledger.settle([(settled, Confirmed())])
        await admission.ledger.postpone([pending, parked, settled], delay_ms=60_000)
        await asyncio.sleep(0.02)
        assert await claim_due(admission.ledger, product_id, limit=10, republish_after_ms=1) == []
        assert await states(admission, product_id) == {pending.order_id: "pending", parked.order_id: "parked"}
        await admission.ledger.postpone([pending], delay_ms=0)
        assert await claim_due(admission.ledger, product_id, limit=10, republish_after_ms=1) == [pending]


async def test_a_parked_entry_is_never_claimed(redis_backend: Backend, product_id: int) -> None:
    """Parking keeps the entry and its units but takes it out of everyone's reach; orders without entry stay so."""
    async with admission_on(redis_backend, republish_after_ms=1) as admission:
        await admission.sales.warm(a_sale(product_id))
        parked, settled = await admitted(admission, product_id, range(1, 3))
        await admission.ledger.settle([(settled, Confirmed())])
        for _ in range(2):
            await admission.ledger.park([parked, settled])
        await asyncio.sleep(0.02)
        assert await claim_due(admission.ledger, product_id, limit=10, republish_after_ms=1) == []
        assert await states(admission, product_id) == {parked.order_id: "parked"}
        assert await stock_of(admission, product_id) == 8
        await admission.ledger.settle([(parked, Rejected(Rejection.DISCARDED))])
        assert await states(admission, product_id) == {}
        assert await stock_of(admission, product_id) == 9


async def test_stats(admission: Admission, product_id: int) -> None:
    """Sizes count pending and parked entries; the age is that of the oldest pending one."""
    sale = a_sale(product_id)
    assert await admission.ledger.stats(product_id) == LedgerStats(0, 0, 0, 0)
    await admission.sales.warm(sale)
    assert await admission.ledger.stats(product_id) == LedgerStats(0, 0, 0, sale.sale_id)
    (oldest,) = await admitted(admission, product_id, range(1, 2))
    await asyncio.sleep(0.3)
    await admitted(admission, product_id, range(2, 4))
    stats = await admission.ledger.stats(product_id)
    assert (stats.entries, stats.parked) == (3, 0)
    assert 300 <= stats.oldest_age_ms < 10_000
    await admission.ledger.park([oldest])
    after = await admission.ledger.stats(product_id)
    assert (after.entries, after.parked) == (3, 1)
    assert after.oldest_age_ms < stats.oldest_age_ms


async def test_products_are_listed(admission: Admission, product_id: int) -> None:
    """Every product that was warmed is listed, so that its ledger is looked after."""
    assert product_id not in await admission.ledger.products()
    await admission.sales.warm(a_sale(product_id))
    assert product_id in await admission.ledger.products()
