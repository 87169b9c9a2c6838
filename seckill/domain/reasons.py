"""The stable codes of everything that is not success: refusals, dead letters, problem documents.

A code is part of the public contract: it stands in HTTP problems, gRPC replies, Redis results, SQL rows and
dead-letter headers. Add codes; never rename one.
"""

from __future__ import annotations

from enum import StrEnum


class Refusal(StrEnum):
    """Why admission did not accept an order. Nothing was reserved or published."""

    SOLD_OUT = "SOLD_OUT"
    ALREADY_ORDERED = "ALREADY_ORDERED"  # the buyer's allowance is used up; carries the first order's id
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"  # the quantity is above the limit, or above what is left of it
    NOT_STARTED = "NOT_STARTED"
    ENDED = "ENDED"
    PAUSED = "PAUSED"
    UNKNOWN_PRODUCT = "UNKNOWN_PRODUCT"
    KEY_REUSED = "KEY_REUSED"  # the idempotency key came before with another quantity
    OVERLOADED = "OVERLOADED"  # the ledger or a queue is full, or too many come at once: later it may succeed
    RATE_LIMITED = "RATE_LIMITED"  # this buyer asks too often


class Rejection(StrEnum):
    """Why an accepted order was not confirmed. Final: written to the order's reservation row."""

    SOLD_OUT = "SOLD_OUT"
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"
    ENDED = "ENDED"
    NOT_STARTED = "NOT_STARTED"
    PAUSED = "PAUSED"
    UNKNOWN_SALE = "UNKNOWN_SALE"
    UNKNOWN_PRODUCT = "UNKNOWN_PRODUCT"
    ALREADY_ORDERED = "ALREADY_ORDERED"
    ORDER_CONFLICT = "ORDER_CONFLICT"  # the order id stands in the order table with other contents
    INVALID_ORDER = "INVALID_ORDER"
    DISCARDED = "DISCARDED"  # by an operator, from the dead letters


class DeadLetterReason(StrEnum):
    """Why a record was set aside."""

    UNREADABLE = "UNREADABLE"  # not JSON at all
    INVALID_FIELD = "INVALID_FIELD"  # JSON, but not an order; the message names the field
    ID_REUSED = "ID_REUSED"  # the order id came twice with other contents
    RETRIES_EXHAUSTED = "RETRIES_EXHAUSTED"
    BRANCH_FAILED = "BRANCH_FAILED"  # a service answered with an error that is no refusal and not transient
    UNEXPECTED = "UNEXPECTED"  # an error that nobody foresaw
    FOREIGN = "FOREIGN"  # put among the dead letters by another program, which tells no reason that is known here
