"""The contract of the admission gate and the sale book, on every Redis that they may run on."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
import redis

from seckill.admission import Admission, RebuildNeeded, Wanted
from seckill.admission.keys import current_sale_key, sale_keys
from seckill.domain.errors import AdmissionUnavailable, InvalidTransition
from seckill.domain.order import MAX_ID, Order, Sale, derived_order_id, order_id_from_key, parse_order_id
from seckill.domain.outcomes import Admitted, AlreadyDecided, Confirmed, OrderStatus, Refused, Rejected
from seckill.domain.reasons import Refusal, Rejection
from tests.support.redis_servers import Backend, a_sale, admission_on, raw_redis, redis_process


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def as_order(wanted: Wanted, admitted: Admitted) -> Order:
    return Order(
        admitted.order_id, admitted.sale_id, wanted.user_id, wanted.product_id, wanted.quantity,
        admitted.admitted_at_ms, admitted.admission_number,
    )  # fmt: skip


async def admitted(admission: Admission, wanted: Wanted) -> Order:
    answer = await admission.gate.admit(wanted)
    assert isinstance(answer, Admitted), answer
    return as_order(wanted, answer)


async def stock_of(admission: Admission, product_id: int) -> tuple[int, int]:
    view = await admission.sales.read(product_id)
    assert view is not None
    assert view.stock + view.admitted == view.initial
    return view.stock, view.admitted


# --- what is taken, and by whom ---------------------------------------------------------------------------------


async def test_admission_reserves_and_writes_the_ledger(admission: Admission, product_id: int) -> None:
    """An admitted order has taken its units, its buyer's allowance, a number and a ledger entry."""
    sale = a_sale(product_id, per_user_limit=3)
    await admission.sales.warm(sale)
    before = now_ms()
    order = await admitted(admission, Wanted(product_id, MAX_ID, 2))
    assert parse_order_id(order.order_id)[0] == product_id
    assert order.sale_id == sale.sale_id
    assert order.admission_number == 1
    assert before - 1_000 <= order.admitted_at_ms <= now_ms() + 1_000
    assert await stock_of(admission, product_id) == (8, 2)
    assert await admission.sales.units_of_buyers(product_id, sale.sale_id) == {MAX_ID: 2}
    (entry,) = await admission.ledger.entries(product_id)
    assert entry.order == order
    assert entry.state == "pending"
    assert entry.published_at_ms == order.admitted_at_ms
    assert entry.due_ms == order.admitted_at_ms + 30_000


async def test_numbers_run_without_gaps(admission: Admission, product_id: int) -> None:
    """Admission numbers count the admitted orders of the sale, refused ones left out."""
    await admission.sales.warm(a_sale(product_id, stock=3))
    answers = await asyncio.gather(*(admission.gate.admit(Wanted(product_id, user, 1)) for user in range(1, 6)))
    numbers = [answer.admission_number for answer in answers if isinstance(answer, Admitted)]
    assert numbers == [1, 2, 3]
    view = await admission.sales.read(product_id)
    assert view is not None
    assert view.number == 3


async def test_sold_out_says_what_is_left(admission: Admission, product_id: int) -> None:
    """More than the stock is refused with SOLD_OUT and the units left, and takes nothing."""
    await admission.sales.warm(a_sale(product_id, stock=3, per_user_limit=5))
    await admitted(admission, Wanted(product_id, 1, 2))
    assert await admission.gate.admit(Wanted(product_id, 2, 2)) == Refused(Refusal.SOLD_OUT, left=1)
    await admitted(admission, Wanted(product_id, 2, 1))
    assert await admission.gate.admit(Wanted(product_id, 3, 1)) == Refused(Refusal.SOLD_OUT, left=0)
    assert await stock_of(admission, product_id) == (0, 3)


async def test_second_order_names_the_first(admission: Admission, product_id: int) -> None:
    """A buyer whose allowance is used up is refused with the id of the first order, also within one batch."""
    await admission.sales.warm(a_sale(product_id))
    first, second = await asyncio.gather(*(admission.gate.admit(Wanted(product_id, 5, 1)) for _ in range(2)))
    assert isinstance(first, Admitted)
    assert second == Refused(Refusal.ALREADY_ORDERED, order_id=first.order_id)
    assert await admission.gate.admit(Wanted(product_id, 5, 1)) == second
    assert await stock_of(admission, product_id) == (9, 1)


