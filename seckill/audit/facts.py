"""What an audit has read: plain values, no I/O.

Rows are those that somebody has to look at. Of a small pipeline that may be every row, and the sums follow from them;
of a large one only the rows that do not fit together, and `totals` has the sums of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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
    age_ms: int = 0  # since admission


@dataclass(frozen=True, slots=True)
class RedisSale:
    """Redis' copy of a sale, in units. `initial` None: not asked for.

    `vouched`: the server is the one that the sale was warmed on; otherwise admission is closed until a rebuild.
    """

    sale_id: int
    stock: int
    admitted: int  # and not given back
    initial: int | None = None
    vouched: bool = True


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all rows of one sale.

    `held` are the units that admission gave out and has not got back: sold, or waiting in the ledger. Of those that are
    `unsure` the stores do not say whether Redis counts them among the admitted ones.
    """

    sold_orders: int = 0
    sold: int = 0  # units
    frozen: int = 0  # units
    ordered: int = 0  # units of confirmed orders
    held: int = 0  # units
    unsure: int = 0  # units
    rejected: Mapping[str, int] = field(default_factory=dict)  # orders by reason


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
    totals: Mapping[int, Totals] | None = None  # sale id → sums; None: the rows above are all rows
    unseen: int = 0  # orders that do not fit together and whose rows are not among those above
    at_rest: bool = True  # nothing is under way: what is only on its way is wrong as well

    def totals_of(self, sale_id: int) -> Totals:
        if self.totals is not None:
            return self.totals.get(sale_id, Totals())
        return _sums(self, sale_id)

    def sales_with_orders(self) -> set[int]:
        """Sale ids of all rows; 0 is that of refused orders that came past the front."""
        return set(self.totals) if self.totals is not None else {row.sale_id for row in self.reservations}


def _sums(facts: Facts, sale_id: int) -> Totals:
    rows = [row for row in facts.reservations if row.sale_id == sale_id]
    sold = [row for row in rows if row.state is State.SOLD]
    rejected = [row for row in rows if row.state is State.REJECTED]
    sold_ids = {row.order_id for row in sold}
    waiting = [entry for entry in facts.ledger if entry.sale_id == sale_id and entry.order_id not in sold_ids]
    return Totals(
        sold_orders=len(sold),
        sold=sum(row.quantity for row in sold),
        frozen=sum(row.quantity for row in rows if row.state is State.FROZEN),
        ordered=sum(row.quantity for row in facts.orders if row.confirmed and row.sale_id == sale_id),
        held=sum(row.quantity for row in sold) + sum(entry.quantity for entry in waiting),
        # The database's own SOLD_OUT gives no units back to Redis; the same reason from a late admission took none.
        unsure=sum(row.quantity for row in rejected if row.reason == "SOLD_OUT"),
        rejected=Counter(row.reason for row in rejected),
    )
