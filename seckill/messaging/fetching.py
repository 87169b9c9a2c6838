"""Fetching records of which one cannot be read at all.

Anybody may write a header whose name is not UTF-8. aiokafka raises on it, stays where it is, and drops what it had
taken off other partitions in the same call. Everybody who fetches does it here: such a record holds up nobody.

With it goes what its producer wrote behind it in the same batch, which aiokafka reads from the beginning whenever it
reads any of it: those are as unreadable to us. No producer of ours writes such a header.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from seckill.messaging.clients import ended_task_of

log = structlog.get_logger()

Batches = Mapping[TopicPartition, Sequence[ConsumerRecord]]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came. `unreadable`: the offset of a record that is passed over; nothing else came of its partition."""

    batches: Batches = field(default_factory=dict)
    unreadable: Mapping[TopicPartition, int] = field(default_factory=dict)


async def fetch(
    consumer: AIOKafkaConsumer, *partitions: TopicPartition, timeout_ms: int, max_records: int | None = None
) -> Fetched:
    """As `getmany` of the consumer, of these partitions or of all that it has.

    Raises KafkaError, for a consumer as well that would bring nothing any more, and say nothing of it.
    """
    if ended := ended_task_of(consumer):
        raise KafkaError(ended)
    before = _positions(consumer)
    try:
        return Fetched(await consumer.getmany(*partitions, timeout_ms=timeout_ms, max_records=max_records))
    except UnicodeDecodeError:
        wanted = set(partitions or consumer.assignment()) - consumer.paused()
        await _go_back(consumer, wanted, before)
        return await _one_by_one(consumer, sorted(wanted), timeout_ms=timeout_ms, max_records=max_records)


async def _one_by_one(
    consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition], *, timeout_ms: int, max_records: int | None
) -> Fetched:
    """Up to the first record that cannot be read. It is passed over only when it is the next one of its partition, so
    that whoever goes back to a record before it comes upon it again.
    """
    taken: dict[TopicPartition, list[ConsumerRecord]] = {}
    count = 0
    for partition in partitions:
        while max_records is None or count < max_records:
            try:
                batches = await consumer.getmany(partition, timeout_ms=timeout_ms, max_records=1)
            except UnicodeDecodeError as error:
                if partition in taken:
                    return Fetched(taken)
                offset = await consumer.position(partition)
                consumer.seek(partition, offset + 1)
                log.warning(
                    "record_unreadable", topic=partition.topic, partition=partition.partition, offset=offset,
                    error=f"the name of a header: {error}",
                )  # fmt: skip
                return Fetched(taken, {partition: offset})
            if not (records := batches.get(partition)):
                break
            taken.setdefault(partition, []).extend(records)
            count += len(records)
    return Fetched(taken)


def _positions(consumer: AIOKafkaConsumer) -> dict[TopicPartition, tuple[Any, int]]:
    """Where the consumer is in each partition, and the state that says so: another one comes with a new assignment."""
    # The consumer's public way waits for partitions whose position is not known yet.
    subscription = consumer._subscription.subscription
    assignment = subscription.assignment if subscription is not None else None
    states = {each: assignment.state_value(each) for each in assignment.tps} if assignment is not None else {}
    return {each: (state, state.position) for each, state in states.items() if state.has_valid_position}


async def _go_back(
    consumer: AIOKafkaConsumer, wanted: Collection[TopicPartition], before: Mapping[TopicPartition, tuple[Any, int]]
) -> None:
    """To where each partition was before the fetch; one that has come to this consumer since, to what is committed."""
    now = _positions(consumer)
    for partition in wanted:
        state, offset = before.get(partition, (None, 0))
        if state is not None and partition in now and now[partition][0] is state:
            consumer.seek(partition, offset)
        elif (committed := await consumer.committed(partition)) is not None:
            consumer.seek(partition, committed)
        else:
            await consumer.seek_to_beginning(partition)
