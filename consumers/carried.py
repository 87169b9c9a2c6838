"""Orders on their way through the carrier: what came with them, and in which groups they are tried. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from seckill.checkout.groups import same_contents
from seckill.domain.order import Order, OrderId
from seckill.messaging.delivery import Delivered
from seckill.messaging.envelope import Record, encode
from seckill.messaging.retry_topics import RetryStory


@dataclass(slots=True)
class Carried:
    """One order on its way: what came, the order as it is known now, and how often it failed.

    `unknown`: admission has numbered it, and the ledger does not know it. Redis has lost it since, and a rebuild may
    have given its units to others, so it is admitted again, like one that came past the front.

    `attempts` are those of this delivery; `before` tells of earlier ones, and `tier` of which retry topic they led to.
    `alone`: in its last attempt no other order was with it.
    """

    delivered: Delivered
    order: Order
    tier: int | None = None
    before: RetryStory = field(default_factory=RetryStory)
    unknown: bool = False
    attempts: int = 0
    first_failed_ms: int = 0
    alone: bool = False

    def failed(self, *, at_ms: int) -> None:
        self.attempts += 1
        self.first_failed_ms = self.first_failed_ms or self.before.first_failed_ms or at_ms

    @property
    def attempts_in_all(self) -> int:
        return self.before.attempts + self.attempts


PIECES_HANGING_MAX, HANGING_S = 3, 5.0
"""So many pieces in a row that fail as a whole, for longer than that: it is not one order that makes them."""


@dataclass(slots=True)
class Hanging:
    """The pieces of an attempt that failed as a whole, one after the other, since the last one that did not."""

    in_a_row: int = 0
    since_s: float = 0.0
    cause: Exception | None = None

    def note(self, cause: Exception | None, *, began_s: float) -> None:
        """A piece was tried from `began_s` on; `cause` is what all of its orders failed for, None: not all failed."""
        if self.in_a_row == 0:
            self.since_s = began_s
        self.cause, self.in_a_row = cause, self.in_a_row + 1 if cause is not None else 0

    def blamed_for_all(self, *, now_s: float) -> Exception | None:
        """What the pieces that are left would fail for as well; None: they are to be tried."""
        lasts = self.in_a_row >= PIECES_HANGING_MAX and now_s - self.since_s > HANGING_S
        return self.cause if lasts else None


def split_reused(orders: Sequence[Delivered]) -> tuple[list[Delivered], list[Delivered]]:
    """Each order id once, and those that reuse an id with other contents. Pure.

    Of an id's orders one that was admitted goes before one that came past the front, then the first before the next. An
    exact repeat is in neither list: it is routed with the first.
    """
    first: dict[OrderId, Delivered] = {}
    reused: list[Delivered] = []
    for delivered in sorted(orders, key=lambda delivered: delivered.order.admission_number is None):  # stable
        known = first.setdefault(delivered.order.order_id, delivered)
        if not same_contents(known.order, delivered.order):
            reused.append(delivered)
    return list(first.values()), reused


def pieces(orders: Sequence[Carried], size: Callable[[int], int]) -> list[list[Carried]]:
    """Who is tried together: those that failed equally often, at most `size(attempts)` of them. Pure."""
    cut: list[list[Carried]] = []
    by_attempts = sorted(orders, key=lambda carried: carried.attempts)  # stable
    for attempts, same in groupby(by_attempts, key=lambda carried: carried.attempts):
        waiting, count = list(same), size(attempts)
        cut += [waiting[at : at + count] for at in range(0, len(waiting), count)]
    return cut


def own_record(delivered: Delivered) -> Record:
    """The record as it came, or, when it held several orders, one with this order alone."""
    if delivered.alone:
        return delivered.record
    order = delivered.order
    return replace(delivered.record, key=order.order_id.encode(), value=encode(order))
