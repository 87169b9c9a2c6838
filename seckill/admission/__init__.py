"""Admission: the Redis side. Judges and reserves orders, keeps the ledger of accepted ones, remembers their results.

May touch Redis only; knows nothing of HTTP, Kafka or SQL. `gate.py` admits, `ledger.py` settles and looks after what is
pending, `parked.py` brings back what was set aside, `sales.py` keeps the copy of the sale row, `rebuild.py` makes a
lost one again; the scripts beside them are where the decisions are atomic.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from seckill.admission.gate import AdmissionGate, Wanted
from seckill.admission.ledger import Ledger, LedgerEntry, LedgerStats
from seckill.admission.link import RedisLink
from seckill.admission.parked import ParkedOrders
from seckill.admission.rebuild import RebuildBook
from seckill.admission.sales import RebuildNeeded, SaleBook, SaleView
from seckill.settings import LedgerSettings, RedisSettings

__all__ = [
    "Admission",
    "AdmissionGate",
    "Ledger",
    "LedgerEntry",
    "LedgerStats",
    "ParkedOrders",
    "RebuildNeeded",
    "RedisLink",
    "SaleBook",
    "SaleView",
    "Wanted",
    "open_admission",
]


@dataclass(frozen=True, slots=True)
class Admission:
    """The views of Redis, on one pool of connections."""

    gate: AdmissionGate
    ledger: Ledger
    sales: SaleBook
    rebuilds: RebuildBook
    parked: ParkedOrders


@asynccontextmanager
async def open_admission(
    redis: RedisSettings,
    ledger: LedgerSettings,
    *,
    batch_max: int = 200,
    queue_max: int = 10_000,
    on_batch: Callable[[int], None] | None = None,
) -> AsyncIterator[Admission]:
    """Gate, ledger and sale book on one pool; on leaving, what is under way is finished first."""
    link = RedisLink(redis)
    gate = AdmissionGate(link, ledger, batch_max=batch_max, queue_max=queue_max, on_batch=on_batch)
    book = Ledger(link, ledger)
    try:
        parked = ParkedOrders(link, ledger, book)
        yield Admission(gate, book, SaleBook(link, ledger), RebuildBook(link, ledger), parked)
    finally:
        await gate.close()
        await book.close()
        await link.close()
