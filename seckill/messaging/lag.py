"""How far the consumer groups are behind, as any onlooker can ask: without joining a group or moving anything.

Only OffsetFetch and ListOffsets are used, which every broker answers, librdkafka's mock cluster included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition

from seckill.messaging.fetching import fetch
from seckill.messaging.onlooker import ONE_RECORD_BYTES, committed_offsets, not_at, onlooker, require_partitions
from seckill.messaging.retry_topics import RetryTier
from seckill.settings import KafkaSettings


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """`committed` is None when the group never committed here: then everything that is still kept counts."""

    topic: str
    partition: int
    committed: int | None
    beginning: int
    end: int

    @property
    def lag(self) -> int:
        return max(0, self.end - max(self.beginning, self.committed or 0))


async def consumer_lag(settings: KafkaSettings, tiers: Sequence[RetryTier] = ()) -> list[PartitionLag]:
    """The lag on every partition of the topic, then of the retry topics; each counts for the group that reads it.

    What moves on while this looks may count twice, and never not at all. Raises PublishUnknown when no broker answers.
    """
    found: list[PartitionLag] = []
    for group, topics in _read_by(settings, tiers):
        found += await group_lag(settings, group, topics)
    return found


async def group_lag(settings: KafkaSettings, group: str, topics: Sequence[str]) -> list[PartitionLag]:
    """The group's lag on every partition of those of the topics that there are. Raises PublishUnknown."""
    within_ms = settings.request_timeout_ms
    looking = onlooker(settings, *topics, group=group, within_ms=within_ms, fetch_bytes=ONE_RECORD_BYTES)
    async with looking as (consumer, partitions):
        return await _lags(consumer, partitions)


async def oldest_uncommitted_ms(
    settings: KafkaSettings, tiers: Sequence[RetryTier] = (), *, within_ms: int = 10_000
) -> int | None:
    """When the oldest record that its group has not committed was written, over the topic and the retry topics.

    None: everything is committed. `within_ms` is for each of the two groups. Raises PublishUnknown when that cannot be
    read.
    """
    oldest = [
        await _oldest_ms(settings, group, topics, within_ms=within_ms) for group, topics in _read_by(settings, tiers)
    ]
    return min((each for each in oldest if each is not None), default=None)


def _read_by(settings: KafkaSettings, tiers: Sequence[RetryTier]) -> list[tuple[str, Sequence[str]]]:
    """The groups and what they read, in the order in which a record moves on, which is the one to look in.

    A record is in the next topic before its group passes it in the one before. Who looks the other way round can miss
    it in both.
    """
    main = (settings.group, [settings.topic])
    return [main, (settings.retry_group, [tier.topic for tier in tiers])] if tiers else [main]


async def _lags(consumer: Any, partitions: Sequence[TopicPartition]) -> list[PartitionLag]:
    """What is committed is asked first, of all of them: a record that moves from topic to topic meanwhile is seen."""
    committed = await committed_offsets(consumer, partitions)
    beginnings = await consumer.beginning_offsets(partitions)
    ends = await consumer.end_offsets(partitions)
    return [
        PartitionLag(each.topic, each.partition, committed.get(each), beginnings[each], ends[each])
        for each in partitions
    ]


async def _oldest_ms(settings: KafkaSettings, group: str, topics: Sequence[str], *, within_ms: int) -> int | None:
    looking = onlooker(settings, *topics, group=group, within_ms=within_ms, fetch_bytes=ONE_RECORD_BYTES)
    async with looking as (consumer, partitions):
        require_partitions(settings, topics, partitions)
        ends = _seek_to_committed(consumer, await _lags(consumer, partitions))
        oldest: dict[TopicPartition, int] = {}
        while behind := await not_at(consumer, ends, oldest):
            fetched = await fetch(consumer, *behind, timeout_ms=200, max_records=len(ends))
            for partition, records in fetched.batches.items():
                oldest.setdefault(partition, min(record.timestamp for record in records))
    return min(oldest.values(), default=None)


def _seek_to_committed(consumer: Any, lags: Sequence[PartitionLag]) -> dict[TopicPartition, int]:
    """Each partition to where its group goes on; returns where each of them ends."""
    for each in lags:
        consumer.seek(TopicPartition(each.topic, each.partition), max(each.beginning, each.committed or 0))
    return {TopicPartition(each.topic, each.partition): each.end for each in lags}
