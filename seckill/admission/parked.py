"""What becomes of ledger entries whose records are dead letters, as the dead-letter tool handles them.

An order that came past the front names no sale; its entry, if admission made one, is in the sale that took it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum

from seckill.admission.keys import sale_keys
from seckill.admission.ledger import Ledger
from seckill.admission.link import RedisLink, load_script
from seckill.domain.order import Order, OrderId
from seckill.domain.outcomes import Confirmed, OrderStatus, Rejected
from seckill.settings import LedgerSettings


class Held(Enum):
    """What the ledger has under an order's id."""

    NOTHING = "nothing, or how it ended"
    ITS_OWN = "its entry"
    ANOTHERS = "the entry of another buyer or quantity"


class ParkedOrders:
    """All methods raise AdmissionUnavailable when Redis does not answer, and may be repeated."""

    def __init__(self, link: RedisLink, settings: LedgerSettings, ledger: Ledger) -> None:
        self._link = link
        self._look_after_ms = settings.republish_after_ms
        self._ledger = ledger

    async def in_its_sale(self, order: Order) -> Order:
        """The order with the sale whose ledger holds it; as it is, when it names one or none holds it."""
        if order.sale_id:
            return order
        held_by = await self._ledger.sales_with_entries([order])
        return replace(order, sale_id=held_by.get(order.order_id, 0))

    async def held(self, order: Order) -> Held:
        seen = await self._ledger.seen([order])
        if order.order_id in seen.reused:
            return Held.ANOTHERS
        return Held.NOTHING if order.order_id in seen.unknown | seen.ended else Held.ITS_OWN

    async def unpark(self, order: Order) -> None:
        """The order's entry is pending again, as if it were published now; an existing, parked one only."""
        placed = await self.in_its_sale(order)
        keys = sale_keys(placed.product_id, placed.sale_id)
        names = [keys.ledger, keys.due, keys.ages, keys.parked]
        await self._link.one(load_script("unpark").call(names, [self._look_after_ms, placed.order_id]))

    async def set_aside(self, orders: Sequence[Order]) -> frozenset[OrderId]:
        """Which of them the ledger has among the parked entries."""
        known = await self._ledger.results([order.order_id for order in orders])
        return frozenset(order_id for order_id, told in known.items() if told.status is OrderStatus.DELAYED)

    async def settle(self, ended: Sequence[tuple[Order, Confirmed | Rejected]]) -> None:
        """As the ledger does."""
        await self._ledger.settle(ended)
