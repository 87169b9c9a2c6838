"""Lets the records of retry topics through when they are due, and holds nobody up meanwhile.

A partition whose next record still waits is paused there, and the consumer polls on: it stays a member of its group.
What waits is read again when it is due; nothing of it is kept here but the time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from seckill.messaging.delivery import record_of
from seckill.messaging.envelope import Record
from seckill.messaging.metrics import WAITING_PARTITIONS
from seckill.messaging.retry_topics import RetryTier, tier_of, waits_until_ms

Batches = Mapping[TopicPartition, Sequence[ConsumerRecord]]


class Gate(Protocol):
    """What stands between a consumer and its worker."""

    def open(self, consumer: AIOKafkaConsumer, *, at_most_ms: int) -> int:
        """Before a fetch: lets come what may come now. Returns for how long, in ms, the fetch may wait."""

    def let_through(self, consumer: AIOKafkaConsumer, batches: Batches) -> Batches:
        """What the worker gets of a fetch. The rest is read again."""

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """They are another worker's now."""


class OpenGate:
    """Lets everything through."""

    def open(self, consumer: AIOKafkaConsumer, *, at_most_ms: int) -> int:
        return at_most_ms

    def let_through(self, consumer: AIOKafkaConsumer, batches: Batches) -> Batches:
        return batches

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """It remembers none."""


def split_due(records: Sequence[Record], tier: RetryTier, *, now_ms: int) -> tuple[int, int | None]:
    """How many records of a partition, from the first on, are due, and until when the next one waits (None: all are).
    Pure.
    """
    for count, record in enumerate(records):
        until_ms = waits_until_ms(record, tier)
        if until_ms > now_ms:
            return count, until_ms
    return len(records), None


class DueGate:
    """`tiers` are those whose topics the consumer reads; records of other topics are always due."""

    def __init__(self, tiers: Sequence[RetryTier], *, now_ms: Callable[[], int] | None = None) -> None:
        self._tiers = tiers
        self._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        self._waiting: dict[TopicPartition, int] = {}  # paused partition → until when

    @property
    def waiting(self) -> Mapping[TopicPartition, int]:
        """The partitions that are paused, and until when (Unix ms)."""
        return self._waiting

    def open(self, consumer: AIOKafkaConsumer, *, at_most_ms: int) -> int:
        now_ms = self._now_ms()
        due = [partition for partition, until_ms in self._waiting.items() if until_ms <= now_ms]
        consumer.resume(*(partition for partition in due if partition in consumer.assignment()))
        self.forget(due)
        return min([at_most_ms, *(until_ms - now_ms for until_ms in self._waiting.values())])

    def let_through(self, consumer: AIOKafkaConsumer, batches: Batches) -> Batches:
        through: dict[TopicPartition, Sequence[ConsumerRecord]] = {}
        for partition, fetched in batches.items():
            tier = tier_of(partition.topic, self._tiers)
            count, until_ms = len(fetched), None
            if tier is not None:
                count, until_ms = split_due([record_of(each) for each in fetched], tier, now_ms=self._now_ms())
            if count:
                through[partition] = fetched[:count]
            if until_ms is not None:
                consumer.pause(partition)
                consumer.seek(partition, fetched[count].offset)
                self._waiting[partition] = until_ms
        self._count()
        return through

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            self._waiting.pop(partition, None)
        self._count()

    def _count(self) -> None:
        waiting = Counter(partition.topic for partition in self._waiting)
        for tier in self._tiers:
            WAITING_PARTITIONS.labels(tier.number).set(waiting[tier.topic])
