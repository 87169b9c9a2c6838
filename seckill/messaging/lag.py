"""How far the consumer groups are behind, as any onlooker can ask: without joining a group or moving anything.

Only OffsetFetch and ListOffsets are used, which every broker answers, librdkafka's mock cluster included.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Container, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from seckill.domain.errors import PublishUnknown
from seckill.messaging.connection import connection, start
from seckill.messaging.envelope import Record
from seckill.messaging.fetching import fetch
from seckill.messaging.retry_topics import RetryTier
from seckill.settings import KafkaSettings

READ_WITHIN_MS = 3_600_000
"""Longest reading of a whole topic: at 20,000 records a second, which one process decodes, 72 million."""

TAKEN_AT_ONCE = 500

WHOLE_TOPIC_BYTES = 1_048_576

ONE_RECORD_BYTES = 32_768
"""Enough for the batches that producers write; of a larger one a broker sends all that there is."""


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
    onlooker = _onlooker(settings, *topics, group=group, within_ms=within_ms, fetch_bytes=ONE_RECORD_BYTES)
    async with onlooker as (consumer, partitions):
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
    committed = await _committed(consumer, partitions)
    beginnings = await consumer.beginning_offsets(partitions)
    ends = await consumer.end_offsets(partitions)
    return [
        PartitionLag(each.topic, each.partition, committed.get(each), beginnings[each], ends[each])
        for each in partitions
    ]


async def _committed(consumer: Any, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    """Without the partitions where its group has never committed anything."""
    # One request for all of them; the consumer's public way takes one for each, and there are dozens.
    found = await consumer._coordinator.fetch_committed_offsets(partitions)
    return {partition: each.offset for partition, each in found.items()}


async def _oldest_ms(settings: KafkaSettings, group: str, topics: Sequence[str], *, within_ms: int) -> int | None:
    onlooker = _onlooker(settings, *topics, group=group, within_ms=within_ms, fetch_bytes=ONE_RECORD_BYTES)
    async with onlooker as (consumer, partitions):
        _require(settings, topics, partitions)
        ends = _seek_to_committed(consumer, await _lags(consumer, partitions))
        oldest: dict[TopicPartition, int] = {}
        while behind := await _not_at(consumer, ends, oldest):
            fetched = await fetch(consumer, *behind, timeout_ms=200, max_records=len(ends))
            for partition, records in fetched.batches.items():
                oldest.setdefault(partition, min(record.timestamp for record in records))
    return min(oldest.values(), default=None)


def _require(settings: KafkaSettings, topics: Sequence[str], partitions: Sequence[TopicPartition]) -> None:
    """An answer that leaves a topic out is no word of its holding no record."""
    for topic in topics:
        if not any(each.topic == topic for each in partitions):
            raise PublishUnknown(settings.bootstrap, f"topic {topic} has no partitions")


def _seek_to_committed(consumer: Any, lags: Sequence[PartitionLag]) -> dict[TopicPartition, int]:
    """Each partition to where its group goes on; returns where each of them ends."""
    for each in lags:
        consumer.seek(TopicPartition(each.topic, each.partition), max(each.beginning, each.committed or 0))
    return {TopicPartition(each.topic, each.partition): each.end for each in lags}


async def _not_at(
    consumer: Any, ends: Mapping[TopicPartition, int], found: Container[TopicPartition] = ()
) -> list[TopicPartition]:
    """The partitions that have not been read to their ends, without those that are `found`."""
    return [each for each in ends if each not in found and await consumer.position(each) < ends[each]]


async def read_topic(
    settings: KafkaSettings, topic: str, *, wanted: Callable[[Record], bool] | None = None, within_ms: int = 60_000
) -> list[Record]:
    """Every record that the topic holds now and that is wanted, in the order of each partition. Raises PublishUnknown.

    None of a topic that does not exist.
    """
    records: list[Record] = []
    async with _onlooker(settings, topic, group=None, within_ms=within_ms) as (consumer, partitions):
        if not partitions:
            return []
        ends = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning(*partitions)
        while await _not_at(consumer, ends):
            batches = (await fetch(consumer, timeout_ms=200)).batches
            read = [_record(each) for batch in batches.values() for each in batch]
            records += filter(wanted, read) if wanted else read
    return records


async def read_at(
    settings: KafkaSettings, topic: str, places: Collection[tuple[int, int]], *, within_ms: int = 60_000
) -> dict[tuple[int, int], Record]:
    """The records at these places (partition, offset); one that the topic does not hold (any more) is absent.

    Raises PublishUnknown.
    """
    found: dict[tuple[int, int], Record] = {}
    async with _onlooker(settings, topic, group=None, within_ms=within_ms) as (consumer, partitions):
        firsts, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        for each in partitions:
            wanted = sorted(at for number, at in places if number == each.partition and firsts[each] <= at < ends[each])
            consumer.pause(*partitions)
            consumer.resume(each)
            async for record in _at_offsets(consumer, each, wanted):
                found[record.partition, record.offset] = record
    return found


async def _at_offsets(consumer: Any, partition: TopicPartition, offsets: Sequence[int]) -> AsyncIterator[Record]:
    """The records at these offsets, which ascend; one that compaction has taken is left out."""
    wanted = set(offsets)
    for number, offset in enumerate(offsets):
        if number == 0 or offset - await consumer.position(partition) > TAKEN_AT_ONCE:
            consumer.seek(partition, offset)
        while await consumer.position(partition) <= offset:
            fetched = await fetch(consumer, partition, timeout_ms=200, max_records=TAKEN_AT_ONCE)
            for each in fetched.batches.get(partition, ()):
                if each.offset in wanted:
                    yield _record(each)


@dataclass(frozen=True, slots=True)
class Kept:
    """A record that a topic still holds. `passed`: the group had committed it before the reading began."""

    record: Record
    passed: bool


async def read_since(
    settings: KafkaSettings,
    topic: str,
    since_ms: int,
    take: Callable[[Sequence[Kept]], Awaitable[None]],
    *,
    group: str | None = None,
) -> None:
    """Hands over the topic's records since that time, some hundreds at once, in the order of each partition.

    `group` is who passes them; None: the main one.
    Reads to where the topic ends when this is called, for as long as records come. Where the broker does not tell the
    offset of a time, it reads from the beginning. Raises PublishUnknown, also when the broker knows no such topic.
    """
    group, within_ms = group or settings.group, READ_WITHIN_MS
    async with _onlooker(settings, topic, group=group, within_ms=within_ms) as (consumer, partitions):
        _require(settings, [topic], partitions)
        committed = await _committed(consumer, partitions)
        ends = await consumer.end_offsets(partitions)
        firsts = await consumer.beginning_offsets(partitions)
        for each, found in (await consumer.offsets_for_times(dict.fromkeys(partitions, since_ms))).items():
            consumer.seek(each, firsts[each] if found is None else found.offset)
        while behind := await _not_at(consumer, ends):
            fetched = await fetch(consumer, *behind, timeout_ms=settings.request_timeout_ms, max_records=TAKEN_AT_ONCE)
            if not fetched.batches and not fetched.unreadable:
                raise PublishUnknown(settings.bootstrap, f"{topic}: its records do not come")
            records = [each for batch in fetched.batches.values() for each in batch]
            await take(
                [
                    Kept(_record(each), each.offset < committed.get(TopicPartition(each.topic, each.partition), 0))
                    for each in records
                ]
            )


async def read_tiers(
    settings: KafkaSettings,
    tiers: Sequence[RetryTier],
    since_ms: int,
    take: Callable[[Sequence[Kept]], Awaitable[None]],
) -> None:
    """As `read_since`, of the retry topics one after the other: a record moves on to a later one only."""
    for tier in tiers:
        await read_since(settings, tier.topic, since_ms, take, group=settings.retry_group)


async def oldest_record_ms(settings: KafkaSettings, topic: str, *, within_ms: int = 60_000) -> int | None:
    """The lowest time among the first records that the partitions still hold; None when there is no record at all.

    Raises PublishUnknown.
    """
    found: dict[TopicPartition, int] = {}
    onlooker = _onlooker(settings, topic, group=None, within_ms=within_ms, fetch_bytes=ONE_RECORD_BYTES)
    async with onlooker as (consumer, partitions):
        if not partitions:
            return None
        ends = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning(*partitions)
        while waiting := await _not_at(consumer, ends, found):
            for partition, batch in (await fetch(consumer, *waiting, timeout_ms=200)).batches.items():
                found[partition] = batch[0].timestamp
    return min(found.values(), default=None)


@asynccontextmanager
async def _onlooker(
    settings: KafkaSettings, *topics: str, group: str | None, within_ms: int, fetch_bytes: int = WHOLE_TOPIC_BYTES
) -> AsyncIterator[tuple[Any, list[TopicPartition]]]:
    """A consumer assigned to the partitions of these topics by hand (none of a topic that does not exist).

    `fetch_bytes`: of each partition in one fetch.
    """
    consumer = AIOKafkaConsumer(
        **connection(settings),
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        request_timeout_ms=settings.request_timeout_ms,
        max_partition_fetch_bytes=fetch_bytes,
    )
    try:
        async with asyncio.timeout(within_ms / 1000):
            await start(consumer, settings)
            partitions = await _partitions(consumer, topics)
            consumer.assign(partitions)
            yield consumer, partitions
    except (KafkaError, TimeoutError) as error:
        raise PublishUnknown(settings.bootstrap, str(error) or "no answer in time") from error
    finally:
        await _stop(consumer)


async def _partitions(consumer: Any, topics: Sequence[str]) -> list[TopicPartition]:
    """Asks for the metadata of all topics: asking for one by name would make it."""
    cluster = await consumer._client.fetch_all_metadata()  # the consumer has no public way to it
    numbers = {topic: sorted(cluster.partitions_for_topic(topic) or ()) for topic in topics}
    return [TopicPartition(topic, number) for topic in topics for number in numbers[topic]]


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
