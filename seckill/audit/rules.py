"""Whether the stores agree: the six invariants, the lost orders and the oversold units, from facts that were read.

Pure. Nothing here knows what a client, a counter or a coordinator has claimed, except the order ids that clients were
given, which is what "lost" is measured against. While a pipeline runs (`Facts.at_rest` is False), what is only on its
way is no breach: frozen units, pending ledger entries, an order that is confirmed before its units are sold.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from seckill.audit.facts import CANCEL, CONFIRM, Facts, OrderRow, ReservationRow, SaleRow, State

DECISION_OF = {State.FROZEN: None, State.SOLD: CONFIRM, State.RELEASED: CANCEL}
"""How the gid of a reservation in this state was ended; of a rejection nothing follows."""


class Invariant(StrEnum):
    """In the order in which ARCHITECTURE.md lists them."""

    UNITS_ADD_UP = "units_add_up"  # stock + frozen + sold = initial, none negative, nothing frozen at rest
    SOLD_IS_CONFIRMED = "sold_is_confirmed"  # sold units = sold reservations = confirmed orders
    LIMIT_HOLDS = "limit_holds"  # no buyer holds more than the sale allows
    EVERY_ORDER_ENDS = "every_order_ends"  # each accepted order has one end, and it is what the buyer was told
    REDIS_AGREES = "redis_agrees"  # Redis' stock + what was admitted and not given back = initial
    BRANCHES_AGREE = "branches_agree"  # both branches of every gid ended the same way, once


class Kind(StrEnum):
    """What a breach is about."""

    SALE = "sale"
    ORDER = "order"
    BUYER = "buyer"
    GID = "gid"


@dataclass(frozen=True, slots=True)
class Breach:
    """One thing that breaks an invariant: an order, a sale, a buyer or a gid, and how.

    `wrong` is what has to be found again in another reading for both to mean the same: a moving counter is left out.
    """

    kind: Kind
    ident: str
    problem: str
    wrong: str = ""

    @property
    def what(self) -> str:
        return f"{self.kind} {self.ident}"

    @property
    def same(self) -> tuple[str, str]:
        return self.what, self.wrong or self.problem


@dataclass(frozen=True, slots=True)
class Verdict:
    breaches: Mapping[Invariant, tuple[Breach, ...]]
    confirmed: int  # orders
    rejected: Mapping[str, int]  # orders by reason
    dead_lettered: int  # orders
    lost: tuple[str, ...]  # accepted order ids that are nowhere
    oversold: int  # units
    duplicates: int  # units that buyers hold above their limit
    pruned_sales: int = 0  # that could not be judged, because their reservations are gone
    pending: int = 0  # orders in the ledger that nobody has set aside
    slow: tuple[tuple[str, int], ...] = ()  # pending for longer than they should be: order id, age in ms; oldest first
    waiting_sales: tuple[int, ...] = ()  # whose admission is closed until Redis is rebuilt: Redis is not judged
    unseen: int = 0  # orders that do not fit together, beyond those that were looked at
    sales: int = 0  # judged

    @property
    def invariants(self) -> dict[str, bool]:
        return {invariant.value: not self.breaches[invariant] for invariant in Invariant}

    @property
    def holds(self) -> bool:
        return not any(self.breaches.values()) and not self.lost and not self.oversold and not self.duplicates


def judge(facts: Facts, *, slow_after_ms: int | None = None) -> Verdict:
    """The verdict on every invariant, with what breaks it."""
    ends = Ends.of(facts)
    checks = {
        Invariant.UNITS_ADD_UP: _units_add_up(facts),
        Invariant.SOLD_IS_CONFIRMED: _sold_is_confirmed(facts, ends),
        Invariant.LIMIT_HOLDS: _limit_holds(facts),
        Invariant.EVERY_ORDER_ENDS: _every_order_ends(facts, ends),
        Invariant.REDIS_AGREES: _redis_agrees(facts),
        Invariant.BRANCHES_AGREE: _branches_agree(facts),
    }
    totals = [facts.totals_of(sale_id) for sale_id in facts.sales_with_orders()]
    unmatched = sum(row.state is State.SOLD and row.order_id not in ends.confirmed for row in facts.reservations)
    pending = sorted((each for each in facts.ledger if not each.parked), key=lambda each: -each.age_ms)
    return Verdict(
        breaches={invariant: tuple(found) for invariant, found in checks.items()},
        confirmed=sum(each.sold_orders for each in totals) - unmatched,
        rejected=dict(sum((Counter(each.rejected) for each in totals), Counter())),
        dead_lettered=len(ends.set_aside),
        lost=tuple(sorted(_lost(facts, ends))),
        oversold=sum(_oversold(sale, facts) for sale in facts.sales),
        duplicates=sum(max(0, units - limit) for _, units, limit in _holdings(facts)),
        pruned_sales=facts.pruned_sales,
        pending=len(pending),
        slow=tuple(
            (each.order_id, each.age_ms)
            for each in pending
            if slow_after_ms is not None and each.age_ms > slow_after_ms
        ),
        waiting_sales=tuple(view.sale_id for view in facts.redis if not view.vouched),
        unseen=facts.unseen,
        sales=len(facts.sales),
    )


@dataclass(frozen=True, slots=True)
class Ends:
    """Every order's end, as the stores have it. An order with two ends stands in two of these."""

    confirmed: frozenset[str]  # the reservation is sold and the order row stands
    rejected: Mapping[str, str]  # order id → reason
    set_aside: frozenset[str]  # parked or dead-lettered, and neither confirmed nor rejected
    under_way: frozenset[str]  # in the ledger, or holding units

    @classmethod
    def of(cls, facts: Facts) -> Ends:
        rows = {order.order_id for order in facts.orders if order.confirmed}
        sold = {row.order_id for row in facts.reservations if row.state is State.SOLD}
        rejected = {row.order_id: row.reason for row in facts.reservations if row.state is State.REJECTED}
        parked = {entry.order_id for entry in facts.ledger if entry.parked}
        ended = (rows & sold) | rejected.keys()
        pending = {entry.order_id for entry in facts.ledger if not entry.parked}
        frozen = {row.order_id for row in facts.reservations if row.state is State.FROZEN}
        set_aside = frozenset((parked | facts.letters) - ended)
        return cls(frozenset(rows & sold), rejected, set_aside, frozenset(pending | frozen))

    @property
    def known(self) -> frozenset[str]:
        return self.confirmed | self.rejected.keys() | self.set_aside


