"""What a Try decides about each order of a group."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seckill.domain.reasons import Rejection
from seckill.product.decide import Freeze, Group, Reject, Reservation, Stands, State, Terms, Verdict, Wanted, decide

PRODUCT, SALE = 7, 3


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def wanted(number: int, *, user_id: int = 0, quantity: int = 1) -> Wanted:
    return Wanted(key(number), user_id or 100 + number, quantity)


def group(*orders: Wanted) -> Group:
    return Group(PRODUCT, SALE, orders)


def row(order: Wanted, state: State, *, gid: str = "other", reason: str = "", sale_id: int = SALE) -> Reservation:
    return Reservation(
        order.order_id, PRODUCT, sale_id, order.user_id, order.quantity, state, reason, gid, "01", updated_at_ms=1
    )


def outcome(verdict: Verdict) -> str:
    match verdict:
        case Freeze():
            return "freeze"
        case Reject(reason=reason):
            return str(reason)
        case Stands(row=stands, reason=reason):
            return f"{stands.state.name} {reason}".strip()


def decided(*orders: Wanted, stock: int = 10, limit: int = 1, held: dict[int, int] | None = None) -> list[str]:
    verdicts = decide(Terms(stock, limit), group(*orders), existing={}, held=held or {})
    return [outcome(verdict) for verdict in verdicts]


def test_units_are_given_in_the_order_of_the_request() -> None:
    """Who comes first gets the units; who does not fit is sold out."""
    assert decided(wanted(1), wanted(2), wanted(3), stock=2) == ["freeze", "freeze", "SOLD_OUT"]


def test_a_smaller_order_fits_after_a_larger_one_did_not() -> None:
    """A refused order takes nothing from those behind it."""
    orders = (wanted(1, quantity=2), wanted(2, quantity=3), wanted(3, quantity=1))
    assert decided(*orders, stock=3, limit=3) == ["freeze", "SOLD_OUT", "freeze"]


def test_the_limit_counts_what_the_buyer_holds() -> None:
    """Units that are frozen or sold for the buyer in this sale count towards the limit."""
    orders = (wanted(1, user_id=5, quantity=2), wanted(2, user_id=6, quantity=2))
    assert decided(*orders, limit=3, held={5: 2, 6: 1}) == ["LIMIT_EXCEEDED", "freeze"]


def test_the_limit_counts_earlier_orders_of_the_same_group() -> None:
    """Two orders of one buyer in one group cannot slip past the limit together."""
    orders = (wanted(1, user_id=5), wanted(2, user_id=5), wanted(3, user_id=6))
    assert decided(*orders) == ["freeze", "LIMIT_EXCEEDED", "freeze"]


def test_a_refused_order_does_not_use_up_the_allowance() -> None:
    """Only what is frozen counts: after a sold-out order the same buyer may have a smaller one."""
    orders = (wanted(1, user_id=5, quantity=4), wanted(2, user_id=5, quantity=3))
    assert decided(*orders, stock=3, limit=4) == ["SOLD_OUT", "freeze"]


def test_without_a_sale_every_new_order_is_rejected() -> None:
    """A sale that does not exist rejects orders for ever, but leaves rows that stand."""
    orders = (wanted(1), wanted(2), wanted(3))
    existing = {key(2): row(orders[1], State.SOLD), key(3): row(orders[2], State.RELEASED)}
    verdicts = decide(None, group(*orders), existing=existing, held={})
    assert [outcome(verdict) for verdict in verdicts] == ["UNKNOWN_SALE", "SOLD", "UNKNOWN_SALE"]


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        (State.FROZEN, "", "FROZEN"),
        (State.SOLD, "", "SOLD"),
        (State.REJECTED, "SOLD_OUT", "REJECTED SOLD_OUT"),
        (State.RELEASED, "", "freeze"),
    ],
)
def test_only_a_released_row_may_be_taken_again(state: State, reason: str, expected: str) -> None:
    """A row that is frozen, sold or rejected is answered as it stands, though units are there."""
    order = wanted(1)
    verdicts = decide(Terms(10, 1), group(order), existing={order.order_id: row(order, state, reason=reason)}, held={})
    assert [outcome(verdict) for verdict in verdicts] == [expected]


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("changed", ["user", "quantity", "sale"])
def test_a_row_of_another_order_is_never_taken(state: State, changed: str) -> None:
    """The same order id with another buyer, quantity or sale is refused alone, with the row as it stands."""
    order, neighbour = wanted(1), wanted(2)
    other = {"user": wanted(1, user_id=999), "quantity": wanted(1, quantity=2), "sale": order}[changed]
    stands = row(other, state, sale_id=SALE + 1 if changed == "sale" else SALE)
    verdicts = decide(Terms(10, 5), group(order, neighbour), existing={order.order_id: stands}, held={})
    assert verdicts == [Stands(stands, Rejection.ORDER_CONFLICT), Freeze(neighbour)]


@given(
    stock=st.integers(0, 12),
    limit=st.integers(1, 4),
    asked=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=12),
    held=st.dictionaries(st.integers(1, 4), st.integers(0, 4)),
)
def test_never_more_than_stock_and_limit(
    stock: int, limit: int, asked: list[tuple[int, int]], held: dict[int, int]
) -> None:
    """Whatever is asked: frozen units never exceed the stock, a buyer never exceeds the limit, all get an answer."""
    orders = [wanted(index, user_id=user, quantity=quantity) for index, (user, quantity) in enumerate(asked, 1)]
    verdicts = decide(Terms(stock, limit), group(*orders), existing={}, held=held)
    frozen = [verdict.order for verdict in verdicts if isinstance(verdict, Freeze)]
    assert len(verdicts) == len(orders)
    assert sum(order.quantity for order in frozen) <= stock
    for user in {order.user_id for order in frozen}:
        assert held.get(user, 0) + sum(order.quantity for order in frozen if order.user_id == user) <= limit
