"""Orders that came past the front (published directly, or in the first article's form) are admitted here, late, and
those that admission has numbered and Redis has lost since.

The reservation is read first, because a redelivered order may have ended long ago; then the same admission script runs,
which repeats itself harmlessly. A refusal becomes the order's end: `rejected`, written over no row.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
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
    """`doubt` closes the sales whose admission numbers Redis does not know; `on_offer` says whether the product
    database has a sale of the product (or that one, if its id is not 0) that is open or paused.
    """

    def __init__(
        self,
        gate: AdmissionGate,
        reservations: Reservations,
        *,
        doubt: Callable[[Sequence[Order]], Awaitable[object]],
        on_offer: Callable[[int, int], Awaitable[bool]],
    ) -> None:
        self._gate = gate
        self._reservations = reservations
        self._doubt = doubt
        self._on_offer = on_offer

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
                unknown.append(in_sale_of(order, row))
            else:
                known[order.order_id] = (in_sale_of(order, row), outcome)
        if numbered := [order for order in unknown if order.admission_number is not None]:
            await self._doubt(numbered)  # first: a gate that has forgotten what it sold must not sell it again
        if unknown:
            known |= await self._ask_the_gate(unknown)
        return [known[order.order_id] for order in orders]

    async def _ask_the_gate(self, orders: Sequence[Order]) -> dict[OrderId, tuple[Order, Outcome | None]]:
        known: dict[OrderId, tuple[Order, Outcome | None]] = {}
        refused: list[Order] = []
        reasons: dict[bytes, str] = {}
        answers = await self._gate.admit_late(orders)
        lost = await self._lost_sales(orders, answers)
        for order, answer in zip(orders, answers, strict=True):
            match judged(order, answer):
                case Order() as admitted:
                    known[order.order_id] = (admitted, None)
                case Refusal.UNKNOWN_PRODUCT as code if (order.product_id, order.sale_id) in lost:
                    closed = AdmissionClosed(order.order_id, code.value, rebuilding=True)
                    known[order.order_id] = (order, Failed(closed))
                case Refusal() as code:
                    refused.append(order)
                    reasons[order.key] = code.value
                case outcome:
                    known[order.order_id] = (order, outcome)
        if refused:
            rows = await self._reservations.reject(refused, reasons)
            for order in refused:
                unread = Failed(AdmissionClosed(order.order_id, reasons[order.key]))
                row = rows.get(order.key)
                known[order.order_id] = (in_sale_of(order, row), outcome_of(order, row, gid="") or unread)
        return known

    async def _lost_sales(self, orders: Sequence[Order], answers: Sequence[Admission]) -> set[tuple[int, int]]:
        """Product and sale ids that Redis does not know, though they are on offer: it has lost them, and will get them
        again.
        """
        strange = {
            (order.product_id, order.sale_id)
            for order, answer in zip(orders, answers, strict=True)
            if isinstance(answer, Refused) and answer.code is Refusal.UNKNOWN_PRODUCT
        }
        return {sale for sale in sorted(strange) if await self._on_offer(*sale)}


def in_sale_of(order: Order, row: Reservation | None) -> Order:
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
        case Refused(code=Refusal.UNKNOWN_PRODUCT) if order.admission_number is not None:
            # Redis has lost the whole sale, and no rebuild has begun. The one that comes finds this order's record in
            # the topic, and counts it.
            return order
        case Refused(code=code, rebuilding=rebuilding) if code in LATER:
            return Failed(AdmissionClosed(order.order_id, code.value, rebuilding=rebuilding))
        case Refused(code=code):
            return code