async def test_limit_says_what_is_left_of_it(admission: Admission, product_id: int) -> None:
    """A quantity above the limit, or above what is left of it, is refused with the rest of the allowance."""
    await admission.sales.warm(a_sale(product_id, per_user_limit=3))
    assert await admission.gate.admit(Wanted(product_id, 5, 4)) == Refused(Refusal.LIMIT_EXCEEDED, left=3)
    assert await admission.gate.admit(Wanted(product_id, 5, MAX_ID)) == Refused(Refusal.LIMIT_EXCEEDED, left=3)
    first = await admitted(admission, Wanted(product_id, 5, 2))
    assert await admission.gate.admit(Wanted(product_id, 5, 2)) == Refused(Refusal.LIMIT_EXCEEDED, left=1)
    await admitted(admission, Wanted(product_id, 5, 1))
    refused = await admission.gate.admit(Wanted(product_id, 5, 1))
    assert refused == Refused(Refusal.ALREADY_ORDERED, order_id=first.order_id)


async def test_a_lowered_limit_holds_for_the_next_order(admission: Admission, product_id: int) -> None:
    """After the limit was lowered below what a buyer has, nothing is left for that buyer."""
    sale = a_sale(product_id, per_user_limit=3)
    await admission.sales.warm(sale)
    order = await admitted(admission, Wanted(product_id, 5, 2))
    await admission.sales.warm(replace(sale, per_user_limit=1))
    assert await admission.gate.admit(Wanted(product_id, 5, 1)) == Refused(
        Refusal.ALREADY_ORDERED, order_id=order.order_id
    )


async def test_a_full_ledger_refuses(redis_backend: Backend, product_id: int) -> None:
    """When the ledger holds its largest number of entries, more are OVERLOADED; room comes with settling."""
    async with admission_on(redis_backend, entries_max=3) as admission:
        await admission.sales.warm(a_sale(product_id))
        answers = await asyncio.gather(*(admission.gate.admit(Wanted(product_id, user, 1)) for user in range(1, 6)))
        assert [type(answer) for answer in answers] == [Admitted] * 3 + [Refused] * 2
        assert answers[4] == Refused(Refusal.OVERLOADED)
        assert await stock_of(admission, product_id) == (7, 3)
        first = answers[0]
        assert isinstance(first, Admitted)
        await admission.ledger.settle([(as_order(Wanted(product_id, 1, 1), first), Confirmed())])
        await admitted(admission, Wanted(product_id, 5, 1))


# --- when ---------------------------------------------------------------------------------------------------------


async def test_unknown_product(admission: Admission, product_id: int) -> None:
    """A product without a sale is UNKNOWN_PRODUCT, and becomes known as soon as its sale is warmed."""
    assert await admission.gate.admit(Wanted(product_id, 1, 1)) == Refused(Refusal.UNKNOWN_PRODUCT)
    await admission.sales.warm(a_sale(product_id))
    await admitted(admission, Wanted(product_id, 1, 1))


async def test_the_window_is_judged_by_the_servers_clock(admission: Admission, product_id: int) -> None:
    """Before the start NOT_STARTED with the start, from the end on ENDED with the end."""
    sale = a_sale(product_id, starts_at_ms=now_ms() + 60_000)
    await admission.sales.warm(sale)
    assert await admission.gate.admit(Wanted(product_id, 1, 1)) == Refused(Refusal.NOT_STARTED, at_ms=sale.starts_at_ms)
    await admission.sales.warm(replace(sale, starts_at_ms=now_ms() - 60_000))
    await admitted(admission, Wanted(product_id, 1, 1))
    ended = replace(sale, starts_at_ms=now_ms() - 60_000, ends_at_ms=now_ms() - 1)
    await admission.sales.warm(ended)
    assert await admission.gate.admit(Wanted(product_id, 2, 1)) == Refused(Refusal.ENDED, at_ms=ended.ends_at_ms)