def _lost(facts: Facts, ends: Ends) -> frozenset[str]:
    sold = {row.order_id for row in facts.reservations if row.state is State.SOLD}
    return facts.accepted - ends.known - (frozenset() if facts.at_rest else ends.under_way - sold)


def _units_add_up(facts: Facts) -> Iterator[Breach]:
    for sale in facts.sales:
        who = str(sale.sale_id)
        if sale.stock + sale.frozen + sale.sold != sale.initial:
            total = f"{sale.stock} + {sale.frozen} + {sale.sold}"
            yield Breach(Kind.SALE, who, f"stock + frozen + sold = {total}, initial is {sale.initial}", "sum")
        if min(sale.stock, sale.frozen, sale.sold) < 0:
            yield Breach(Kind.SALE, who, "a counter is negative")
        if facts.at_rest and sale.frozen:
            yield Breach(Kind.SALE, who, f"{sale.frozen} units are frozen at rest")
        held = facts.totals_of(sale.sale_id).frozen
        if sale.frozen != held:
            yield Breach(Kind.SALE, who, f"frozen is {sale.frozen}, frozen reservations hold {held} units", "frozen")


def _sold_is_confirmed(facts: Facts, ends: Ends) -> Iterator[Breach]:
    for sale in facts.sales:
        sums = facts.totals_of(sale.sale_id)
        # Counter and reservations are of one database and one moment; the orders of another.
        if sale.sold != sums.sold or (facts.at_rest and sums.sold != sums.ordered):
            units = f"sold {sale.sold}, sold reservations {sums.sold}, confirmed orders {sums.ordered} units"
            yield Breach(Kind.SALE, str(sale.sale_id), units, "sold")
    sold = [row for row in facts.reservations if row.state is State.SOLD]
    confirmed = {row.order_id: row for row in facts.orders if row.confirmed}
    for row in sold:
        order = confirmed.get(row.order_id)
        if order is None:
            yield Breach(Kind.ORDER, row.order_id, "its units are sold, but there is no confirmed order")
        elif (order.sale_id, order.user_id, order.quantity) != (row.sale_id, row.user_id, row.quantity):
            yield Breach(Kind.ORDER, row.order_id, "the order and its reservation differ in sale, buyer or quantity")
    for order_id in sorted(confirmed.keys() - ends.confirmed - _half_confirmed(facts)):
        yield Breach(Kind.ORDER, order_id, "is confirmed, but no units are sold for it")


def _half_confirmed(facts: Facts) -> set[str]:
    """Orders that are confirmed while the same gid still holds their units frozen: Confirm is between its branches."""
    if facts.at_rest:
        return set()
    frozen = {(row.order_id, row.gid) for row in facts.reservations if row.state is State.FROZEN}
    return {row.order_id for row in facts.orders if row.confirmed and (row.order_id, row.gid) in frozen}


def _limit_holds(facts: Facts) -> Iterator[Breach]:
    for who, units, limit in _holdings(facts):
        if units > limit:
            yield Breach(Kind.BUYER, who, f"holds {units} units, the limit is {limit}", "limit")


def _holdings(facts: Facts) -> Iterator[tuple[str, int, int]]:
    """Each buyer of each sale: units held by reservations or by orders, whichever is more, and the limit."""
    reserved = _units_by_buyer(row for row in facts.reservations if row.state in (State.FROZEN, State.SOLD))
    ordered = _units_by_buyer(row for row in facts.orders if row.confirmed)
    limits = {sale.sale_id: sale.per_user_limit for sale in facts.sales}
    for sale_id, user_id in sorted(reserved.keys() | ordered.keys()):
        units = max(reserved[sale_id, user_id], ordered[sale_id, user_id])
        if sale_id in limits:
            yield f"{user_id} of sale {sale_id}", units, limits[sale_id]


