"""Publishing pending ledger entries again: orders whose publish failed, or whose front died before it.

A second record of an order does nothing, so an entry that is merely slow may be published again as well.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from seckill.admission.ledger import Ledger
from seckill.domain.errors import AdmissionUnavailable, PublishUnknown
from seckill.domain.order import Order
from seckill.front.intake import Publisher
from seckill.front.metrics import LEDGER_ENTRIES, LEDGER_OLDEST, LEDGER_PARKED, REPUBLISHED

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Republisher:
    """Looks at every product's ledger each `every_ms`; up to `batch_max` entries of one at a time."""

    ledger: Ledger
    publisher: Publisher
    every_ms: int
    batch_max: int
    republish_after_ms: int

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self.every_ms / 1_000)
            try:
                await self.once()
            except AdmissionUnavailable as error:
                log.warning("republish_skipped", error=str(error))
            except Exception:
                log.exception("republish_failed")  # the loop must outlive what nobody foresaw

    async def once(self) -> None:
        """One look at every product. Raises AdmissionUnavailable."""
        for product_id in await self.ledger.products():
            await self._gauge(product_id)
            due = await self.ledger.claim_due(
                product_id, limit=self.batch_max, republish_after_ms=self.republish_after_ms
            )
            if not due:
                continue
            published = await asyncio.gather(*map(self._publish, due))
            log.info("republished", product_id=product_id, orders=len(due), acknowledged=sum(published))

    async def _publish(self, order: Order) -> bool:
        try:
            await self.publisher.publish(order)
        except PublishUnknown as error:
            REPUBLISHED.labels("unknown").inc()
            log.warning("republish_unknown", order_id=order.order_id, error=str(error))
            return False  # it is due again later
        REPUBLISHED.labels("acknowledged").inc()
        return True

    async def _gauge(self, product_id: int) -> None:
        stats = await self.ledger.stats(product_id)
        LEDGER_ENTRIES.labels(product_id).set(stats.entries)
        LEDGER_PARKED.labels(product_id).set(stats.parked)
        LEDGER_OLDEST.labels(product_id).set(stats.oldest_age_ms / 1_000)
