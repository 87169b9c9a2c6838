"""What a rebuild decides from the stores: pure, so that every mixture of survivors can be tried."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from consumers.rebuild import Survivors, contents_of
from seckill.admission.ledger import LedgerEntry
from seckill.checkout.reservations import Reservation, ReservationState
from seckill.domain.order import Order, Sale, order_id_from_key

PRODUCT, SALE, NOW_MS = 7, 3, 1_000_000

ENDED = (ReservationState.SOLD, ReservationState.REJECTED)

wishes = st.lists(
    st.tuples(
        st.integers(1, 5),  # buyer
        st.integers(1, 3),  # units
        st.none() | st.sampled_from(ReservationState),
        st.none() | st.sampled_from(["pending", "parked"]),  # in Redis' ledger
        st.booleans(),  # in the topic
        st.booleans(),  # in the dead-letter topic
    ),
    max_size=12,
)


@given(wishes, st.integers(0, 40), st.integers(0, 1_000))
def test_units_and_orders_add_up_whatever_survived(wanted: list, initial: int, number: int) -> None:  # type: ignore[type-arg]
    """Stock and admitted units make the sale's units, and every order that any store knows and that has not ended
    is in the ledger once, with its buyer's allowance used.
    """
    sale = Sale(SALE, PRODUCT, "", 0, 2**40, 9, 1, "open", initial, initial, 0, 0, 0)
    orders = [
        Order(order_id_from_key(PRODUCT, at.to_bytes(16, "big")), SALE, user, PRODUCT, units, 5, at + 1)
        for at, (user, units, *_) in enumerate(wanted)
    ]
    facts = list(zip(orders, wanted, strict=True))
    found = Survivors(
        entries=[LedgerEntry(order, 5, 6, told[3]) for order, told in facts if told[3]],
        uncommitted=[order for order, told in facts if told[4]],
        letters=frozenset(order.order_id for order, told in facts if told[5]),
        set_aside=[order for order, told in facts if told[5]],
        reservations=[
            Reservation(order.key, told[2], "gid", "", SALE, PRODUCT, order.user_id, order.quantity)
            for order, told in facts
            if told[2]
        ],
    )
    contents, told = contents_of(sale, found, number=number, now_ms=NOW_MS)

    waiting = {o for o, fact in facts if fact[2] not in ENDED and (fact[2] or fact[3] or fact[4] or fact[5])}
    assert sorted(entry.order.order_id for entry in contents.entries) == sorted(o.order_id for o in waiting)
    sold = [order for order, fact in facts if fact[2] is ReservationState.SOLD]
    held = sum(order.quantity for order in [*sold, *waiting])
    assert contents.stock == max(0, initial - held)
    assert told.surplus == max(0, held - initial)
    assert sum(units for units, _ in contents.buyers.values()) == held
    assert contents.number >= number
    parked = {entry.order.order_id for entry in contents.entries if entry.state == "parked"}
    must = {o.order_id for o, fact in facts if o in waiting and (fact[3] == "parked" or (fact[5] and not fact[4]))}
    assert parked == must