async def test_paused_and_resumed(admission: Admission, product_id: int) -> None:
    """A paused sale answers PAUSED; resumed, it goes on where it was."""
    sale = a_sale(product_id)
    await admission.sales.warm(sale)
    await admitted(admission, Wanted(product_id, 1, 1))
    await admission.sales.set_state(sale, "paused")
    assert await admission.gate.admit(Wanted(product_id, 2, 1)) == Refused(Refusal.PAUSED)
    await admission.sales.set_state(sale, "open")
    await admitted(admission, Wanted(product_id, 2, 1))
    assert await stock_of(admission, product_id) == (8, 2)


async def test_closed(admission: Admission, product_id: int) -> None:
    """A closed sale answers ENDED with the time of closing, though its window is open."""
    sale = a_sale(product_id)
    await admission.sales.warm(sale)
    before = now_ms()
    await admission.sales.set_state(sale, "closed")
    await admission.sales.warm(replace(sale, state="closed", name="closed twice"))
    answer = await admission.gate.admit(Wanted(product_id, 1, 1))
    assert isinstance(answer, Refused)
    assert answer.code is Refusal.ENDED
    assert answer.at_ms is not None
    assert before - 1_000 <= answer.at_ms <= now_ms() + 1_000


# --- repeats --------------------------------------------------------------------------------------------------------


async def test_a_request_id_always_gives_the_same_order(admission: Admission, product_id: int) -> None:
    """The id is derived from buyer, sale and key; a repeat is told so and takes nothing, also within one batch."""
    sale = a_sale(product_id, per_user_limit=5)
    await admission.sales.warm(sale)
    wanted = Wanted(product_id, 7, 2, "key-1")
    first, again = await asyncio.gather(admission.gate.admit(wanted), admission.gate.admit(wanted))
    assert isinstance(first, Admitted)
    assert first.order_id == derived_order_id(product_id, "request", 7, sale.sale_id, "key-1", at_ms=sale.starts_at_ms)
    assert not first.repeated
    assert again == replace(first, repeated=True)
    assert await admission.gate.admit(wanted) == again
    assert await stock_of(admission, product_id) == (8, 2)
    other = await admitted(admission, Wanted(product_id, 8, 2, "key-1"))
    assert other.order_id != first.order_id


async def test_a_repeat_comes_before_every_other_check(admission: Admission, product_id: int) -> None:
    """A known order gets its first answer though the sale is sold out, paused or over by now."""
    sale = a_sale(product_id, stock=1)
    await admission.sales.warm(sale)
    wanted = Wanted(product_id, 7, 1, "key")
    first = await admission.gate.admit(wanted)
    assert isinstance(first, Admitted)
    for changed in (sale, replace(sale, state="paused"), replace(sale, ends_at_ms=2_000)):
        await admission.sales.warm(changed)
        assert await admission.gate.admit(wanted) == replace(first, repeated=True)


async def test_a_key_with_another_quantity_is_reused(admission: Admission, product_id: int) -> None:
    """The same key with another quantity is KEY_REUSED, while the order is pending and after it has ended."""
    await admission.sales.warm(a_sale(product_id, per_user_limit=5))
    order = await admitted(admission, Wanted(product_id, 7, 2, "key"))
    assert await admission.gate.admit(Wanted(product_id, 7, 3, "key")) == Refused(Refusal.KEY_REUSED)
    await admission.ledger.settle([(order, Confirmed())])
    assert await admission.gate.admit(Wanted(product_id, 7, 3, "key")) == Refused(Refusal.KEY_REUSED)


async def test_a_repeat_after_its_result_has_expired_takes_nothing(
    admission: Admission, redis_backend: Backend, product_id: int
) -> None:
    """A sale is prolonged by more than results are kept: a confirmed order's repeat does not buy a second time."""
    sale = a_sale(product_id, per_user_limit=5)
    await admission.sales.warm(sale)
    order = await admitted(admission, Wanted(product_id, 1, 2, "key"))
    await admission.ledger.settle([(order, Confirmed())])
    with raw_redis(redis_backend.url) as client:
        client.delete(sale_keys(product_id, sale.sale_id).result(order.order_id))
    answer = await admission.gate.admit(Wanted(product_id, 1, 2, "key"))
    assert isinstance(answer, AlreadyDecided)
    assert (answer.order_id, answer.result.status) == (order.order_id, OrderStatus.CONFIRMED)
    assert await stock_of(admission, product_id) == (8, 2)


