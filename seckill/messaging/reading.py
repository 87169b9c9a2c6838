"""What topics hold, read as any onlooker can: whole, since a time, or at some places."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition

from seckill.domain.errors import PublishUnknown
from seckill.messaging.delivery import record_of
from seckill.messaging.envelope import Record
from seckill.messaging.fetching import fetch
from seckill.messaging.onlooker import ONE_RECORD_BYTES, committed_offsets, not_at, onlooker, require_partitions
from seckill.messaging.retry_topics import RetryTier
from seckill.settings import KafkaSettings

READ_WITHIN_MS = 3_600_000
"""Longest reading of a whole topic: at 20,000 records a second, which one process decodes, 72 million."""

TAKEN_AT_ONCE = 500


async def read_topic(
    settings: KafkaSettings, topic: str, *, wanted: Callable[[Record], bool] | None = None, within_ms: int = 60_000
) -> list[Record]:
    """Every record that the topic holds now and that is wanted, in the order of each partition. Raises PublishUnknown.

    None of a topic that does not exist.
    """
    records: list[Record] = []
    async with onlooker(settings, topic, group=None, within_ms=within_ms) as (consumer, partitions):
        if not partitions:
            return []
        ends = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning(*partitions)
        while await not_at(consumer, ends):
            batches = (await fetch(consumer, timeout_ms=200)).batches
            read = [record_of(each) for batch in batches.values() for each in batch]
            records += filter(wanted, read) if wanted else read
    return records


async def read_at(
    settings: KafkaSettings, topic: str, places: Collection[tuple[int, int]], *, within_ms: int = 60_000
) -> dict[tuple[int, int], Record]:
    """The records at these places (partition, offset); one that the topic does not hold (any more) is absent.

    Raises PublishUnknown.
    """
    found: dict[tuple[int, int], Record] = {}
    async with onlooker(settings, topic, group=None, within_ms=within_ms) as (consumer, partitions):
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
                    yield record_of(each)


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
    async with onlooker(settings, topic, group=group, within_ms=within_ms) as (consumer, partitions):
        require_partitions(settings, [topic], partitions)
        committed = await committed_offsets(consumer, partitions)
        ends = await consumer.end_offsets(partitions)
        firsts = await consumer.beginning_offsets(partitions)
        for each, found in (await consumer.offsets_for_times(dict.fromkeys(partitions, since_ms))).items():
            consumer.seek(each, firsts[each] if found is None else found.offset)
        while behind := await not_at(consumer, ends):
            fetched = await fetch(consumer, *behind, timeout_ms=settings.request_timeout_ms, max_records=TAKEN_AT_ONCE)
            if not fetched.batches and not fetched.unreadable:
                raise PublishUnknown(settings.bootstrap, f"{topic}: its records do not come")
            records = [each for batch in fetched.batches.values() for each in batch]
            await take(
                [
                    Kept(record_of(each), each.offset < committed.get(TopicPartition(each.topic, each.partition), 0))
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
    looking = onlooker(settings, topic, group=None, within_ms=within_ms, fetch_bytes=ONE_RECORD_BYTES)
    async with looking as (consumer, partitions):
        if not partitions:
            return None
        ends = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning(*partitions)
        while waiting := await not_at(consumer, ends, found):
            for partition, batch in (await fetch(consumer, *waiting, timeout_ms=200)).batches.items():
                found[partition] = batch[0].timestamp
    return min(found.values(), default=None)
