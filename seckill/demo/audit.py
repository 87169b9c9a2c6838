"""Whether the stores agree: the six invariants, the lost orders and the oversold units, from facts that were read.

Pure. The facts come from `stores.py`; nothing here knows what a client, a counter or a coordinator has claimed, except
the order ids that clients were given, which is what "lost" is measured against. Holds for a system at rest.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

CONFIRM = "confirm"
CANCEL = "cancel"


class State(StrEnum):
    """Of a reservation."""

    FROZEN = "frozen"
    SOLD = "sold"
    RELEASED = "released"
    REJECTED = "rejected"


class Invariant(StrEnum):
    """In the order in which ARCHITECTURE.md lists them."""

    UNITS_ADD_UP = "units_add_up"  # stock + frozen + sold = initial, none negative, nothing frozen
    SOLD_IS_CONFIRMED = "sold_is_confirmed"  # sold units = sold reservations = confirmed orders
    LIMIT_HOLDS = "limit_holds"  # no buyer holds more than the sale allows
    EVERY_ORDER_ENDS = "every_order_ends"  # each accepted order has one end, and it is what the buyer was told
    REDIS_AGREES = "redis_agrees"  # Redis' stock + what was admitted and not given back = initial
    BRANCHES_AGREE = "branches_agree"  # both branches of every gid ended the same way, once


@dataclass(frozen=True, slots=True)
class SaleRow:
    sale_id: int
    product_id: int
    initial: int
    stock: int
    frozen: int
    sold: int
    per_user_limit: int


@dataclass(frozen=True, slots=True)
class ReservationRow:
    order_id: str
    sale_id: int
    user_id: int
    quantity: int
    state: State
    reason: str
    gid: str


@dataclass(frozen=True, slots=True)
class OrderRow:
    order_id: str
    sale_id: int
    user_id: int
    quantity: int
    confirmed: bool
    gid: str


@dataclass(frozen=True, slots=True)
class LedgerRow:
    order_id: str
    sale_id: int
    quantity: int
    parked: bool


@dataclass(frozen=True, slots=True)
class RedisSale:
    """Redis' copy of a sale, in units."""

    sale_id: int
    stock: int
    admitted: int  # and not given back


@dataclass(frozen=True, slots=True)
class Facts:
    """What the stores say. `told` is the end that Redis tells the buyer: (`confirmed` or `rejected`, reason)."""

    sales: Sequence[SaleRow]
    reservations: Sequence[ReservationRow]
    orders: Sequence[OrderRow]
    product_decisions: Mapping[str, str] = field(default_factory=dict)  # gid → confirm | cancel
    order_decisions: Mapping[str, str] = field(default_factory=dict)
    redis: Sequence[RedisSale] = ()
    ledger: Sequence[LedgerRow] = ()
    told: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    letters: frozenset[str] = frozenset()  # order ids in the dead-letter topic
    accepted: frozenset[str] = frozenset()  # order ids that clients were given
    pruned_sales: int = 0  # left out of everything above: their reservations are gone


@dataclass(frozen=True, slots=True)
class Breach:
    """One thing that breaks an invariant: an order, a sale, a buyer or a gid, and how."""

    what: str
    problem: str


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

    @property
    def invariants(self) -> dict[str, bool]:
        return {invariant.value: not self.breaches[invariant] for invariant in Invariant}

    @property
    def holds(self) -> bool:
        return not any(self.breaches.values()) and not self.lost and not self.oversold and not self.duplicates


def judge(facts: Facts) -> Verdict:
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
    return Verdict(
        breaches={invariant: tuple(found) for invariant, found in checks.items()},
        confirmed=len(ends.confirmed),
        rejected=Counter(ends.rejected.values()),
        dead_lettered=len(ends.set_aside),
        lost=tuple(sorted(facts.accepted - ends.known)),
        oversold=sum(_oversold(sale, facts) for sale in facts.sales),
        duplicates=sum(max(0, units - limit) for _, units, limit in _holdings(facts)),
        pruned_sales=facts.pruned_sales,
    )


