"""How far a consumer group is behind, as any onlooker can ask: without joining the group or moving anything.

Only OffsetFetch and ListOffsets are used, which every broker answers, librdkafka's mock cluster included.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from seckill.domain.errors import PublishUnknown
from seckill.messaging.connection import connection, start
from seckill.messaging.envelope import Record
from seckill.settings import KafkaSettings

READ_WITHIN_MS = 3_600_000
"""Longest reading of a whole topic: at 20,000 records a second, which one process decodes, 72 million."""

TAKEN_AT_ONCE = 500


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


async def consumer_lag(settings: KafkaSettings) -> list[PartitionLag]:
    """The group's lag on every partition of the topic. Raises PublishUnknown when no broker answers."""
    within_ms = settings.request_timeout_ms
    async with _onlooker(settings, settings.topic, group=settings.group, within_ms=within_ms) as (consumer, partitions):
        beginnings = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        committed = [await consumer.committed(partition) for partition in partitions]
    return [
        PartitionLag(each.topic, each.partition, offset, beginnings[each], ends[each])
        for each, offset in zip(partitions, committed, strict=True)
    ]


async def oldest_uncommitted_ms(settings: KafkaSettings, *, within_ms: int = 10_000) -> int | None:
    """When the oldest record that the group has not committed was written, over all partitions of the topic.

    None: it has committed everything. Raises PublishUnknown when that cannot be read.
    """
    async with _onlooker(settings, settings.topic, group=settings.group, within_ms=within_ms) as (consumer, partitions):
        if not partitions:  # an answer that leaves the topic out is no word of having passed everything
            raise PublishUnknown(settings.bootstrap, f"topic {settings.topic} has no partitions")
        behind = await _seek_to_committed(consumer, partitions)
        oldest: dict[TopicPartition, int] = {}
        while behind - oldest.keys():
            batches = await consumer.getmany(*(behind - oldest.keys()), timeout_ms=200, max_records=len(behind))
            for partition, records in batches.items():
                oldest.setdefault(partition, min(record.timestamp for record in records))
    return min(oldest.values(), default=None)


async def _seek_to_committed(consumer: Any, partitions: list[TopicPartition]) -> set[TopicPartition]:
    """Each partition to where the group goes on; those that hold records from there."""
    beginnings = await consumer.beginning_offsets(partitions)
    ends = await consumer.end_offsets(partitions)
    behind = set()
    for partition in partitions:
        start_at = max(beginnings[partition], await consumer.committed(partition) or 0)
        consumer.seek(partition, start_at)
        if start_at < ends[partition]:
            behind.add(partition)
    return behind


async def read_topic(settings: KafkaSettings, topic: str, *, within_ms: int = 60_000) -> list[Record]:
    """Every record that the topic holds now, in the order of each partition. Raises PublishUnknown."""
    records: list[Record] = []
    async with _onlooker(settings, topic, group=None, within_ms=within_ms) as (consumer, partitions):
        if not partitions:
            return []
        ends = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning(*partitions)
        while any([await consumer.position(each) < ends[each] for each in partitions]):
            batches = await consumer.getmany(timeout_ms=200)
            records += [_record(each) for batch in batches.values() for each in batch]
    return records


@dataclass(frozen=True, slots=True)
class Kept:
    """A record that a topic still holds. `passed`: the group had committed it before the reading began."""

    record: Record
    passed: bool


async def read_since(
    settings: KafkaSettings, topic: str, since_ms: int, take: Callable[[Sequence[Kept]], Awaitable[None]]
) -> None:
    """Hands over the topic's records since that time, some hundreds at once, in the order of each partition.

    Reads to where the topic ends when this is called, for as long as records come. Where the broker does not tell the
    offset of a time, it reads from the beginning. Raises PublishUnknown, also when the broker knows no such topic.
    """
    group, within_ms = settings.group, READ_WITHIN_MS
    async with _onlooker(settings, topic, group=group, within_ms=within_ms) as (consumer, partitions):
        if not partitions:  # an answer that leaves the topic out is no word of there being no records
            raise PublishUnknown(settings.bootstrap, f"topic {topic} has no partitions")
        committed = {each: await consumer.committed(each) or 0 for each in partitions}
        ends = await consumer.end_offsets(partitions)
        firsts = await consumer.beginning_offsets(partitions)
        for each, found in (await consumer.offsets_for_times(dict.fromkeys(partitions, since_ms))).items():
            consumer.seek(each, firsts[each] if found is None else found.offset)
        while behind := [each for each in partitions if await consumer.position(each) < ends[each]]:
            batches = await consumer.getmany(*behind, timeout_ms=settings.request_timeout_ms, max_records=TAKEN_AT_ONCE)
            if not batches:
                raise PublishUnknown(settings.bootstrap, f"{topic}: its records do not come")
            records = [fetched for batch in batches.values() for fetched in batch]
            await take(
                [
                    Kept(_record(each), each.offset < committed[TopicPartition(each.topic, each.partition)])
                    for each in records
                ]
            )


async def oldest_record_ms(settings: KafkaSettings, topic: str, *, within_ms: int = 60_000) -> int | None:
    """The lowest time among the first records that the partitions still hold; None when there is no record at all.

    Raises PublishUnknown.
    """
    found: dict[TopicPartition, int] = {}
    async with _onlooker(settings, topic, group=None, within_ms=within_ms) as (consumer, partitions):
        if not partitions:
            return None
        ends = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning(*partitions)
        while waiting := [
            each for each in partitions if each not in found and await consumer.position(each) < ends[each]
        ]:
            for partition, batch in (await consumer.getmany(*waiting, timeout_ms=200)).items():
                found[partition] = batch[0].timestamp
    return min(found.values(), default=None)


@asynccontextmanager
async def _onlooker(
    settings: KafkaSettings, topic: str, *, group: str | None, within_ms: int
) -> AsyncIterator[tuple[Any, list[TopicPartition]]]:
    """A consumer assigned to the topic's partitions by hand (none when the topic does not exist)."""
    consumer = AIOKafkaConsumer(
        **connection(settings),
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        request_timeout_ms=settings.request_timeout_ms,
    )
    try:
        async with asyncio.timeout(within_ms / 1000):
            await start(consumer, settings)
            numbers = await _partitions(consumer, topic)
            partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
            consumer.assign(partitions)
            yield consumer, partitions
    except (KafkaError, TimeoutError) as error:
        raise PublishUnknown(settings.bootstrap, str(error) or "no answer in time") from error
    finally:
        await _stop(consumer)


async def _partitions(consumer: Any, topic: str) -> set[int]:
    """Asks for the metadata of all topics: asking for one by name would make it."""
    cluster = await consumer._client.fetch_all_metadata()  # the consumer has no public way to it
    return set(cluster.partitions_for_topic(topic) or ())


async def _stop(consumer: Any) -> None:
    """`stop()` can hang while Kafka is down, so it is bounded."""
    try:
        async with asyncio.timeout(2):
            await consumer.stop()
    except (TimeoutError, KafkaError):
        return


def _record(fetched: Any) -> Record:
    return Record(
        topic=fetched.topic,
        partition=fetched.partition,
        offset=fetched.offset,
        timestamp_ms=fetched.timestamp,
        key=fetched.key,
        value=fetched.value,
        headers=tuple((name, value or b"") for name, value in fetched.headers),
    )
