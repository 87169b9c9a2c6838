"""What the stores say of a sale that Redis lost, and what Redis is to hold by that. Pure; `rebuild.py` reads them.

An order waits when any store knows it and its reservation has not ended. Of an order that several stores know, the
contents come from the ledger entry that Redis still has, else from a record of the topic, else from a letter, else from
the reservation. Whether it is set aside comes from the reservation first (what a transaction holds is not), then from
the later of record and letter, then from the entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from seckill.admission.ledger import LedgerEntry
from seckill.admission.rebuild import SaleContents
from seckill.checkout.reservations import Reservation, ReservationState
from seckill.domain.order import Order, OrderId, Sale, order_id_from_key
from seckill.domain.outcomes import Confirmed, Rejected

BUYER_ORDERS_MAX = 8
"""Order ids remembered of a buyer, as admission does."""

NUMBERS_SKIPPED = 1_000_000
"""Admission numbers left out after a loss: orders that were admitted in the lost time, and come later, stay below."""

ENDED = frozenset({ReservationState.SOLD, ReservationState.REJECTED})


@dataclass(slots=True)
class Trace:
    """What the topics tell of an order. Times are those of its newest record and of its newest letter; None: none.

    `uncommitted`: its group has not passed one of its records. `passed`: it has passed one. `put_off`: one waits in a
    retry topic.
    """

    order: Order
    published_ms: int | None = None
    buried_ms: int | None = None
    uncommitted: bool = False
    passed: bool = False
    put_off: bool = False

    @property
    def is_aside(self) -> bool:
        """The newest word of it is a letter."""
        return self.buried_ms is not None and (self.published_ms is None or self.buried_ms >= self.published_ms)

    @property
    def was_admitted(self) -> bool:
        """Of an order past the front: the worker has let go of it, and neither a letter nor a retry topic is why. So it
        was admitted. One that was admitted before it was put off has its number in the retry record.
        """
        let_go = self.passed and not self.put_off and self.buried_ms is None
        return self.order.admission_number is not None or let_go


@dataclass(slots=True)
class Traces:
    """The topics' orders of one sale. `current`: it is its product's newest, which orders without a sale belong to."""

    sale: Sale
    current: bool
    orders: dict[OrderId, Trace] = field(default_factory=dict)

    def is_about(self, order: Order) -> bool:
        of_sale = order.sale_id == self.sale.sale_id or (order.sale_id == 0 and self.current)
        return of_sale and order.product_id == self.sale.product_id

    def published(self, order: Order, at_ms: int, *, passed: bool, tier: bool = False) -> None:
        """A record of the main topic, or of a retry topic (`tier`)."""
        if (trace := self._trace(order)) is not None:
            trace.published_ms = max(at_ms, trace.published_ms or 0)
            trace.uncommitted |= not passed
            trace.passed |= passed
            trace.put_off |= tier and not passed

    def buried(self, order: Order, at_ms: int) -> None:
        """A letter."""
        if (trace := self._trace(order)) is not None:
            trace.buried_ms = max(at_ms, trace.buried_ms or 0)

    def forget(self, others: Iterable[OrderId]) -> None:
        """What another sale's ledger holds: it named no sale, and was admitted there."""
        for order_id in others:
            self.orders.pop(order_id, None)

    def _trace(self, order: Order) -> Trace | None:
        """The order's trace; None for other contents under an id that came before: an impostor.

        One that admission has numbered goes before one that came past the front.
        """
        order = replace(order, sale_id=self.sale.sale_id)
        trace = self.orders.setdefault(order.order_id, Trace(order))
        if (trace.order.user_id, trace.order.quantity) == (order.user_id, order.quantity):
            if trace.order.admission_number is None:
                trace.order = order
            return trace
        if trace.order.admission_number is None and order.admission_number is not None:
            self.orders[order.order_id] = Trace(order)
            return self.orders[order.order_id]
        return None


@dataclass(slots=True)
class Rows:
    """A sale's reservations, folded as they are read: sold ones by buyer, others only if they have not ended.

    `ended`: keys of those that `asked` names and that have ended. About 300 bytes of memory for each buyer.
    """

    product_id: int
    asked: frozenset[bytes] = frozenset()
    sold_units: int = 0
    buyers: dict[int, tuple[int, list[OrderId]]] = field(default_factory=dict)
    open: dict[bytes, Reservation] = field(default_factory=dict)
    ended: set[bytes] = field(default_factory=set)

    def add(self, rows: Iterable[Reservation]) -> list[Reservation]:
        """Returns those that have ended and that the buyers do not tell of: their results must say so, or a repeat by
        the buyer would be taken for a new order.
        """
        untold = []
        for row in rows:
            if row.state not in ENDED:
                self.open[row.key] = row
                continue
            if row.key in self.asked:
                self.ended.add(row.key)
            remembered = False
            if row.state is ReservationState.SOLD:
                self.sold_units += row.quantity
                order_id = order_id_from_key(self.product_id, row.key)
                remembered = _hold(self.buyers, row.user_id, row.quantity, order_id)
            if not remembered:
                untold.append(row)
        return untold


def end_of(row: Reservation) -> tuple[Order, Confirmed | Rejected]:
    """How the order of a row ended; the row is one of ENDED. SQL tells neither time nor number of its admission."""
    order_id = order_id_from_key(row.product_id, row.key)
    order = Order(order_id, row.sale_id, row.user_id, row.product_id, row.quantity, 0, 0)
    if row.state is ReservationState.SOLD:
        return order, Confirmed()
    return order, Rejected(row.reason, by_admission=not row.gid)


