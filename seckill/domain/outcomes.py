"""What admission answers, and how an order ends. Plain values: the parent matches on them and acts."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from seckill.domain.order import OrderId
from seckill.domain.reasons import Refusal, Rejection

# --- admission -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Admitted:
    """Reserved in Redis and written to the ledger. `repeated`: the id was known already, nothing new was taken."""

    order_id: OrderId
    sale_id: int
    admitted_at_ms: int
    admission_number: int
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was reserved. `order_id` is the buyer's first order when the code is ALREADY_ORDERED."""

    code: Refusal
    order_id: OrderId | None = None
    left: int | None = None  # units left of the stock (SOLD_OUT) or of the allowance (LIMIT_EXCEEDED)
    at_ms: int | None = None  # when the sale starts (NOT_STARTED) or ended (ENDED)
    rebuilding: bool = False  # PAUSED by no operator: Redis has lost what it held of the sale, and will get it again


@dataclass(frozen=True, slots=True)
class AlreadyDecided:
    """A repeat of an order that has ended: the same answer again."""

    order_id: OrderId
    result: OrderResult


Admission = Admitted | Refused | AlreadyDecided

# --- the end of an order ---------------------------------------------------------------------------------------


class OrderStatus(StrEnum):
    """What a buyer is told."""

    PROCESSING = "processing"
    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    DELAYED = "delayed"  # dead-lettered: a person looks at it


@dataclass(frozen=True, slots=True)
class OrderResult:
    order_id: OrderId
    status: OrderStatus
    reason: str = ""  # of a rejection


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The order's reservation is `sold`."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The order's reservation is `rejected(reason)`.

    `by_admission`: written outside a transaction, for an order that admission refused; the database has its units.
    """

    reason: Rejection | str
    by_admission: bool = False


@dataclass(frozen=True, slots=True)
class Undecided:
    """A gid holds the order and its end is not known yet: waiting, which is no attempt.

    `cause`: the error that left it so, when there was one.
    """

    gid: str
    detail: str
    cause: Exception | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class SetAside:
    """A dead letter holds the order, and its ledger entry is parked: nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing holds the order; `error` says whether trying again can help."""

    error: Exception


Outcome = Confirmed | Rejected | Undecided | SetAside | Failed