@pytest.mark.parametrize("end", [None, Confirmed(), Rejected(Rejection.ENDED)])
async def test_an_order_past_the_front_belongs_to_the_sale_that_admitted_it(
    admission: Admission, product_id: int, end: Confirmed | Rejected | None
) -> None:
    """An order that names no sale, asked for again after its sale was replaced, gets its first answer."""
    first = a_sale(product_id)
    await admission.sales.warm(first)
    order = Order(order_id_from_key(product_id, b"\x07" * 16), 0, 5, product_id, 1, 0)
    (before,) = await admission.gate.admit_late([order])
    assert isinstance(before, Admitted)
    if end is not None:
        await admission.ledger.settle([(replace(order, sale_id=before.sale_id), end)])
    await admission.sales.set_state(first, "closed")
    await admission.sales.warm(a_sale(product_id, sale_id=first.sale_id + 1))
    new = Order(order_id_from_key(product_id, b"\x08" * 16), 0, 6, product_id, 1, 0)
    again, other = await admission.gate.admit_late([order, new])
    assert isinstance(other, Admitted)
    assert other.sale_id == first.sale_id + 1
    assert await stock_of(admission, product_id) == (9, 1)
    if end is None:
        assert again == replace(before, repeated=True)
    else:
        assert isinstance(again, AlreadyDecided)
        assert again.result.status is (OrderStatus.CONFIRMED if end == Confirmed() else OrderStatus.REJECTED)


async def test_a_repeat_of_an_ended_order_gets_its_end(admission: Admission, product_id: int) -> None:
    """After settling, a repeat is answered with the result, and a rejected one is not admitted anew."""
    await admission.sales.warm(a_sale(product_id))
    confirmed = await admitted(admission, Wanted(product_id, 1, 1, "key"))
    rejected = await admitted(admission, Wanted(product_id, 2, 1, "key"))
    parked = await admitted(admission, Wanted(product_id, 3, 1, "key"))
    await admission.ledger.settle([(confirmed, Confirmed()), (rejected, Rejected(Rejection.DISCARDED))])
    await admission.ledger.park([parked])
    results = []
    for user in (1, 2, 3):
        answer = await admission.gate.admit(Wanted(product_id, user, 1, "key"))
        assert isinstance(answer, AlreadyDecided)
        results.append((answer.result.order_id, answer.result.status, answer.result.reason))
    assert results == [
        (confirmed.order_id, OrderStatus.CONFIRMED, ""),
        (rejected.order_id, OrderStatus.REJECTED, "DISCARDED"),
        (parked.order_id, OrderStatus.DELAYED, ""),
    ]


async def test_a_moved_start_does_not_change_derived_ids(redis_backend: Backend, product_id: int) -> None:
    """Moving the start of a sale leaves the orders of its keys what they were, for every gate."""
    sale = a_sale(product_id)
    wanted = Wanted(product_id, 7, 1, "key")
    async with admission_on(redis_backend) as admission:
        await admission.sales.warm(sale)
        first = await admitted(admission, wanted)
        await admission.sales.warm(replace(sale, starts_at_ms=sale.starts_at_ms + 5_000))
    async with admission_on(redis_backend) as other:
        repeat = await other.gate.admit(wanted)
    assert isinstance(repeat, Admitted)
    assert (repeat.order_id, repeat.repeated) == (first.order_id, True)


# --- orders that came past the front ----------------------------------------------------------------------------


def late(product_id: int, user_id: int, *, sale_id: int, quantity: int = 1, uuid: int = 1) -> Order:
    return Order(order_id_from_key(product_id, uuid.to_bytes(16, "big")), sale_id, user_id, product_id, quantity, 0)


async def test_late_admission_keeps_ids_and_is_repeatable(admission: Admission, product_id: int) -> None:
    """Orders with ids of their own are admitted under them, in order, once; another content under an id is told."""
    sale = a_sale(product_id, stock=2)
    await admission.sales.warm(sale)
    orders = [late(product_id, user, sale_id=sale.sale_id, uuid=user) for user in (1, 2, 3)]
    first, second, third = await admission.gate.admit_late(orders)
    assert isinstance(first, Admitted)
    assert isinstance(second, Admitted)
    assert (first.order_id, second.order_id) == (orders[0].order_id, orders[1].order_id)
    assert third == Refused(Refusal.SOLD_OUT, left=0)
    again = await admission.gate.admit_late(orders)
    assert again == [replace(first, repeated=True), replace(second, repeated=True), third]
    assert await admission.gate.admit_late([replace(orders[0], user_id=9)]) == [Refused(Refusal.KEY_REUSED)]
    assert await admission.gate.admit_late([]) == []


