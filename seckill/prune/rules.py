"""Which sales' reservations may go. Pure: the facts come from the stores, the answer is a reason or None.

A reservation is its order's fate, and what refuses a second record of the order. So a sale's reservations go together,
and only when no record, ledger entry or letter can bring one of its orders back:

- the sale is closed, and it ended, was closed and changed its last reservation longer than the retention ago;
- no order of it is open: `frozen` is undecided, `released` may be tried again;
- its counters agree with its rows, since nobody can check them afterwards;
- Redis' ledger has no entry of it, parked ones included, and no letter of it waits for an operator;
- the topic's oldest record is younger than the sale's last change: not even a consumer that is set back reads its
  orders again.

Rows of orders that a retry topic or the dead-letter topic still holds stay, whatever became of them: both keep their
records for ever, a letter can be replayed, and a consumer set back.
From then on the sale refuses every order (`seckill.product.sales.SalePruned`), so that an id without a row is never
sold again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

RECORD_MARGIN_MS = 3_600_000
"""How much younger than a sale's last change a record must be: the clocks of producers and databases differ."""


@dataclass(frozen=True, slots=True)
class EndedSale:
    """A sale's row, and what its reservations add up to. Times in milliseconds, 0 for none."""

    sale_id: int
    product_id: int
    state: str
    ends_at_ms: int
    updated_at_ms: int  # closing it was its last change
    frozen: int
    sold: int
    open_orders: int  # reservations that are frozen or released
    sold_units: int  # of reservations
    last_change_ms: int  # of a reservation

    @property
    def settled_ms(self) -> int:
        return max(self.ends_at_ms, self.updated_at_ms, self.last_change_ms)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What may still bring orders back, read before anything is deleted."""

    ledger: Mapping[int, int] = field(default_factory=dict)  # sale id → entries
    set_aside: frozenset[bytes] = frozenset()  # order keys in the retry topics and the dead-letter topic
    unresolved: frozenset[int] = frozenset()  # sales with letters that wait for an operator
    unfinished: frozenset[str] = frozenset()  # gids that the coordinator has not ended
    oldest_record_ms: int | None = None  # in the topic; None: it holds none


@dataclass(frozen=True, slots=True)
class Kept:
    """A sale whose time has come, and why its reservations stay all the same."""

    sale_id: int
    product_id: int
    reason: str


def why_kept(sale: EndedSale, evidence: Evidence, *, cutoff_ms: int) -> str | None:
    """Why the sale's reservations stay; None when they may go."""
    if sale.state != "closed":
        return f"it has ended, and is still {sale.state}: close it"
    if sale.settled_ms >= cutoff_ms:
        return f"its last change was at {_moment(sale.settled_ms)}, within the retention"
    if sale.frozen or sale.open_orders:
        return f"{sale.open_orders or sale.frozen} of its orders have not ended"
    if sale.sold != sale.sold_units:
        return f"it counts {sale.sold} units sold, its reservations {sale.sold_units}: see `seckill audit`"
    if entries := evidence.ledger.get(sale.sale_id, 0):
        return f"the ledger in Redis holds {entries} of its orders"
    if sale.sale_id in evidence.unresolved:
        return "dead letters of it wait for an operator"
    oldest_ms = evidence.oldest_record_ms
    if oldest_ms is not None and oldest_ms <= sale.settled_ms + RECORD_MARGIN_MS:
        return f"the topic still holds records from {_moment(oldest_ms)}, and may hold its orders"
    return None


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
