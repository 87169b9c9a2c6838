"""Orders that came past the front (published directly, or in the first article's form) are admitted here, late.

The reservation is read first, because a redelivered order may have ended long ago; then the same admission script runs,
which repeats itself harmlessly. A refusal becomes the order's end: `rejected`, written over no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from seckill.admission.gate import AdmissionGate
from seckill.checkout.reservations import Reservation, Reservations, outcome_of
from seckill.domain.errors import AdmissionClosed, OrderIdReused
from seckill.domain.order import Order, OrderId
from seckill.domain.outcomes import (
    Admission,
    Admitted,
    AlreadyDecided,
    Confirmed,
    Failed,
    OrderResult,
    OrderStatus,
    Outcome,
    Refused,
    Rejected,
    SetAside,
)
from seckill.domain.reasons import Refusal

LATER = frozenset({Refusal.PAUSED, Refusal.OVERLOADED})
"""Refusals that say nothing about the order: it is tried again."""


class LateAdmission:
    def __init__(self, gate: AdmissionGate, reservations: Reservations) -> None:
        self._gate = gate
        self._reservations = reservations

    async def admit(self, orders: Sequence[Order]) -> list[tuple[Order, Outcome | None]]:
        """Each order as it is known now, with its sale and number, and its outcome; None: carry it.

        Raises AdmissionUnavailable, ProductUnavailable or BranchFailed.
        """
        rows = await self._reservations.of_orders(orders)
        known: dict[OrderId, tuple[Order, Outcome | None]] = {}
        unknown: list[Order] = []
        for order in orders:
            row = rows.get(order.key)
            outcome = outcome_of(order, row, gid="")
            if row is None or outcome is None:
                unknown.append(order)
            else:
                known[order.order_id] = (_in_sale(order, row), outcome)
        if unknown:
            known |= await self._ask_the_gate(unknown)
        return [known[order.order_id] for order in orders]

    async def _ask_the_gate(self, orders: Sequence[Order]) -> dict[OrderId, tuple[Order, Outcome | None]]:
        known: dict[OrderId, tuple[Order, Outcome | None]] = {}
        refused: list[Order] = []
        reasons: dict[bytes, str] = {}
        for order, answer in zip(orders, await self._gate.admit_late(orders), strict=True):
            match judged(order, answer):
                case Order() as admitted:
                    known[order.order_id] = (admitted, None)
                case Refusal() as code:
                    refused.append(order)
                    reasons[order.key] = code.value
                case outcome:
                    known[order.order_id] = (order, outcome)
        if refused:
            rows = await self._reservations.reject(refused, reasons)
            for order in refused:
                closed = Failed(AdmissionClosed(order.order_id, reasons[order.key]))
                row = rows.get(order.key)
                known[order.order_id] = (_in_sale(order, row), outcome_of(order, row, gid="") or closed)
        return known


def _in_sale(order: Order, row: Reservation | None) -> Order:
    """The order in the sale of its row, when the row is its own and knows the sale."""
    return replace(order, sale_id=row.sale_id) if row is not None and row.sale_id and row.is_of(order) else order


def judged(order: Order, answer: Admission) -> Order | Refusal | Outcome:
    """The order as admitted, or the refusal to write down, or how it ended or failed. Pure."""
    match answer:
        case Admitted(sale_id=sale_id, admission_number=number, admitted_at_ms=at_ms):
            return replace(order, sale_id=sale_id, admission_number=number, admitted_at_ms=at_ms)
        case AlreadyDecided(result=OrderResult(status=OrderStatus.DELAYED)):
            return SetAside()
        case AlreadyDecided(result=result):
            return Confirmed() if result.status is OrderStatus.CONFIRMED else Rejected(result.reason)
        case Refused(code=Refusal.KEY_REUSED):
            return Failed(OrderIdReused(order.order_id))
        case Refused(code=code) if code in LATER:
            return Failed(AdmissionClosed(order.order_id, code.value))
        case Refused(code=code):
            return code
