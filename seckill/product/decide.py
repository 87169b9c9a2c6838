"""What a Try does with each order of a group: pure decisions, no I/O.

The parent reads the sale, the rows that exist and what the buyers hold already, asks `decide`, and writes the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from seckill.domain.reasons import Rejection


class State(IntEnum):
    """A reservation's state; the numbers stand in SQL and on the wire."""

    FROZEN = 1
    SOLD = 2
    RELEASED = 3
    REJECTED = 4


@dataclass(frozen=True, slots=True)
class Wanted:
    """One order of a group. `order_id` is the UUID's 16 bytes."""

    order_id: bytes
    user_id: int
    quantity: int
    admitted_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """Orders of one sale, each order id once."""

    product_id: int
    sale_id: int
    orders: Sequence[Wanted]


@dataclass(frozen=True, slots=True)
class Reservation:
    """A row of `stock_reservation`. `gid` and `branch_id` are those that hold or ended it."""

    order_id: bytes
    product_id: int
    sale_id: int
    user_id: int
    quantity: int
    state: State
    reason: str
    gid: str
    branch_id: str
    updated_at_ms: int

    def is_of(self, group: Group, order: Wanted) -> bool:
        """Whether the row was written for the same order: same product, sale, buyer and quantity.

        Sale 0 stands for one that is not known yet: an order that came past the front may be rejected without it, while
        another copy of its record is admitted.
        """
        same_sale = self.sale_id == group.sale_id or 0 in (self.sale_id, group.sale_id)
        contents = (self.product_id, self.user_id, self.quantity)
        return same_sale and contents == (group.product_id, order.user_id, order.quantity)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a sale has left to give, and how many units one buyer may hold."""

    stock: int
    per_user_limit: int


@dataclass(frozen=True, slots=True)
class Freeze:
    """The units are there and the buyer may have them. `over`: the released row that this replaces."""

    order: Wanted
    over: Reservation | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """For ever. `over`: the released row that this replaces."""

    order: Wanted
    reason: Rejection | str
    over: Reservation | None = None


@dataclass(frozen=True, slots=True)
class Stands:
    """The row stays as it is and is answered. `reason` says more when the row is of another order."""

    row: Reservation
    reason: str


Verdict = Freeze | Reject | Stands


def decide(
    terms: Terms | None, group: Group, *, existing: Mapping[bytes, Reservation], held: Mapping[int, int]
) -> list[Verdict]:
    """One verdict per order, in the group's order. `terms` is None when the product has no such sale.

    `held` is what each buyer holds in this sale already: units frozen and sold. Stock is given in the group's order,
    so that a small order may still fit after a large one did not.
    """
    verdicts: list[Verdict] = []
    left = terms.stock if terms else 0
    holding = dict(held)
    for order in group.orders:
        row = existing.get(order.order_id)
        if row is not None and (stands := standing(row, group, order)) is not None:
            verdicts.append(stands)
            continue
        reason = _refusal(terms, order, left=left, holding=holding.get(order.user_id, 0))
        if reason is not None:
            verdicts.append(Reject(order, reason, over=row))
            continue
        left -= order.quantity
        holding[order.user_id] = holding.get(order.user_id, 0) + order.quantity
        verdicts.append(Freeze(order, over=row))
    return verdicts


def standing(row: Reservation, group: Group, order: Wanted) -> Stands | None:
    """The row as it stands, or None when it is this order's and `released`: only then may it be written over."""
    if not row.is_of(group, order):
        return Stands(row, Rejection.ORDER_CONFLICT)
    if row.state is not State.RELEASED:
        return Stands(row, row.reason)
    return None


def _refusal(terms: Terms | None, order: Wanted, *, left: int, holding: int) -> Rejection | None:
    if terms is None:
        return Rejection.UNKNOWN_SALE
    if holding + order.quantity > terms.per_user_limit:
        return Rejection.LIMIT_EXCEEDED
    if order.quantity > left:
        return Rejection.SOLD_OUT
    return None