async def test_late_orders_of_any_mix(admission: Admission, product_id: int) -> None:
    """Products, sales and orders without a sale may be mixed; a sale that Redis never held is unknown."""
    sale, other = a_sale(product_id), a_sale(product_id + 1)
    await admission.sales.warm(sale)
    await admission.sales.warm(other)
    answers = await admission.gate.admit_late(
        [
            late(product_id, 1, sale_id=sale.sale_id, uuid=1),
            late(product_id + 1, 1, sale_id=0, uuid=2),
            late(product_id, 2, sale_id=sale.sale_id + 1, uuid=3),
            late(product_id, 3, sale_id=0, uuid=4),
            late(product_id + 2, 3, sale_id=0, uuid=5),
        ]
    )
    sales = [answer.sale_id if isinstance(answer, Admitted) else answer for answer in answers]
    unknown = Refused(Refusal.UNKNOWN_PRODUCT)
    assert sales == [sale.sale_id, other.sale_id, unknown, sale.sale_id, unknown]


# --- the sale book --------------------------------------------------------------------------------------------------


async def test_warming_again_leaves_the_units_alone(admission: Admission, product_id: int) -> None:
    """Window, limit, price, name and state are copied again; stock and number are not."""
    sale = a_sale(product_id)
    await admission.sales.warm(sale)
    await admitted(admission, Wanted(product_id, 1, 1))
    changed = replace(
        sale, name="renamed", price_cents=5, per_user_limit=4, ends_at_ms=sale.ends_at_ms - 1, stock=500, initial=500,
        sold=3, state="paused",
    )  # fmt: skip
    await admission.sales.warm(changed)
    view = await admission.sales.read(product_id)
    assert view is not None
    assert (view.name, view.price_cents, view.per_user_limit, view.ends_at_ms, view.state) == (
        "renamed", 5, 4, sale.ends_at_ms - 1, "paused",
    )  # fmt: skip
    assert (view.stock, view.admitted, view.initial, view.number) == (9, 1, 10, 1)


async def test_a_lost_sale_with_units_out_needs_a_rebuild(
    admission: Admission, redis_backend: Backend, product_id: int
) -> None:
    """Redis without the sale and a row with frozen or sold units: warming refuses and admission stays closed."""
    sale = a_sale(product_id, sold=2, stock=8, initial=10)
    with pytest.raises(RebuildNeeded):
        await admission.sales.warm(sale)
    assert await admission.gate.admit(Wanted(product_id, 1, 1)) == Refused(Refusal.UNKNOWN_PRODUCT)
    await admission.sales.warm(a_sale(product_id))
    with raw_redis(redis_backend.url) as client:
        client.delete(sale_keys(product_id, sale.sale_id).stock)
    assert await admission.gate.admit(Wanted(product_id, 1, 1)) == Refused(Refusal.PAUSED, rebuilding=True)
    with pytest.raises(RebuildNeeded):
        await admission.sales.warm(replace(sale, sold=0, frozen=2))
    assert await admission.gate.admit(Wanted(product_id, 1, 1)) == Refused(Refusal.PAUSED, rebuilding=True)
    assert await admission.sales.read(product_id) is None


async def test_a_new_sale_replaces_only_one_that_is_over(admission: Admission, product_id: int) -> None:
    """While a sale is on, another one of its product is refused; closed or ended, it makes room."""
    first = a_sale(product_id, sale_id=1)
    second, third = replace(first, sale_id=2), replace(first, sale_id=3)
    await admission.sales.warm(first)
    with pytest.raises(InvalidTransition):
        await admission.sales.warm(second)
    await admission.sales.set_state(first, "paused")
    with pytest.raises(InvalidTransition):
        await admission.sales.warm(second)
    await admission.sales.set_state(first, "closed")
    await admission.sales.warm(second)
    assert (await admitted(admission, Wanted(product_id, 1, 1))).sale_id == 2
    await admission.sales.warm(replace(second, ends_at_ms=now_ms() - 1))
    await admission.sales.warm(third)
    assert (await admitted(admission, Wanted(product_id, 1, 1))).sale_id == 3


