"""Ledger entries under whose order ids the database has other orders: a person is told of each, once."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from seckill.admission.ledger import Ledger
from seckill.domain.errors import OrderIdReused
from seckill.domain.order import Order
from seckill.messaging.dead_letters import DeadLetters, Letter
from seckill.messaging.envelope import ORIGIN_HEADER, Record, encode

log = structlog.get_logger()

NOWHERE = -1
"""Partition and offset of a record that never was in the topic, or of which nobody knows where."""


class Conflicts:
    """Raises AdmissionUnavailable or PublishUnknown; what was done then is done again by who comes next."""

    def __init__(self, ledger: Ledger, dead_letters: DeadLetters, *, topic: str) -> None:
        self._ledger = ledger
        self._dead_letters = dead_letters
        self._topic = topic

    async def set_aside(self, orders: Sequence[Order]) -> None:
        """A letter for each, with a record made of what the ledger holds; then its entry is parked, and due no more."""
        for order in orders:
            error = OrderIdReused(order.order_id)
            log.error("ledger_entry_conflicts", order_id=order.order_id)
            letter = Letter(error.dead_letter_reason, error, attempts=1, first_failed_ms=time.time_ns() // 1_000_000)
            await self._dead_letters.bury(self._record(order), letter)
        await self._ledger.park(orders)

    def _record(self, order: Order) -> Record:
        """It names the ledger entry for where it arrived, so that a letter that is written twice is one letter."""
        place = (self._topic, NOWHERE, NOWHERE, order.admitted_at_ms)
        arrived = (ORIGIN_HEADER, f"ledger-{order.order_id}/0/0/{order.admitted_at_ms}".encode())
        return Record(*place, key=order.order_id.encode(), value=encode(order), headers=(arrived,))
