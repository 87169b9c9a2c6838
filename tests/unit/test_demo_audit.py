"""The audit's judgement: facts in which nothing is wrong, and for every rule facts that break it and only it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from seckill.audit.facts import Facts, LedgerRow, OrderRow, RedisSale, ReservationRow, SaleRow, State
from seckill.audit.rules import Invariant, Verdict, judge
from seckill.demo.crowd import Kind, allowed, requests_of
from seckill.demo.plan import Plan, latency

SALE = SaleRow(sale_id=7, product_id=1, initial=10, stock=8, frozen=0, sold=2, per_user_limit=1)


def order_id(number: int) -> str:
    return f"1-{number:032x}"


def reservation(
    number: int, state: State = State.SOLD, *, reason: str = "", gid: str = "g1", quantity: int = 1
) -> ReservationRow:
    return ReservationRow(order_id(number), 7, 100 + number, quantity, state, reason, gid)


def order(number: int, *, gid: str = "g1", confirmed: bool = True, quantity: int = 1) -> OrderRow:
    return OrderRow(order_id(number), 7, 100 + number, quantity, confirmed, gid)


def sound() -> Facts:
    """Two confirmed orders, one rejected late, one dead-lettered; everything else still on sale."""
    return Facts(
        sales=[SALE],
        reservations=[
            reservation(1),
            reservation(2),
            reservation(3, State.REJECTED, reason="LIMIT_EXCEEDED", gid="g2"),
            reservation(4, State.RELEASED, gid="g2"),
        ],
        orders=[order(1), order(2), order(4, gid="g2", confirmed=False)],
        product_decisions={"g1": "confirm", "g2": "cancel", "g3": "cancel"},
        order_decisions={"g1": "confirm", "g2": "cancel"},
        redis=[RedisSale(sale_id=7, stock=7, admitted=3)],
        ledger=[LedgerRow(order_id(4), 7, 1, parked=True)],
        told={
            order_id(1): ("confirmed", ""),
            order_id(2): ("confirmed", ""),
            order_id(3): ("rejected", "LIMIT_EXCEEDED"),
        },
        letters=frozenset({order_id(4)}),
        accepted=frozenset(order_id(number) for number in (1, 2, 3, 4)),
    )


def false_ones(verdict: Verdict) -> set[Invariant]:
    return {invariant for invariant in Invariant if verdict.breaches[invariant]}


def test_sound_facts_hold() -> None:
    """With every order at its end, all six invariants are true and nothing is lost."""
    verdict = judge(sound())
    assert verdict.holds
    assert verdict.invariants == {invariant.value: True for invariant in Invariant}
    assert (verdict.confirmed, verdict.rejected, verdict.dead_lettered) == (2, {"LIMIT_EXCEEDED": 1}, 1)
    assert (verdict.lost, verdict.oversold, verdict.duplicates) == ((), 0, 0)


SALE_BROKEN = {
    "a unit vanished": {"stock": 7},
    "a unit appeared": {"stock": 9},
    "negative stock": {"stock": -2, "frozen": 0, "sold": 12},
    "frozen at rest": {"stock": 7, "frozen": 1},
}


@pytest.mark.parametrize("change", SALE_BROKEN.values(), ids=SALE_BROKEN.keys())
def test_units_add_up(change: dict[str, int]) -> None:
    """stock + frozen + sold = initial, none negative, nothing frozen at rest."""
    verdict = judge(replace(sound(), sales=[replace(SALE, **change)]))
    assert Invariant.UNITS_ADD_UP in false_ones(verdict)
    assert not verdict.holds


def test_a_deleted_order_row_is_lost() -> None:
    """An accepted order whose row was deleted is lost, and its units are sold to nobody."""
    verdict = judge(replace(sound(), orders=[order(2)]))
    assert verdict.lost == (order_id(1),)
    assert {Invariant.SOLD_IS_CONFIRMED, Invariant.EVERY_ORDER_ENDS, Invariant.BRANCHES_AGREE} <= false_ones(verdict)
    assert verdict.confirmed == 1


def test_an_order_deleted_everywhere_is_lost() -> None:
    """Only the client's reply still knows the order: it is lost."""
    facts = sound()
    gone = order_id(3)
    facts = replace(
        facts,
        reservations=[row for row in facts.reservations if row.order_id != gone],
        told={key: value for key, value in facts.told.items() if key != gone},
    )
    verdict = judge(facts)
    assert verdict.lost == (gone,)
    assert false_ones(verdict) == {Invariant.EVERY_ORDER_ENDS}
    assert judge(replace(facts, accepted=frozenset())).holds, "nobody was told of it, so nobody misses it"