async def test_a_closed_sale_does_not_come_back(admission: Admission, product_id: int) -> None:
    """Copying the row of an old, closed sale again leaves the current one where it is."""
    first, second = a_sale(product_id, sale_id=1), a_sale(product_id, sale_id=2)
    await admission.sales.warm(first)
    await admission.sales.set_state(first, "closed")
    await admission.sales.warm(second)
    await admission.sales.warm(replace(first, state="closed", name="renamed later"))
    await admission.sales.set_state(first, "closed")
    view = await admission.sales.read(product_id)
    assert view is not None
    assert (view.sale_id, view.state, view.name) == (2, "open", "a sale")


async def test_the_old_sale_settles_on_its_own_keys(admission: Admission, product_id: int) -> None:
    """Rejecting an order of a replaced sale gives back to that sale, and the new one never notices."""
    first, second = a_sale(product_id, sale_id=1), a_sale(product_id, sale_id=2)
    await admission.sales.warm(first)
    order = await admitted(admission, Wanted(product_id, 1, 1, "key"))
    await admission.sales.set_state(first, "closed")
    await admission.sales.warm(second)
    in_second = await admitted(admission, Wanted(product_id, 1, 1, "key"))
    assert in_second.sale_id == 2
    assert in_second.order_id != order.order_id
    await admission.ledger.settle([(order, Rejected(Rejection.ENDED))])
    assert await stock_of(admission, product_id) == (9, 1)
    assert await admission.sales.units_of_buyers(product_id, 1) == {}
    assert await admission.sales.units_of_buyers(product_id, 2) == {1: 1}
    results = await admission.ledger.results([order.order_id, in_second.order_id])
    assert [results[one.order_id].status for one in (order, in_second)] == [
        OrderStatus.REJECTED,
        OrderStatus.PROCESSING,
    ]
    late_answer = await admission.gate.admit_late([late(product_id, 3, sale_id=1)])
    assert late_answer == [Refused(Refusal.ENDED, at_ms=first.ends_at_ms)]


async def test_old_sales_are_forgotten_when_nothing_refers_to_them(
    admission: Admission, redis_backend: Backend, product_id: int
) -> None:
    """What is left of an earlier sale goes once its results have expired and its ledger is empty."""
    first = a_sale(product_id, sale_id=1)
    await admission.sales.warm(first)
    pending = await admitted(admission, Wanted(product_id, 1, 1))
    keys = sale_keys(product_id, 1)
    with raw_redis(redis_backend.url) as client:
        client.zadd(f"seckill:{{{product_id}}}:sales", {"1": 5})  # as if its last result had expired
        await admission.sales.set_state(first, "closed")
        await admission.sales.warm(replace(first, sale_id=2))
        assert client.exists(keys.stock, keys.buyers) == 2
        await admission.ledger.settle([(pending, Confirmed())])
        client.zadd(f"seckill:{{{product_id}}}:sales", {"1": 5})
        await admission.sales.set_state(replace(first, sale_id=2), "closed")
        await admission.sales.warm(replace(first, sale_id=3))
        assert client.exists(keys.stock, keys.buyers, keys.ledger) == 0


async def test_units_are_added_and_taken_once_per_change(admission: Admission, product_id: int) -> None:
    """Raising and lowering are idempotent by change id, and lowering takes no more than there is."""
    sale = a_sale(product_id)
    await admission.sales.warm(sale)
    await admitted(admission, Wanted(product_id, 1, 1))
    for _ in range(2):
        await admission.sales.add_units(sale, "raise", 5)
    assert await stock_of(admission, product_id) == (14, 1)
    assert [await admission.sales.take_units(sale, "lower", 4) for _ in range(2)] == [4, 4]
    assert await stock_of(admission, product_id) == (10, 1)
    assert [await admission.sales.take_units(sale, "lower more", 40) for _ in range(2)] == [10, 10]
    assert await stock_of(admission, product_id) == (0, 1)
    for _ in range(2):
        await admission.sales.undo_take(sale, "lower more")
    assert await stock_of(admission, product_id) == (10, 1)
    assert await admission.sales.take_units(sale, "lower more", 40) == 0