@dataclass(frozen=True, slots=True)
class Ends:
    """Every order's end, as the stores have it. An order with two ends stands in two of these."""

    confirmed: frozenset[str]  # the reservation is sold and the order row stands
    rejected: Mapping[str, str]  # order id → reason
    set_aside: frozenset[str]  # parked or dead-lettered, and neither confirmed nor rejected

    @classmethod
    def of(cls, facts: Facts) -> Ends:
        rows = {order.order_id for order in facts.orders if order.confirmed}
        sold = {row.order_id for row in facts.reservations if row.state is State.SOLD}
        rejected = {row.order_id: row.reason for row in facts.reservations if row.state is State.REJECTED}
        parked = {entry.order_id for entry in facts.ledger if entry.parked}
        ended = (rows & sold) | rejected.keys()
        return cls(frozenset(rows & sold), rejected, frozenset((parked | facts.letters) - ended))

    @property
    def known(self) -> frozenset[str]:
        return self.confirmed | self.rejected.keys() | self.set_aside


def _units_add_up(facts: Facts) -> Iterator[Breach]:
    for sale in facts.sales:
        if sale.stock + sale.frozen + sale.sold != sale.initial:
            total = f"{sale.stock} + {sale.frozen} + {sale.sold}"
            yield Breach(f"sale {sale.sale_id}", f"stock + frozen + sold = {total}, initial is {sale.initial}")
        if min(sale.stock, sale.frozen, sale.sold) < 0:
            yield Breach(f"sale {sale.sale_id}", "a counter is negative")
        if sale.frozen:
            yield Breach(f"sale {sale.sale_id}", f"{sale.frozen} units are frozen at rest")


def _sold_is_confirmed(facts: Facts, ends: Ends) -> Iterator[Breach]:
    sold = [row for row in facts.reservations if row.state is State.SOLD]
    confirmed = {row.order_id: row for row in facts.orders if row.confirmed}
    for sale in facts.sales:
        reserved = sum(row.quantity for row in sold if row.sale_id == sale.sale_id)
        ordered = sum(row.quantity for row in confirmed.values() if row.sale_id == sale.sale_id)
        if not sale.sold == reserved == ordered:
            units = f"sold {sale.sold}, sold reservations {reserved}, confirmed orders {ordered} units"
            yield Breach(f"sale {sale.sale_id}", units)
    for row in sold:
        order = confirmed.get(row.order_id)
        if order is None:
            yield Breach(f"order {row.order_id}", "its units are sold, but there is no confirmed order")
        elif (order.sale_id, order.user_id, order.quantity) != (row.sale_id, row.user_id, row.quantity):
            yield Breach(f"order {row.order_id}", "the order and its reservation differ in sale, buyer or quantity")
    for order_id in sorted(confirmed.keys() - ends.confirmed):
        yield Breach(f"order {order_id}", "is confirmed, but no units are sold for it")


def _limit_holds(facts: Facts) -> Iterator[Breach]:
    for who, units, limit in _holdings(facts):
        if units > limit:
            yield Breach(who, f"holds {units} units, the limit is {limit}")


def _holdings(facts: Facts) -> Iterator[tuple[str, int, int]]:
    """Each buyer of each sale: units held by reservations or by orders, whichever is more, and the limit."""
    reserved = _units_by_buyer(row for row in facts.reservations if row.state in (State.FROZEN, State.SOLD))
    ordered = _units_by_buyer(row for row in facts.orders if row.confirmed)
    limits = {sale.sale_id: sale.per_user_limit for sale in facts.sales}
    for sale_id, user_id in sorted(reserved.keys() | ordered.keys()):
        units = max(reserved[sale_id, user_id], ordered[sale_id, user_id])
        if sale_id in limits:
            yield f"buyer {user_id} of sale {sale_id}", units, limits[sale_id]


def _units_by_buyer(rows: Iterable[ReservationRow | OrderRow]) -> defaultdict[tuple[int, int], int]:
    units: defaultdict[tuple[int, int], int] = defaultdict(int)
    for row in rows:
        units[row.sale_id, row.user_id] += row.quantity
    return units


