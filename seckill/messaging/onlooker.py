"""A consumer that only looks: it joins no group and moves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Container, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from seckill.domain.errors import PublishUnknown
from seckill.messaging.clients import make_consumer
from seckill.messaging.connection import start
from seckill.settings import KafkaSettings

WHOLE_TOPIC_BYTES = 1_048_576

ONE_RECORD_BYTES = 32_768
"""Enough for the batches that producers write; of a larger one a broker sends all that there is."""


@asynccontextmanager
async def onlooker(
    settings: KafkaSettings, *topics: str, group: str | None, within_ms: int, fetch_bytes: int = WHOLE_TOPIC_BYTES
) -> AsyncIterator[tuple[Any, list[TopicPartition]]]:
    """A consumer assigned to the partitions of these topics by hand (none of a topic that does not exist).

    `fetch_bytes`: of each partition in one fetch.
    """
    consumer = make_consumer(
        settings,
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


async def committed_offsets(consumer: Any, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    """Without the partitions where its group has never committed anything."""
    # One request for all of them; the consumer's public way takes one for each, and there are dozens.
    found = await consumer._coordinator.fetch_committed_offsets(partitions)
    return {partition: each.offset for partition, each in found.items()}


def require_partitions(settings: KafkaSettings, topics: Sequence[str], partitions: Sequence[TopicPartition]) -> None:
    """An answer that leaves a topic out is no word of its holding no record."""
    for topic in topics:
        if not any(each.topic == topic for each in partitions):
            raise PublishUnknown(settings.bootstrap, f"topic {topic} has no partitions")


async def not_at(
    consumer: Any, ends: Mapping[TopicPartition, int], found: Container[TopicPartition] = ()
) -> list[TopicPartition]:
    """The partitions that have not been read to their ends, without those that are `found`."""
    return [each for each in ends if each not in found and await consumer.position(each) < ends[each]]


async def _stop(consumer: Any) -> None:
    """`stop()` can hang while Kafka is down, so it is bounded."""
    try:
        async with asyncio.timeout(2):
            await consumer.stop()
    except (TimeoutError, KafkaError):
        return
