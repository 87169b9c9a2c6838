"""What reconcile shows of the workers' lag."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import Gauge

from consumers.lag_watch import LAG, RETRY_LAG, LagWatch
from seckill.domain.errors import PublishUnknown
from seckill.messaging.lag import PartitionLag


def _shown(gauge: Gauge) -> dict[str, float]:
    return {sample.labels["topic"]: sample.value for metric in gauge.collect() for sample in metric.samples}


async def test_lag_is_shown_by_topic_and_apart_for_retry_topics() -> None:
    """Partitions of a topic add up; what waits in a retry topic is no lag of the workers."""

    async def read() -> Sequence[PartitionLag]:
        return [
            PartitionLag("sale", 0, 7, 0, 10),
            PartitionLag("sale", 1, None, 5, 9),
            PartitionLag("sale-retry-0", 0, 2, 0, 2),
            PartitionLag("sale-retry-1", 0, 0, 0, 6),
        ]

    await LagWatch(read, main_topic="sale").once()
    assert _shown(LAG) == {"sale": 7}
    assert _shown(RETRY_LAG) == {"sale-retry-0": 0, "sale-retry-1": 6}


async def test_a_lag_that_cannot_be_read_is_not_shown() -> None:
    """A Kafka that does not answer takes the last figure away: an alert on its absence can tell."""
    answers: list[Sequence[PartitionLag]] = [[PartitionLag("sale", 0, 0, 0, 3)]]

    async def read() -> Sequence[PartitionLag]:
        if not answers:
            raise PublishUnknown("nowhere:9092", "no answer in time")
        return answers.pop()

    watch = LagWatch(read, main_topic="sale")
    await watch.once()
    assert _shown(LAG) == {"sale": 3}
    await watch.once()
    assert _shown(LAG) == {}
