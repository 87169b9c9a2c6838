"""The audit of a running pipeline: what is on its way is no breach, and what is wrong in one reading only is none."""

from __future__ import annotations

from dataclasses import replace

from seckill.audit.facts import Facts, LedgerRow, OrderRow, RedisSale, ReservationRow, SaleRow, State, Totals
from seckill.audit.live import in_both
from seckill.audit.rules import Invariant, Verdict, judge
from seckill.audit.timeline import Event, in_order, subjects_of

ORDER = f"1-{1:032x}"
SALE = SaleRow(sale_id=7, product_id=1, initial=10, stock=9, frozen=1, sold=0, per_user_limit=1)
FROZEN = ReservationRow(ORDER, 7, 101, 1, State.FROZEN, "", "g1")
CONFIRMED = OrderRow(ORDER, 7, 101, 1, True, "g1")
PENDING = LedgerRow(ORDER, 7, 1, parked=False, age_ms=400_000)


def in_flight() -> Facts:
    """Order has confirmed, product is about to."""
    return Facts(
        sales=[SALE],
        reservations=[FROZEN],
        orders=[CONFIRMED],
        order_decisions={"g1": "confirm"},
        redis=[RedisSale(7, stock=9, admitted=1, initial=10)],
        ledger=[PENDING],
        accepted=frozenset({ORDER}),
        at_rest=False,
    )


def broken(verdict: Verdict) -> set[Invariant]:
    return {invariant for invariant in Invariant if verdict.breaches[invariant]}


def test_between_two_confirms_nothing_is_wrong() -> None:
    """Frozen, pending, and confirmed on one side: fine live, and wrong at rest."""
    live = judge(in_flight(), slow_after_ms=300_000)
    assert live.holds
    assert live.slow == ((ORDER, 400_000),)
    assert judge(in_flight(), slow_after_ms=500_000).slow == ()
    resting = judge(replace(in_flight(), at_rest=True))
    assert broken(resting) == {
        Invariant.UNITS_ADD_UP,
        Invariant.SOLD_IS_CONFIRMED,
        Invariant.EVERY_ORDER_ENDS,
        Invariant.BRANCHES_AGREE,
    }
    assert resting.lost == (ORDER,)


def test_confirmed_under_a_gid_that_holds_nothing_is_wrong() -> None:
    """One transaction confirmed the order while another holds its units: no Confirm brings them together."""
    verdict = judge(replace(in_flight(), reservations=[replace(FROZEN, gid="g2")]))
    assert {Invariant.SOLD_IS_CONFIRMED, Invariant.BRANCHES_AGREE} <= broken(verdict)


def test_frozen_units_of_a_decided_transaction_are_wrong() -> None:
    """Decision and reservation change together: units that stay frozen after it will never be free."""
    assert broken(judge(replace(in_flight(), product_decisions={"g1": "confirm"}))) == {Invariant.BRANCHES_AGREE}


def test_a_moved_counter_is_no_other_breach() -> None:
    """The same sale wrong in the same way twice counts, whatever its counters have become meanwhile."""
    first = judge(replace(in_flight(), sales=[replace(SALE, stock=8)]))
    second = judge(replace(in_flight(), sales=[replace(SALE, stock=6, frozen=1, initial=11)]))
    (breach,) = in_both(first, second).breaches[Invariant.UNITS_ADD_UP]
    assert breach.problem.startswith("stock + frozen + sold = 6")


def test_what_is_wrong_once_is_not_wrong() -> None:
    """A suspicion that another reading does not repeat is dropped, and so is one that has become another."""
    sound, lost = judge(in_flight()), judge(replace(in_flight(), accepted=frozenset({ORDER, f"1-{2:032x}"})))
    assert not lost.holds
    assert in_both(lost, sound).holds
    assert in_both(sound, lost).holds
    assert not in_both(lost, lost).holds
    told = judge(replace(in_flight(), told={ORDER: ("confirmed", "")}))
    told_else = judge(replace(in_flight(), told={ORDER: ("rejected", "SOLD_OUT")}))
    assert in_both(told, told_else).holds
    assert not in_both(told, told).holds


def test_admitted_units_may_be_between_two_sums() -> None:
    """Units of which the stores cannot say whether Redis counts them widen what is right, by themselves only."""
    for admitted, right in ((4, False), (5, True), (7, True), (8, False)):
        facts = replace(
            in_flight(),
            redis=[RedisSale(7, stock=10 - admitted, admitted=admitted, initial=10)],
            totals={7: Totals(frozen=1, held=5, unsure=2)},
        )
        assert (Invariant.REDIS_AGREES not in broken(judge(facts))) is right


def test_a_redis_that_waits_for_its_rebuild_is_not_judged() -> None:
    """Admission is closed there, and what it holds is known to be old."""
    verdict = judge(replace(in_flight(), redis=[RedisSale(7, 3, 1, 10, vouched=False)]))
    assert verdict.holds
    assert verdict.waiting_sales == (7,)


def test_a_subject_is_told_once() -> None:
    """All that is wrong about one order stands together; orders come first, and a sale has no story."""
    facts = replace(in_flight(), sales=[replace(SALE, stock=8)], told={ORDER: ("confirmed", "")}, at_rest=True)
    subjects = subjects_of(judge(facts))
    assert [*subjects] == [f"order {ORDER}", "gid g1"]
    assert len(subjects[f"order {ORDER}"][1]) == 4
    assert in_order([Event(None, "a", ""), Event(2, "b", ""), Event(1, "c", "")])[0].at_ms == 1