def _every_order_ends(facts: Facts, ends: Ends) -> Iterator[Breach]:
    for order_id in sorted(facts.accepted - ends.known):
        yield Breach(f"order {order_id}", "was accepted and is nowhere: neither confirmed, rejected nor set aside")
    confirmed_rows = {row.order_id for row in facts.orders if row.confirmed}
    for order_id in sorted(confirmed_rows & ends.rejected.keys()):
        yield Breach(f"order {order_id}", "is both confirmed and rejected")
    for entry in facts.ledger:
        if not entry.parked:
            yield Breach(f"order {entry.order_id}", "is still pending in the ledger")
    for order_id, (status, reason) in sorted(facts.told.items()):
        if status == "confirmed" and order_id not in ends.confirmed:
            yield Breach(f"order {order_id}", "the buyer is told confirmed, the stores say otherwise")
        if status == "rejected" and ends.rejected.get(order_id) != reason:
            standing = ends.rejected.get(order_id, "not rejected")
            yield Breach(f"order {order_id}", f"the buyer is told rejected ({reason}), the stores say {standing}")


def _redis_agrees(facts: Facts) -> Iterator[Breach]:
    sales = {sale.sale_id: sale for sale in facts.sales}
    for view in facts.redis:
        who = f"sale {view.sale_id}"
        sale = sales.get(view.sale_id)
        if sale is None:
            yield Breach(who, "Redis has it, the product database does not")
            continue
        if view.stock < 0 or view.stock + view.admitted != sale.initial:
            yield Breach(who, f"Redis: stock {view.stock} + admitted {view.admitted}, initial is {sale.initial}")
        held, refused = _held_units(facts, view.sale_id)
        if not held <= view.admitted <= held + refused:
            yield Breach(who, f"Redis: {view.admitted} units admitted and not given back, the stores hold {held}")


def _held_units(facts: Facts, sale_id: int) -> tuple[int, int]:
    """Units that admission gave out for good, and those that it gave out only if the order had been admitted.

    The database's own SOLD_OUT gives no units back to Redis; the same reason from a late admission never took any.
    """
    ended = {row.order_id for row in facts.reservations if row.state in (State.SOLD, State.REJECTED)}
    of_sale = [row for row in facts.reservations if row.sale_id == sale_id]
    sold = sum(row.quantity for row in of_sale if row.state is State.SOLD)
    entries = [entry for entry in facts.ledger if entry.sale_id == sale_id and entry.order_id not in ended]
    refused = sum(row.quantity for row in of_sale if row.state is State.REJECTED and row.reason == "SOLD_OUT")
    return sold + sum(entry.quantity for entry in entries), refused


def _branches_agree(facts: Facts) -> Iterator[Breach]:
    product, order = facts.product_decisions, facts.order_decisions
    for gid in sorted(product.keys() | order.keys()):
        ended = product.get(gid), order.get(gid)
        # A group that product refused as a whole is cancelled before the order branch exists.
        if ended not in {(CONFIRM, CONFIRM), (CANCEL, CANCEL), (CANCEL, None)}:
            yield Breach(f"gid {gid}", f"product ended with {ended[0]}, order with {ended[1]}")
    sold = {(row.order_id, row.gid) for row in facts.reservations if row.state is State.SOLD}
    confirmed = {(row.order_id, row.gid) for row in facts.orders if row.confirmed}
    for order_id, gid in sorted(sold ^ confirmed):
        side = "product" if (order_id, gid) in sold else "order"
        yield Breach(f"gid {gid}", f"only {side}'s branch took effect for order {order_id}")
    for _, gid in sorted(sold | confirmed):
        if product.get(gid) != CONFIRM:
            yield Breach(f"gid {gid}", f"took effect, but product's decision is {product.get(gid)}")


def _oversold(sale: SaleRow, facts: Facts) -> int:
    """Units confirmed above what was ever on sale."""
    ordered = sum(row.quantity for row in facts.orders if row.confirmed and row.sale_id == sale.sale_id)
    sold = sum(row.quantity for row in facts.reservations if row.state is State.SOLD and row.sale_id == sale.sale_id)
    return max(0, max(ordered, sold) - sale.initial)