@dataclass(frozen=True, slots=True)
class Survivors:
    """What is left of a sale: in Redis (entries, changes of units), in the topics, and in SQL.

    `known_changes`: ids of the changes that the sale's row has taken in.
    """

    entries: Sequence[LedgerEntry]
    traces: Mapping[OrderId, Trace]
    rows: Rows
    changes: Mapping[str, int]
    known_changes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild installed. `lost_by_redis`: waiting orders that Redis did not hold any more. `surplus`: units
    admitted above what the sale has; the database will refuse them.
    """

    sale_id: int
    product_id: int
    stock: int
    sold: int
    pending: int
    parked: int
    lost_by_redis: int
    surplus: int


def contents_of(
    sale: Sale, found: Survivors, *, number: int, now_ms: int, look_after_ms: int
) -> tuple[SaleContents, Rebuilt]:
    """What Redis is to hold. `number`: the last admission number that it knew.

    Units are held by what is sold and by every order that waits; the rest is stock. An entry whose record the group has
    yet to pass counts as published now; the others are due at once, so that reconcile looks at them, and publishes
    again what no transaction holds.
    """
    known = {entry.order.order_id: entry for entry in found.entries}
    waiting = _waiting(sale, found)
    entries = [_entry(order, known, found, now_ms=now_ms, look_after_ms=look_after_ms) for order in waiting]
    held = found.rows.sold_units + sum(order.quantity for order in waiting)
    stock = max(0, sale.initial - held)
    buyers = {user_id: (units, list(ids)) for user_id, (units, ids) in found.rows.buyers.items()}
    for order in waiting:
        _hold(buyers, order.user_id, order.quantity, order.order_id)
    numbers = [order.admission_number or 0 for order in waiting]
    contents = SaleContents(
        initial=sale.initial,
        stock=stock,
        number=max([number, *numbers]) + NUMBERS_SKIPPED,
        entries=entries,
        buyers=buyers,
        changes=_changes(found),
    )
    parked = sum(entry.state == "parked" for entry in entries)
    return contents, Rebuilt(
        sale_id=sale.sale_id,
        product_id=sale.product_id,
        stock=stock,
        sold=found.rows.sold_units,
        pending=len(entries) - parked,
        parked=parked,
        lost_by_redis=sum(order.order_id not in known for order in waiting),
        surplus=max(0, held - sale.initial),
    )


def _waiting(sale: Sale, found: Survivors) -> list[Order]:
    """Every order that has not ended, once. SQL does not tell when an order was admitted, nor under which number."""
    orders: dict[OrderId, Order] = {entry.order.order_id: entry.order for entry in found.entries}
    for order_id, trace in found.traces.items():
        row = found.rows.open.get(trace.order.key)
        if trace.was_admitted and (row is None or row.is_of(trace.order)):
            orders.setdefault(order_id, replace(trace.order, admission_number=trace.order.admission_number or 0))
    for key, row in found.rows.open.items():
        order_id = order_id_from_key(sale.product_id, key)
        traced = found.traces.get(order_id)
        at_ms = traced.order.admitted_at_ms if traced is not None else sale.starts_at_ms
        order = Order(order_id, sale.sale_id, row.user_id, sale.product_id, row.quantity, at_ms, 0)
        orders.setdefault(order_id, order)
    return [order for order in orders.values() if order.key not in found.rows.ended]


def _entry(
    order: Order, known: Mapping[OrderId, LedgerEntry], found: Survivors, *, now_ms: int, look_after_ms: int
) -> LedgerEntry:
    entry, trace = known.get(order.order_id), found.traces.get(order.order_id)
    if _is_aside(order, entry, trace, found.rows):
        buried_ms = trace.buried_ms if trace is not None else None
        at_ms = entry.due_ms if entry is not None and entry.state == "parked" else buried_ms or now_ms
        return LedgerEntry(order, entry.published_at_ms if entry is not None else 0, at_ms, "parked")
    if trace is not None and trace.uncommitted:
        return LedgerEntry(order, now_ms, now_ms + look_after_ms, "pending")
    return LedgerEntry(order, entry.published_at_ms if entry is not None else 0, now_ms, "pending")


def _is_aside(order: Order, entry: LedgerEntry | None, trace: Trace | None, rows: Rows) -> bool:
    row = rows.open.get(order.key)
    if row is not None and row.state is ReservationState.FROZEN:
        return False
    if trace is not None and trace.buried_ms is not None:
        return trace.is_aside
    return entry is not None and entry.state == "parked"


def _changes(found: Survivors) -> dict[str, int]:
    """What the row has taken in must not move units here again; what it has not, may begin anew."""
    kept = {name: units for name, units in found.changes.items() if name.partition(":")[2] in found.known_changes}
    return {f"add:{change_id}": 0 for change_id in found.known_changes} | kept


def _hold(buyers: dict[int, tuple[int, list[OrderId]]], user_id: int, units: int, order_id: OrderId) -> bool:
    """Whether the order's id is remembered."""
    before, ids = buyers.get(user_id, (0, []))
    if remembered := len(ids) < BUYER_ORDERS_MAX:
        ids.append(order_id)
    buyers[user_id] = (before + units, ids)
    return remembered
