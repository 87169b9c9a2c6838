"""How much the ledger holds of each product, for whoever scrapes reconcile."""

from __future__ import annotations

from prometheus_client import Gauge

from seckill.admission.ledger import LedgerStats

ENTRIES = Gauge("seckill_ledger_entries", "Orders that were accepted and have not ended", ["product_id"])
PARKED = Gauge("seckill_ledger_parked", "Ledger entries whose records are dead letters", ["product_id"])
OLDEST = Gauge("seckill_ledger_oldest_seconds", "Age of the oldest pending entry", ["product_id"])


def show(product_id: int, stats: LedgerStats) -> None:
    """A product without entries has no series: products come and go for as long as the process lives."""
    if not stats.entries:
        for gauge in (ENTRIES, PARKED, OLDEST):
            gauge.remove(product_id)
        return
    ENTRIES.labels(product_id).set(stats.entries)
    PARKED.labels(product_id).set(stats.parked)
    OLDEST.labels(product_id).set(stats.oldest_age_ms / 1_000)