def test_a_confirmed_order_without_units_is_found() -> None:
    """An order row that no sold reservation stands behind was confirmed out of nothing."""
    facts = sound()
    verdict = judge(replace(facts, orders=[*facts.orders, order(9)]))
    assert {Invariant.SOLD_IS_CONFIRMED, Invariant.BRANCHES_AGREE} <= false_ones(verdict)


def test_order_and_reservation_must_be_of_the_same_contents() -> None:
    """The same id with another buyer on either side is no confirmed order."""
    verdict = judge(replace(sound(), orders=[replace(order(1), user_id=999), order(2)]))
    assert Invariant.SOLD_IS_CONFIRMED in false_ones(verdict)


def test_sold_must_be_the_sum_of_its_reservations() -> None:
    """A counter that moved without its reservations, its total intact, is found."""
    verdict = judge(replace(sound(), sales=[replace(SALE, stock=7, sold=3)]))
    assert false_ones(verdict) == {Invariant.SOLD_IS_CONFIRMED}


@pytest.mark.parametrize("state", [State.SOLD, State.FROZEN])
def test_the_limit_holds_over_orders(state: State) -> None:
    """Two reservations of one buyer above the limit are found, whichever way they are held."""
    facts = sound()
    second = replace(reservation(5, state), user_id=101)
    verdict = judge(replace(facts, reservations=[*facts.reservations, second]))
    assert Invariant.LIMIT_HOLDS in false_ones(verdict)
    assert verdict.duplicates == 1
    assert not verdict.holds


def test_a_pending_entry_is_no_end() -> None:
    """At rest the ledger holds only parked entries."""
    facts = sound()
    pending = LedgerRow(order_id(2), 7, 1, parked=False)
    verdict = judge(replace(facts, ledger=[*facts.ledger, pending]))
    assert false_ones(verdict) == {Invariant.EVERY_ORDER_ENDS}


def test_an_order_has_one_end() -> None:
    """Confirmed and rejected at once is two ends."""
    facts = sound()
    verdict = judge(replace(facts, orders=[*facts.orders, order(3, gid="g2")]))
    assert any("both" in breach.problem for breach in verdict.breaches[Invariant.EVERY_ORDER_ENDS])


@pytest.mark.parametrize(
    "told",
    [("confirmed", ""), ("rejected", "SOLD_OUT")],
    ids=["told confirmed, is rejected", "told another reason"],
)
def test_a_buyer_is_told_what_the_stores_say(told: tuple[str, str]) -> None:
    """What Redis tells a buyer is what the reservation says, reason included."""
    facts = sound()
    verdict = judge(replace(facts, told={**facts.told, order_id(3): told}))
    assert false_ones(verdict) == {Invariant.EVERY_ORDER_ENDS}


def test_a_replayed_letter_that_ended_is_not_dead() -> None:
    """An order that was confirmed after its letter counts as confirmed, once."""
    facts = sound()
    verdict = judge(replace(facts, letters=facts.letters | {order_id(1)}))
    assert verdict.holds
    assert verdict.dead_lettered == 1


def test_a_parked_entry_without_a_letter_is_not_lost() -> None:
    """Either of the two is enough for an order to be found again."""
    assert judge(replace(sound(), letters=frozenset())).lost == ()
    unparked = replace(sound(), ledger=[], redis=[RedisSale(7, 8, 2)])
    assert judge(unparked).lost == ()


REDIS_BROKEN = {
    "units lost": RedisSale(7, stock=6, admitted=3),
    "units made": RedisSale(7, stock=8, admitted=3),
    "given back twice": RedisSale(7, stock=8, admitted=2),
    "never given back": RedisSale(7, stock=6, admitted=4),
    "negative": RedisSale(7, stock=-1, admitted=11),
    "of no sale": RedisSale(8, stock=7, admitted=3),
}


