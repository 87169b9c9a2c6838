"""What Redis has to hold of one product after any history of admission, settling and reconcile: a model.

It knows rules, not keys: every method says what one call of the real thing must do, and is called beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from seckill.admission import LedgerEntry
from seckill.domain.order import Order, OrderId, Sale
from seckill.domain.outcomes import Confirmed, OrderResult, OrderStatus, Rejected
from seckill.domain.reasons import Refusal, Rejection

NO_SALE = 0
"""Where the end of an order is kept that was refused before it had a sale."""


@dataclass(slots=True)
class Entry:
    """An order that was accepted and has not ended."""

    order: Order
    published_at_ms: int
    parked: bool = False
    due: bool = False

    @property
    def state(self) -> str:
        return "parked" if self.parked else "pending"


@dataclass(slots=True)
class SaleModel:
    """`taken`: the orders that use up units of their buyer's allowance. `sale`: as it was copied last."""

    sale: Sale
    stock: int
    initial: int
    number: int = 0
    entries: dict[OrderId, Entry] = field(default_factory=dict)
    taken: dict[OrderId, Order] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)

    def used(self, user_id: int) -> int:
        return sum(order.quantity for order in self.taken.values() if order.user_id == user_id)

    @property
    def buyers(self) -> dict[int, int]:
        return {order.user_id: self.used(order.user_id) for order in self.taken.values()}


