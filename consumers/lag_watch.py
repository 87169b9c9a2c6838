"""The part of reconcile that shows how far the workers are behind, on the main topic and on the retry topics."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import structlog
from prometheus_client import Gauge

from consumers.reconcile import FAILED
from seckill.domain.errors import PublishUnknown
from seckill.messaging.lag import PartitionLag

log = structlog.get_logger()

LAG = Gauge("seckill_consumer_lag_records", "Records of the main topic that the workers have not committed", ["topic"])
RETRY_LAG = Gauge("seckill_retry_lag_records", "Records of a retry topic that have not been committed", ["topic"])

LOOK_EVERY_MS = 5_000
"""Between two readings: each opens a connection of its own to Kafka."""

ReadLag = Callable[[], Awaitable[Sequence[PartitionLag]]]
"""The lag of every partition. Raises PublishUnknown when Kafka does not tell it."""


class LagWatch:
    """Opens nothing: `read` is its caller's. While Kafka does not answer there is no figure, rather than an old one."""

    def __init__(self, read: ReadLag, *, main_topic: str, every_ms: int = LOOK_EVERY_MS) -> None:
        self._read = read
        self._main_topic = main_topic
        self._every_ms = every_ms

    async def run(self) -> None:
        """Until it is cancelled. A Kafka that is down is asked again."""
        while True:
            await self.once()
            await asyncio.sleep(self._every_ms / 1_000)

    async def once(self) -> None:
        """Sets the gauges to what Kafka says now."""
        try:
            partitions = await self._read()
        except PublishUnknown as error:
            FAILED.labels("lag").inc()
            log.warning("lag_unknown", error=str(error))
            partitions = []
        except Exception:
            FAILED.labels("lag").inc()
            log.exception("lag_failed")  # the loop must outlive what nobody foresaw
            partitions = []
        lags: Counter[str] = Counter()
        for partition in partitions:
            lags[partition.topic] += partition.lag
        LAG.clear()
        RETRY_LAG.clear()
        for topic, lag in lags.items():
            gauge = LAG if topic == self._main_topic else RETRY_LAG
            gauge.labels(topic).set(lag)