async def test_a_change_before_warming_is_in_the_row_that_is_copied(admission: Admission, product_id: int) -> None:
    """Units added while Redis does not hold the sale come with its warming, and a repeat adds nothing."""
    sale = a_sale(product_id, stock=15)
    await admission.sales.add_units(sale, "raise", 5)
    await admission.sales.warm(sale)
    await admission.sales.add_units(sale, "raise", 5)
    assert await stock_of(admission, product_id) == (15, 0)


async def test_more_units_than_admission_can_count(admission: Admission, product_id: int) -> None:
    """A stock that a script could not count exactly is refused at warming."""
    with pytest.raises(InvalidTransition):
        await admission.sales.warm(a_sale(product_id, stock=2**53))


# --- batches, cancellation, bounds -------------------------------------------------------------------------------


async def test_waiting_orders_share_a_call(redis_backend: Backend, product_id: int) -> None:
    """Orders of one turn travel together: two products with 50 each make four calls of at most 30."""
    sizes: list[int] = []
    async with admission_on(redis_backend, batch_max=30, on_batch=sizes.append) as admission:
        for product in (product_id, product_id + 1):
            await admission.sales.warm(a_sale(product, stock=100))
            await admitted(admission, Wanted(product, 999, 1))
        sizes.clear()
        answers = await asyncio.gather(
            *(admission.gate.admit(Wanted(product_id + user % 2, user, 1)) for user in range(1, 101))
        )
    assert all(isinstance(answer, Admitted) for answer in answers)
    assert sorted(sizes) == [20, 20, 30, 30]


async def test_a_full_queue_refuses(redis_backend: Backend, product_id: int) -> None:
    """Above the bound of the queue an order is OVERLOADED at once; those that wait are answered."""
    async with admission_on(redis_backend, queue_max=5) as admission:
        await admission.sales.warm(a_sale(product_id))
        answers = await asyncio.gather(*(admission.gate.admit(Wanted(product_id, user, 1)) for user in range(1, 8)))
    assert [isinstance(answer, Admitted) for answer in answers] == [True] * 5 + [False] * 2
    assert answers[5:] == [Refused(Refusal.OVERLOADED)] * 2


async def test_cancelled_callers_lose_nothing(admission: Admission, product_id: int) -> None:
    """Callers that go away mid-call neither shift anyone's answer nor undo their own admission."""
    await admission.sales.warm(a_sale(product_id, stock=1_000))
    kept: list[Admitted] = []
    for turn in range(10):
        users = range(turn * 40 + 1, turn * 40 + 41)
        tasks = [asyncio.create_task(admission.gate.admit(Wanted(product_id, user, 1, f"{user}"))) for user in users]
        await asyncio.sleep(0.0005 * (turn % 4))
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks)
        for user, task in zip(users, tasks, strict=True):
            answer = await admission.gate.admit(Wanted(product_id, user, 1, f"{user}"))
            assert isinstance(answer, Admitted)
            if not task.cancelled():
                first = task.result()
                assert isinstance(first, Admitted)
                assert first == replace(answer, repeated=False)
            kept.append(answer)
    assert sorted(answer.admission_number for answer in kept) == list(range(1, 401))
    assert await stock_of(admission, product_id) == (600, 400)


async def test_leaving_answers_who_waits(redis_backend: Backend, product_id: int) -> None:
    """Closing the gate answers the orders that wait and refuses new ones."""
    async with admission_on(redis_backend) as admission:
        await admission.sales.warm(a_sale(product_id))
        waiting = asyncio.create_task(admission.gate.admit(Wanted(product_id, 1, 1)))
        await asyncio.sleep(0)
        await admission.gate.close()
        assert isinstance(await waiting, Admitted)
        assert await admission.gate.admit(Wanted(product_id, 2, 1)) == Refused(Refusal.OVERLOADED)


async def test_scripts_come_back_after_a_flush(admission: Admission, redis_backend: Backend, product_id: int) -> None:
    """A server that forgot the scripts is given them again within the same call."""
    await admission.sales.warm(a_sale(product_id))
    with raw_redis(redis_backend.url) as client:
        client.script_flush()
    await admitted(admission, Wanted(product_id, 1, 1))