def _units_by_buyer(rows: Iterable[ReservationRow | OrderRow]) -> defaultdict[tuple[int, int], int]:
    units: defaultdict[tuple[int, int], int] = defaultdict(int)
    for row in rows:
        units[row.sale_id, row.user_id] += row.quantity
    return units


def _every_order_ends(facts: Facts, ends: Ends) -> Iterator[Breach]:
    lost = _lost(facts, ends)
    for order_id in sorted(lost):
        problem = "was accepted and is nowhere: neither confirmed, rejected nor set aside"
        yield Breach(Kind.ORDER, order_id, problem)
    for row in facts.reservations:
        if row.state is State.RELEASED and row.order_id not in ends.set_aside | ends.under_way | lost:
            yield Breach(Kind.ORDER, row.order_id, "its units were released, and neither ledger nor letters hold it")
    confirmed_rows = {row.order_id for row in facts.orders if row.confirmed}
    for order_id in sorted(confirmed_rows & ends.rejected.keys()):
        yield Breach(Kind.ORDER, order_id, "is both confirmed and rejected")
    for entry in facts.ledger:
        if facts.at_rest and not entry.parked:
            yield Breach(Kind.ORDER, entry.order_id, "is still pending in the ledger")
    for order_id, (status, reason) in sorted(facts.told.items()):
        if status == "confirmed" and order_id not in ends.confirmed:
            yield Breach(Kind.ORDER, order_id, "the buyer is told confirmed, the stores say otherwise")
        if status == "rejected" and ends.rejected.get(order_id) != reason:
            standing = ends.rejected.get(order_id, "not rejected")
            yield Breach(Kind.ORDER, order_id, f"the buyer is told rejected ({reason}), the stores say {standing}")


def _redis_agrees(facts: Facts) -> Iterator[Breach]:
    sales = {sale.sale_id: sale for sale in facts.sales}
    for view in facts.redis:
        who = str(view.sale_id)
        sale = sales.get(view.sale_id)
        if sale is None:
            yield Breach(Kind.SALE, who, "Redis has it, the product database does not")
            continue
        if not view.vouched:
            continue
        initial = sale.initial if view.initial is None else view.initial
        if view.stock < 0 or view.stock + view.admitted != initial:
            problem = f"Redis: stock {view.stock} + admitted {view.admitted}, initial is {initial}"
            yield Breach(Kind.SALE, who, problem, "stock")
        if initial != sale.initial:
            yield Breach(Kind.SALE, who, f"Redis: initial {initial}, the database has {sale.initial}")
        sums = facts.totals_of(view.sale_id)
        if not sums.held <= view.admitted <= sums.held + sums.unsure:
            problem = f"Redis: {view.admitted} units admitted and not given back, the stores hold {sums.held}"
            yield Breach(Kind.SALE, who, problem, "too few" if view.admitted < sums.held else "too many")


def _branches_agree(facts: Facts) -> Iterator[Breach]:
    product, order = facts.product_decisions, facts.order_decisions
    # A group that product refused as a whole is cancelled before the order branch exists.
    ended_well: set[tuple[str | None, str | None]] = {(CONFIRM, CONFIRM), (CANCEL, CANCEL), (CANCEL, None)}
    if not facts.at_rest:
        ended_well |= {(None, CONFIRM), (None, CANCEL)}  # the order's branch is called first
    for gid in sorted(product.keys() | order.keys()):
        ended = product.get(gid), order.get(gid)
        if ended not in ended_well:
            yield Breach(Kind.GID, gid, f"product ended with {ended[0]}, order with {ended[1]}")
    sold = {(row.order_id, row.gid) for row in facts.reservations if row.state is State.SOLD}
    half = _half_confirmed(facts)
    confirmed = {(row.order_id, row.gid) for row in facts.orders if row.confirmed and row.order_id not in half}
    for order_id, gid in sorted(sold ^ confirmed):
        side = "product" if (order_id, gid) in sold else "order"
        yield Breach(Kind.GID, gid, f"only {side}'s branch took effect for order {order_id}")
    for _, gid in sorted(sold | confirmed):
        if product.get(gid) != CONFIRM:
            yield Breach(Kind.GID, gid, f"took effect, but product's decision is {product.get(gid)}")
    for row in facts.reservations:
        unfit = row.state in (State.FROZEN, State.RELEASED) and product.get(row.gid) != DECISION_OF[row.state]
        if row.gid and unfit:
            decided = product.get(row.gid)
            yield Breach(Kind.GID, row.gid, f"its order {row.order_id} is {row.state}, product's decision is {decided}")


def _oversold(sale: SaleRow, facts: Facts) -> int:
    """Units confirmed above what was ever on sale."""
    sums = facts.totals_of(sale.sale_id)
    return max(0, max(sums.ordered, sums.sold) - sale.initial)
