"""What a rebuild puts into Redis, from whatever the stores happen to know. Pure, so tried with everything."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.survivors import NUMBERS_SKIPPED, Rows, Survivors, Traces, contents_of
from seckill.admission.ledger import LedgerEntry
from seckill.checkout.reservations import Reservation, ReservationState
from seckill.domain.order import Order, Sale, order_id_from_key

SALE = Sale(7, 3, "s", 1, 10**13, 9, 1, "open", 10, 10, 0, 0, 1)
NOW_MS = 1_000_000
LOOK_AFTER_MS = 30_000


@dataclass(frozen=True, slots=True)
class Fate:
    """What each store knows of one order. Times of records and letters; 0: none."""

    quantity: int
    user_id: int
    entry: str  # "", pending, parked
    record_ms: int
    passed: bool
    letter_ms: int
    row: ReservationState | None
    numbered: bool
    retry_ms: int = 0
    retry_passed: bool = False


FATES = st.lists(
    st.builds(
        Fate,
        quantity=st.integers(1, 3),
        user_id=st.integers(1, 4),
        entry=st.sampled_from(["", "pending", "parked"]),
        record_ms=st.sampled_from([0, 100, 300]),
        passed=st.booleans(),
        letter_ms=st.sampled_from([0, 200, 400]),
        row=st.sampled_from([None, *ReservationState]),
        numbered=st.booleans(),
        retry_ms=st.sampled_from([0, 150, 350]),
        retry_passed=st.booleans(),
    ),
    max_size=8,
)


def order_of(number: int, fate: Fate) -> Order:
    order_id = order_id_from_key(SALE.product_id, UUID(int=number + 1).bytes)
    named = number + 1 if fate.numbered else None
    return Order(
        order_id, SALE.sale_id if fate.numbered else 0, fate.user_id, SALE.product_id, fate.quantity, 50, named
    )


def survivors_of(fates: list[Fate]) -> Survivors:
    entries, rows, traces = [], [], Traces(SALE, current=True)
    for number, fate in enumerate(fates):
        order = order_of(number, fate)
        if fate.entry:
            held = Order(order.order_id, SALE.sale_id, fate.user_id, SALE.product_id, fate.quantity, 50, number + 1)
            entries.append(LedgerEntry(held, 60, 70, fate.entry))  # type: ignore[arg-type]  # pending or parked
        if fate.record_ms:
            traces.published(order, fate.record_ms, passed=fate.passed)
        if fate.retry_ms:
            traces.published(order, fate.retry_ms, passed=fate.retry_passed, tier=True)
        if fate.letter_ms:
            traces.buried(order, fate.letter_ms)
        if fate.row is not None:
            rows.append(Reservation(order.key, fate.row, "g", "", SALE.sale_id, 3, fate.user_id, fate.quantity))
    asked = frozenset(order_of(number, fate).key for number, fate in enumerate(fates))
    folded = Rows(SALE.product_id, asked)
    folded.add(rows)
    return Survivors(entries, traces.orders, folded, {}, frozenset())


def waits(fate: Fate) -> bool:
    """The rule in words: known to somebody, and not ended. An order past the front that the worker still has in hand,
    that waits in a retry topic, or that was set aside, was not admitted as far as anybody knows.
    """
    if fate.row in (ReservationState.SOLD, ReservationState.REJECTED):
        return False
    if fate.entry or fate.row is not None:
        return True
    if fate.numbered:
        return bool(fate.record_ms or fate.retry_ms or fate.letter_ms)
    let_go = (fate.record_ms and fate.passed) or (fate.retry_ms and fate.retry_passed)
    return bool(let_go and not (fate.retry_ms and not fate.retry_passed) and not fate.letter_ms)


def is_aside(fate: Fate) -> bool:
    if fate.row is ReservationState.FROZEN:
        return False
    if fate.letter_ms:
        return fate.letter_ms >= max(fate.record_ms, fate.retry_ms)
    return fate.entry == "parked"


@given(FATES)
@settings(max_examples=300, deadline=None)
def test_each_order_is_counted_once(fates: list[Fate]) -> None:
    """Units are held by what was sold and by what waits; the rest is stock, and buyers hold the same units."""
    contents, told = contents_of(SALE, survivors_of(fates), number=5, now_ms=NOW_MS, look_after_ms=LOOK_AFTER_MS)
    sold = sum(fate.quantity for fate in fates if fate.row is ReservationState.SOLD)
    held = sold + sum(fate.quantity for fate in fates if waits(fate))
    assert contents.stock == max(0, SALE.initial - held)
    assert told.surplus == max(0, held - SALE.initial)
    assert sum(units for units, _ in contents.buyers.values()) == held
    expected = {order_of(number, fate).order_id for number, fate in enumerate(fates) if waits(fate)}
    assert sorted(entry.order.order_id for entry in contents.entries) == sorted(expected)
    assert contents.number >= 5 + NUMBERS_SKIPPED


@given(FATES)
@settings(max_examples=300, deadline=None)
def test_an_order_is_aside_or_due(fates: list[Fate]) -> None:
    """Set aside by the later word of record and letter, never while a transaction holds it. Others are due at once,
    but for those whose records the group has yet to pass.
    """
    contents, _ = contents_of(SALE, survivors_of(fates), number=0, now_ms=NOW_MS, look_after_ms=LOOK_AFTER_MS)
    found = {entry.order.order_id: entry for entry in contents.entries}
    for number, fate in enumerate(fates):
        entry = found.get(order_of(number, fate).order_id)
        if entry is None:
            continue
        assert entry.state == ("parked" if is_aside(fate) else "pending")
        if entry.state == "parked":
            continue
        if (fate.record_ms and not fate.passed) or (fate.retry_ms and not fate.retry_passed):
            assert (entry.published_at_ms, entry.due_ms) == (NOW_MS, NOW_MS + LOOK_AFTER_MS)
        else:
            assert (entry.published_at_ms, entry.due_ms) == (60 if fate.entry else 0, NOW_MS)


def test_other_contents_under_a_known_id_are_no_order() -> None:
    """Of two records with one id the first counts, unless admission has numbered the second alone."""
    traces = Traces(SALE, current=True)
    fate = Fate(1, 1, "", 100, True, 0, None, numbered=True)
    true = order_of(0, fate)
    impostor = Order(true.order_id, 0, 2, SALE.product_id, 3, 50, None)
    traces.published(impostor, 90, passed=True)
    traces.published(true, 100, passed=True)
    traces.published(impostor, 110, passed=True)
    assert traces.orders[true.order_id].order == true
    assert traces.orders[true.order_id].published_ms == 100


def test_changes_that_the_row_knows_move_nothing_again() -> None:
    """What the row has taken in is remembered, with what it moved where that is known; the rest may begin anew."""
    changes = {"take:a": 2, "take:b": 3}
    found = Survivors([], {}, Rows(SALE.product_id), changes, frozenset({"a", "c"}))
    contents, _ = contents_of(SALE, found, number=0, now_ms=NOW_MS, look_after_ms=LOOK_AFTER_MS)
    assert contents.changes == {"add:a": 0, "add:c": 0, "take:a": 2}