async def test_no_server(product_id: int) -> None:
    """Without a server every call says so, and names the address without secrets."""
    nowhere = Backend("redis://user:secret@127.0.0.1:1/0", run_id_check=False)
    async with admission_on(nowhere) as admission:
        with pytest.raises(AdmissionUnavailable) as error:
            await admission.gate.admit(Wanted(product_id, 1, 1))
        assert error.value.address == "127.0.0.1:1"
        assert error.value.retryable
        with pytest.raises(AdmissionUnavailable):
            await admission.sales.check()


async def test_a_full_server_refuses_the_whole_batch(product_id: int) -> None:
    """When Redis has no memory left, the call fails before it changed anything."""
    with redis_process() as server, raw_redis(server.url) as client:
        async with admission_on(Backend(server.url, run_id_check=True)) as admission:
            await admission.sales.warm(a_sale(product_id))
            client.config_set("maxmemory", "1mb")
            with pytest.raises(AdmissionUnavailable):
                await admission.gate.admit(Wanted(product_id, 1, 1))
            client.config_set("maxmemory", "0")
            assert await stock_of(admission, product_id) == (10, 0)
            assert await admission.ledger.entries(product_id) == []
            assert isinstance(await admission.gate.admit(Wanted(product_id, 1, 1)), Admitted)


async def test_a_restarted_server_is_not_trusted(product_id: int) -> None:
    """A server that restarted answers PAUSED until someone vouches for it; copying the row again does not."""
    with redis_process() as server:
        async with admission_on(Backend(server.url, run_id_check=True)) as admission:
            sale = a_sale(product_id)
            await admission.sales.warm(sale)
            order = await admitted(admission, Wanted(product_id, 1, 1, "key"))
            server.restart()
            assert await admission.gate.admit(Wanted(product_id, 2, 1)) == Refused(Refusal.PAUSED, rebuilding=True)
            await admission.sales.warm(sale)
            assert await admission.gate.admit(Wanted(product_id, 2, 1)) == Refused(Refusal.PAUSED, rebuilding=True)
            view = await admission.sales.read(product_id)
            assert view is not None
            assert not view.vouched
            # Its buyer may have been told how it ended, by a result that the server lost; a worker has its record.
            assert await admission.gate.admit(Wanted(product_id, 1, 1, "key")) == Refused(
                Refusal.PAUSED, rebuilding=True
            )
            (repeat,) = await admission.gate.admit_late([Order(order.order_id, sale.sale_id, 1, product_id, 1, 0)])
            assert isinstance(repeat, Admitted)
            assert repeat.repeated


async def test_a_lost_connection_is_tried_once_more(product_id: int) -> None:
    """Connections that the server closed between two calls are replaced without an error."""
    with redis_process() as server, raw_redis(server.url) as client:
        async with admission_on(Backend(server.url, run_id_check=True)) as admission:
            await admission.sales.warm(a_sale(product_id))
            await admitted(admission, Wanted(product_id, 1, 1))
            client.client_kill_filter(_type="normal", skipme=True)
            await admitted(admission, Wanted(product_id, 2, 1))


async def test_the_current_sale_survives_a_deleted_row(
    admission: Admission, redis_backend: Backend, product_id: int
) -> None:
    """When only the row was lost, warming brings it back and keeps the units."""
    sale: Sale = a_sale(product_id)
    await admission.sales.warm(sale)
    await admitted(admission, Wanted(product_id, 1, 1))
    with raw_redis(redis_backend.url) as client:
        client.delete(current_sale_key(product_id))
    assert await admission.gate.admit(Wanted(product_id, 2, 1)) == Refused(Refusal.UNKNOWN_PRODUCT)
    await admission.sales.warm(replace(sale, sold=1, stock=9))
    assert await stock_of(admission, product_id) == (9, 1)


def test_the_plain_client_speaks_to_the_same_server(redis_backend: Backend) -> None:
    """The suite's own client reaches the server that the tested code uses."""
    with raw_redis(redis_backend.url) as client:
        assert client.ping()
        with pytest.raises(redis.ResponseError):
            client.evalsha("0" * 40, 0)