@pytest.mark.parametrize("view", REDIS_BROKEN.values(), ids=REDIS_BROKEN.keys())
def test_redis_agrees(view: RedisSale) -> None:
    """Redis' stock and what it admitted add up, and the stores hold what it admitted."""
    assert false_ones(judge(replace(sound(), redis=[view]))) == {Invariant.REDIS_AGREES}


def test_the_databases_sold_out_keeps_its_units_in_redis() -> None:
    """An order that the database had no units for gives none back, and that is no breach."""
    facts = sound()
    refused = reservation(5, State.REJECTED, reason="SOLD_OUT", gid="g2")
    facts = replace(facts, reservations=[*facts.reservations, refused], redis=[RedisSale(7, 6, 4)])
    assert judge(facts).holds


DECISIONS_BROKEN = {
    "order cancelled": ({"g1": "confirm"}, {"g1": "cancel"}),
    "order undecided": ({"g1": "confirm"}, {}),
    "product cancelled": ({"g1": "cancel"}, {"g1": "confirm"}),
    "product undecided": ({}, {"g1": "confirm"}),
    "nobody decided": ({}, {}),
}


@pytest.mark.parametrize("decisions", DECISIONS_BROKEN.values(), ids=DECISIONS_BROKEN.keys())
def test_branches_agree(decisions: tuple[dict[str, str], dict[str, str]]) -> None:
    """Both branches of a gid end the same way; what took effect was decided."""
    verdict = judge(replace(sound(), product_decisions=decisions[0], order_decisions=decisions[1]))
    assert false_ones(verdict) == {Invariant.BRANCHES_AGREE}


def test_an_order_confirmed_under_another_gid_is_found() -> None:
    """The order and its reservation took effect under the same gid."""
    decided = {"g1": "confirm", "g9": "confirm"}
    facts = replace(sound(), product_decisions=decided, order_decisions=decided)
    verdict = judge(replace(facts, orders=[order(1, gid="g9"), order(2)]))
    assert false_ones(verdict) == {Invariant.BRANCHES_AGREE}


def test_oversold_counts_units_above_initial() -> None:
    """However the counters look, more confirmed units than were on sale is overselling."""
    small = replace(SALE, initial=1, stock=-1)
    verdict = judge(replace(sound(), sales=[small]))
    assert verdict.oversold == 1


# --- the crowd -----------------------------------------------------------------------------------------------------

PLAN = Plan(url="http://x", products=[1, 2], unknown_product=9, buyers=2_000, seed=5)


def test_the_crowd_is_the_seeds() -> None:
    """The same seed makes the same requests, another one others; every kind of buyer is among them."""
    requests = requests_of(PLAN)
    assert requests == requests_of(PLAN)
    assert requests != requests_of(Plan(url="http://x", products=[1, 2], unknown_product=9, buyers=2_000, seed=6))
    assert {request.kind for request in requests} == set(Kind)
    assert len(requests) > PLAN.buyers


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (Kind.MALFORMED, 202, ""),
        (Kind.MALFORMED, 500, "INTERNAL"),
        (Kind.MALFORMED, 409, "SOLD_OUT"),
        (Kind.UNKNOWN, 202, ""),
        (Kind.UNKNOWN, 409, "SOLD_OUT"),
        (Kind.ORDER, 409, "ALREADY_ORDERED"),
        (Kind.REPEAT, 409, "ALREADY_ORDERED"),
        (Kind.ORDER, 500, "HTTP_500"),
        (Kind.AGAIN, 404, "UNKNOWN_PRODUCT"),
    ],
)
def test_answers_that_make_no_sense_are_noticed(kind: Kind, status: int, code: str) -> None:
    """Nonsense accepted, a good order called nonsense, a server error: the demo does not pass over them."""
    assert not allowed(kind, status, code)


def test_percentiles_are_of_the_nearest_rank() -> None:
    """p50 of 1…100 is 50, p99 is 99; of nothing, 0."""
    found = latency([float(value) for value in range(100, 0, -1)])
    assert (found.p50, found.p95, found.p99, found.count) == (50, 95, 99, 100)
    assert latency([]).p99 == 0
    assert latency([3.0]).p50 == 3