class LedgerModel:
    """`held`: sales whose units Redis holds; `listed`: those of which it holds anything; `told`: ends that somebody
    could have read, which never change, though Redis forgets them.
    """

    def __init__(self, sale: Sale, *, entries_max: int) -> None:
        self.entries_max = entries_max
        self.held = {sale.sale_id: SaleModel(sale, sale.stock, sale.initial)}
        self.listed = {sale.sale_id}
        self.current = sale.sale_id
        self.forgettable: set[int] = set()
        self.results: dict[tuple[int, OrderId], OrderResult] = {}
        self.told: dict[OrderId, OrderResult] = {}
        self.admitted: dict[OrderId, Order] = {}
        self.by_key: dict[tuple[int, int, str], OrderId] = {}  # sale, buyer, idempotency key

    @property
    def now(self) -> SaleModel:
        """The sale that takes orders, if any does."""
        return self.held[self.current]

    def entries(self) -> Iterable[Entry]:
        return (entry for sale in self.held.values() for entry in sale.entries.values())

    def entry(self, order: Order) -> Entry | None:
        sale = self.held.get(order.sale_id)
        return sale.entries.get(order.order_id) if sale else None

    def result(self, order_id: OrderId) -> OrderResult | None:
        """What a buyer reads: how the order ended goes before what a ledger holds of it."""
        for (_, ended), result in self.results.items():
            if ended == order_id:
                return result
        for entry in self.entries():
            if entry.order.order_id == order_id:
                return OrderResult(order_id, OrderStatus.DELAYED if entry.parked else OrderStatus.PROCESSING)
        return None

    # --- admission ---------------------------------------------------------------------------------------------------

    def judge(self, user_id: int, quantity: int, order_id: OrderId | None) -> str:
        """The answer to an order of the current sale: `admitted`, `repeated`, a status, or the code of a refusal."""
        if order_id is not None and (known := self._known(self.current, user_id, quantity, order_id)):
            return known
        return self._closed() or self._refused(user_id, quantity) or "admitted"

    def judge_late(self, order: Order) -> str:
        """The answer to one that came past the front, or that Redis seems to have forgotten."""
        if order.sale_id != NO_SALE:
            return self._judge_in(order.sale_id, order)
        for sale_id in [self.current, *sorted(self.listed - {self.current, NO_SALE})]:
            place = (sale_id, order.order_id)
            sale = self.held.get(sale_id)
            here = place in self.results or (sale is not None and order.order_id in sale.entries)
            known = self._known(sale_id, order.user_id, order.quantity, order.order_id)
            if known and (here or sale_id == self.current):
                return known
        return self._judge_in(self.current, order)

    def _judge_in(self, sale_id: int, order: Order) -> str:
        if known := self._known(sale_id, order.user_id, order.quantity, order.order_id):
            return known
        if sale_id not in self.held:
            return Refusal.UNKNOWN_PRODUCT
        if sale_id != self.current:
            return Refusal.ENDED
        return self._closed() or self._refused(order.user_id, order.quantity) or "admitted"

    def admit(self, order: Order) -> None:
        sale = self.held[order.sale_id]
        assert order.order_id not in self.admitted, "an order id was admitted twice"
        assert order.admission_number is not None
        assert order.admission_number > sale.number, "admission numbers do not increase"
        sale.number = order.admission_number
        sale.stock -= order.quantity
        sale.taken[order.order_id] = order
        sale.entries[order.order_id] = Entry(order, order.admitted_at_ms)
        self.admitted[order.order_id] = order

    def _known(self, sale_id: int, user_id: int, quantity: int, order_id: OrderId) -> str | None:
        sale, place = self.held.get(sale_id), (sale_id, order_id)
        if sale is not None and (entry := sale.entries.get(order_id)):
            if (entry.order.user_id, entry.order.quantity) != (user_id, quantity):
                return Refusal.KEY_REUSED
            return "delayed" if entry.parked else "repeated"
        admitted = self.admitted.get(order_id)
        if place in self.results:
            if admitted is not None and admitted.quantity != quantity:
                return Refusal.KEY_REUSED
            return self.results[place].status
        return "confirmed" if sale is not None and order_id in sale.taken else None

    def _closed(self) -> str | None:
        match self.now.sale.state:
            case "closed":
                return Refusal.ENDED
            case "paused":
                return Refusal.PAUSED
            case _:
                return None

    def _refused(self, user_id: int, quantity: int) -> str | None:
        sale, limit = self.now, self.now.sale.per_user_limit
        left = max(limit - sale.used(user_id), 0)
        if quantity <= limit and left == 0:
            return Refusal.ALREADY_ORDERED
        if quantity > left:
            return Refusal.LIMIT_EXCEEDED
        if quantity > sale.stock:
            return Refusal.SOLD_OUT
        return Refusal.OVERLOADED if len(sale.entries) >= self.entries_max else None

    # --- the ledger --------------------------------------------------------------------------------------------------

    def settle(self, order: Order, end: Confirmed | Rejected) -> None:
        if order.sale_id == NO_SALE:  # then it ends where it is
            held = (sale.entries[order.order_id] for sale in self.held.values() if order.order_id in sale.entries)
            order = next((entry.order for entry in held), order)
        came = _result(order, end)
        stands = self.results.setdefault((order.sale_id, order.order_id), came)
        first = self.told.setdefault(order.order_id, stands)
        assert first == stands, f"{order.order_id} was told as {first}, and then as {stands}"
        self.listed.add(order.sale_id)
        self.forgettable.discard(order.sale_id)
        sale = self.held.get(order.sale_id)
        entry = sale.entries.pop(order.order_id, None) if sale else None
        if sale is None or entry is None or stands.status is not OrderStatus.REJECTED:
            return
        del sale.taken[order.order_id]
        by_database = not (isinstance(end, Rejected) and end.by_admission)
        if not (stands.reason == Rejection.SOLD_OUT and by_database):
            sale.stock += entry.order.quantity

    def postpone(self, order: Order, *, delay_ms: int) -> None:
        entry = self.entry(order)
        if entry is not None and not entry.parked:
            entry.due = delay_ms <= 0

    def put_off(self, order: Order, *, published_at_ms: int) -> None:
        entry = self.entry(order)
        if entry is not None and not entry.parked:
            assert published_at_ms > entry.published_at_ms, "an entry that was put off was not published anew"
            entry.published_at_ms, entry.due = published_at_ms, False

    def park(self, order: Order) -> None:
        entry = self.entry(order)
        if entry is not None:
            entry.parked, entry.due = True, False

    def due(self) -> set[OrderId]:
        return {entry.order.order_id for entry in self.entries() if entry.due}

    def claimable(self, seen: Sequence[LedgerEntry]) -> set[OrderId]:
        """Those that are pending and still read as they were seen."""
        return {
            each.order.order_id
            for each in seen
            if (entry := self.entry(each.order)) is not None
            and not entry.parked
            and entry.published_at_ms == each.published_at_ms
        }

    def claim(self, order: Order, *, published_at_ms: int) -> None:
        entry = self.entry(order)
        assert entry is not None
        assert not entry.parked
        assert published_at_ms > entry.published_at_ms, "a claimed entry still reads as it did before"
        entry.published_at_ms, entry.due = published_at_ms, False

    # --- sales -------------------------------------------------------------------------------------------------------

    def copy(self, sale: Sale) -> None:
        """A row is warmed again: the current sale takes what an operator may change, never the units."""
        if sale.sale_id == self.current:
            self.now.sale = sale
            self.forgettable.discard(sale.sale_id)

    def open(self, sale: Sale) -> None:
        """The next sale: what is left of old ones is forgotten, once their results are and nothing of them is open."""
        for old in sorted(self.forgettable):
            if old not in self.held or not self.held[old].entries:
                self.held.pop(old, None)
                self.listed.discard(old)
                self.forgettable.discard(old)
        self.held[sale.sale_id] = SaleModel(sale, sale.stock, sale.initial)
        self.listed.add(sale.sale_id)
        self.current = sale.sale_id

    def change(self, operation: str, change_id: str, units: int) -> int:
        """Units moved, by the rules of raising (`add`), lowering (`take`), and taking a lowering back (`undo`)."""
        sale = self.now
        name = f"{'take' if operation == 'undo' else operation}:{change_id}"
        before = sale.changes.get(name)
        if operation == "undo":
            moved = before or 0
            if moved:
                sale.changes[name] = 0
        elif before is not None:
            return before
        else:
            moved = min(units, sale.stock) if operation == "take" else units
            sale.changes[name] = moved
        delta = -moved if operation == "take" else moved
        sale.stock, sale.initial = sale.stock + delta, sale.initial + delta
        return moved

    def expire(self, sale_id: int) -> list[OrderId]:
        """The results of a sale are forgotten; whose they were."""
        gone = [order_id for place, order_id in self.results if place == sale_id]
        for order_id in gone:
            del self.results[sale_id, order_id]
        self.forgettable.add(sale_id)
        return gone


def next_sale(sale: Sale, *, stock: int, per_user_limit: int) -> Sale:
    return replace(
        sale, sale_id=sale.sale_id + 1, state="open", stock=stock, initial=stock, per_user_limit=per_user_limit
    )


def _result(order: Order, end: Confirmed | Rejected) -> OrderResult:
    match end:
        case Confirmed():
            return OrderResult(order.order_id, OrderStatus.CONFIRMED)
        case Rejected(reason):
            return OrderResult(order.order_id, OrderStatus.REJECTED, str(reason))
