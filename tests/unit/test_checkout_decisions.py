"""What rows, answers and repeats mean for an order: decided without I/O."""

from __future__ import annotations

from dataclasses import replace

import pytest
from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from consumers.carried import split_reused
from seckill.checkout.groups import cut, halves
from seckill.checkout.late import judged
from seckill.checkout.reservations import Reservation, ReservationState, outcome_of
from seckill.domain.errors import AdmissionClosed, OrderIdReused
from seckill.domain.order import Order, OrderId, order_id_from_key
from seckill.domain.outcomes import (
    Admitted,
    AlreadyDecided,
    Confirmed,
    Failed,
    OrderResult,
    OrderStatus,
    Refused,
    Rejected,
    Undecided,
)
from seckill.domain.reasons import Refusal
from seckill.messaging.delivery import Arrival, Delivered
from seckill.messaging.envelope import Record
from seckill.messaging.offsets import PartitionProgress


def order(number: int = 1, *, sale_id: int = 4, product_id: int = 7, quantity: int = 1) -> Order:
    order_id = order_id_from_key(product_id, number.to_bytes(16, "big"))
    return Order(order_id, sale_id, 100 + number, product_id, quantity, 1_000, number)


def row(state: ReservationState, *, gid: str = "mine", reason: str = "") -> Reservation:
    return Reservation(order().key, state, gid, reason, sale_id=4, product_id=7, user_id=101, quantity=1)


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        (None, None),
        (row(ReservationState.RELEASED), None),
        (row(ReservationState.SOLD), Confirmed()),
        (row(ReservationState.SOLD, gid="other"), Confirmed()),
        (row(ReservationState.REJECTED, reason="SOLD_OUT"), Rejected("SOLD_OUT")),
        (row(ReservationState.FROZEN), Undecided("mine", "its own transaction")),
        (row(ReservationState.FROZEN, gid="other"), Undecided("other", "another transaction holds it")),
    ],
)
def test_the_row_decides(found: Reservation | None, outcome: object) -> None:
    """An order's fate is what its reservation says; only no row, or a released one, leaves it open."""
    assert outcome_of(order(), found, gid="mine") == outcome


@pytest.mark.parametrize("state", list(ReservationState))
@pytest.mark.parametrize("other", [{"product_id": 8}, {"user_id": 5}, {"quantity": 2}, {"sale_id": 9}])
def test_an_id_with_other_contents_is_no_outcome_of_the_order(state: ReservationState, other: dict[str, int]) -> None:
    """A row of another product, sale, buyer or quantity says nothing of an order that has its id."""
    outcome = outcome_of(order(), replace(row(state), **other), gid="mine")  # type: ignore[arg-type]  # all are numbers
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, OrderIdReused)


def test_a_sale_that_is_not_known_yet_makes_no_impostor() -> None:
    """An order past the front may be rejected before its sale is known, and may come again without naming it."""
    rejected = replace(row(ReservationState.REJECTED, gid="", reason="ENDED"), sale_id=0)
    assert outcome_of(order(), rejected, gid="mine") == Rejected("ENDED", by_admission=True)
    assert outcome_of(order(sale_id=0), row(ReservationState.SOLD), gid="") == Confirmed()


def test_late_admission_is_judged_by_its_answer() -> None:
    """An admitted order learns its sale and number; what is only closed for now is tried again; the rest is final."""
    late = replace(order(), sale_id=0, admission_number=None)
    assert judged(late, Admitted(late.order_id, 9, 5_000, 33)) == replace(
        late, sale_id=9, admission_number=33, admitted_at_ms=5_000
    )
    ended = OrderResult(late.order_id, OrderStatus.REJECTED, "SOLD_OUT")
    assert judged(late, AlreadyDecided(late.order_id, ended)) == Rejected("SOLD_OUT")
    assert judged(late, Refused(Refusal.SOLD_OUT)) is Refusal.SOLD_OUT
    for code in (Refusal.PAUSED, Refusal.OVERLOADED):
        outcome = judged(late, Refused(code))
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, AdmissionClosed)
        assert outcome.error.retryable


@given(st.lists(st.integers(1, 3), max_size=40), st.integers(1, 7))
def test_groups_hold_one_sale_in_order_of_arrival(sales: list[int], count_max: int) -> None:
    """Cutting loses nothing, mixes no sales, keeps the order of arrival and never exceeds the bound."""
    orders = [order(n + 1, sale_id=sale) for n, sale in enumerate(sales)]
    groups = list(cut(orders, count_max=count_max, bytes_max=60_000))
    assert all(len({o.sale_id for o in group}) == 1 and len(group) <= count_max for group in groups)
    for sale in set(sales):
        flat = [o for group in groups for o in group if o.sale_id == sale]
        assert flat == [o for o in orders if o.sale_id == sale]
    assert sum(map(len, groups)) == len(orders)


def test_groups_are_cut_by_bytes_as_well() -> None:
    """A payload that would outgrow the coordinator's column is cut before it is made."""
    assert [len(group) for group in cut([order(n) for n in range(1, 11)], count_max=500, bytes_max=256)] == [4, 4, 2]
    first, second = halves([order(1), order(2), order(3)])
    assert len(first) + len(second) == 3


def delivered(one: Order) -> Delivered:
    record = Record("seckill-topic", 0, 0, 0, None, b"{}")
    return Delivered(one, record, Arrival(TopicPartition("seckill-topic", 0), PartitionProgress(), record))


def test_an_order_id_that_comes_twice_is_carried_once() -> None:
    """An exact repeat goes with the first; other contents under the same id are set aside."""
    first, repeat, impostor = delivered(order()), delivered(order()), delivered(order(quantity=2))
    other = delivered(order(2))
    once, reused = split_reused([first, repeat, impostor, other])
    assert once == [first, other]
    assert reused == [impostor]
    assert OrderId(impostor.order.order_id) == first.order.order_id


def test_an_admitted_order_goes_before_an_impostor() -> None:
    """Other contents that come past the front under the id of an admitted order, and before it, do not push it out."""
    impostor = delivered(replace(order(quantity=2), admission_number=None))
    assert split_reused([impostor, delivered(order())]) == ([delivered(order())], [impostor])
