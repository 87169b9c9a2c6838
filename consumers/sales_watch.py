"""The part of reconcile that watches over Redis' copies of the sales: finds lost ones, and has them rebuilt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog
from prometheus_client import Counter, Gauge

from consumers.lost_sales import LostSale, LostSales
from consumers.rebuild import Rebuilder
from consumers.survivors import Rebuilt
from seckill.admission.rebuild import Standing
from seckill.domain.errors import SeckillError

log = structlog.get_logger()

LOST_SALES = Gauge("seckill_lost_sales", "Sales that Redis does not hold as it was told to")
REBUILT = Counter("seckill_rebuilt_total", "Sales whose copies in Redis were made again")
FAILED = Counter("seckill_rebuild_failed_total", "Looks for lost sales, and rebuilds, that an error cut short")


class SalesWatch:
    """Opens nothing: finder and rebuilder are its caller's. Two of them do no harm: one steps back."""

    def __init__(self, lost: LostSales, rebuilder: Rebuilder, *, every_ms: int) -> None:
        self._lost = lost
        self._rebuilder = rebuilder
        self._every_ms = every_ms
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """`run` returns after what is under way; cancelled, it gives back what it had begun."""
        self._stopping.set()

    async def run(self) -> None:
        """Until `stop`. A dependency that is down is waited for; nothing here ends a role."""
        while not self._stopping.is_set():
            try:
                await self.once()
            except SeckillError as error:
                FAILED.inc()
                log.warning("rebuild_waits", error=str(error))
            except Exception:
                FAILED.inc()
                log.exception("rebuild_failed")  # the loop must outlive what nobody foresaw
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every_ms / 1_000):
                    await self._stopping.wait()

    async def once(self) -> list[Rebuilt]:
        """Rebuilds what is lost. Raises what `Rebuilder.rebuild` raises."""
        return await self._rebuild(await self._lost.find())

    async def by_hand(self, *, every: bool) -> list[Rebuilt]:
        """What is lost, closed sales included; `every`: every sale on offer as well, whatever it looks like.

        Raises what `Rebuilder.rebuild` raises.
        """
        done: list[Rebuilt] = []
        if every:
            done += await self._rebuild([LostSale(sale, Standing.DOUBTED) for sale in await self._lost.on_offer()])
        while lost := await self._lost.find(at_once=True):
            rebuilt = await self._rebuild(lost)
            if not rebuilt:  # another rebuild is at them
                break
            done += rebuilt
        return done

    async def _rebuild(self, lost: Sequence[LostSale]) -> list[Rebuilt]:
        LOST_SALES.set(len(lost))
        if not lost:
            return []
        for each in lost:
            log.warning("sale_lost", sale_id=each.sale.sale_id, product_id=each.sale.product_id, why=each.why.value)
        rebuilt = await self._rebuilder.rebuild([each.sale for each in lost])
        REBUILT.inc(len(rebuilt))
        LOST_SALES.set(len(lost) - len(rebuilt))
        return rebuilt
