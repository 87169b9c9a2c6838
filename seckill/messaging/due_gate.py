"""Lets the records of retry topics through when they are due, and holds nobody up meanwhile.

A partition whose next record still waits is paused there, and the consumer polls on: it stays a member of its group.
What waits is read again when it is due; nothing of it is kept here but the time.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from seckill.messaging.delivery import record_of
from seckill.messaging.envelope import Record
from seckill.messaging.fetching import Batches
from seckill.messaging.metrics import WAITING_PARTITIONS
from seckill.messaging.retry_topics import RetryTier, tier_of, waits_until_ms


class Gate(Protocol):
    """What stands between a consumer and its worker."""

    def open(self, consumer: AIOKafkaConsumer, *, at_most_ms: int) -> int:
        """Before a fetch: lets come what may come now. Returns for how long, in ms, the fetch may wait."""

    def let_through(self, consumer: AIOKafkaConsumer, batches: Batches) -> Batches:
        """What the worker gets of a fetch. The rest is read again."""

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """They are another worker's now."""


class OpenGate:
    """Lets everything through."""

    def open(self, consumer: AIOKafkaConsumer, *, at_most_ms: int) -> int:
        return at_most_ms

    def let_through(self, consumer: AIOKafkaConsumer, batches: Batches) -> Batches:
        return batches

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """It remembers none."""


@dataclass(slots=True)
class Seen:
    """When the records of a partition were first fetched: ascending offsets, each with the time for it and below."""

    marks: deque[tuple[int, int]] = field(default_factory=deque)

    def note(self, last: int, *, now_ms: int) -> None:
        """A fetch came as far as this offset."""
        if not self.marks or last > self.marks[-1][0]:
            self.marks.append((last, now_ms))

    def when(self, offset: int, *, now_ms: int) -> int:
        return next((at_ms for last, at_ms in self.marks if offset <= last), now_ms)

    def passed(self, offset: int) -> None:
        """What is below is not read again."""
        while self.marks and self.marks[0][0] < offset:
            self.marks.popleft()


def split_due(records: Sequence[Record], tier: RetryTier, seen: Seen, *, now_ms: int) -> tuple[int, int | None]:
    """How many records of a partition, from the first on, are due, and until when the next one waits (None: all are).
    Pure.
    """
    for count, record in enumerate(records):
        until_ms = waits_until_ms(record, tier, seen_ms=seen.when(record.offset, now_ms=now_ms))
        if until_ms > now_ms:
            return count, until_ms
    return len(records), None


class DueGate:
    """`tiers` are those whose topics the consumer reads; records of other topics are always due."""

    def __init__(self, tiers: Sequence[RetryTier], *, now_ms: Callable[[], int] | None = None) -> None:
        self._tiers = tiers
        self._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        self._waiting: dict[TopicPartition, int] = {}  # paused partition → until when
        self._seen: defaultdict[TopicPartition, Seen] = defaultdict(Seen)

    @property
    def waiting(self) -> Mapping[TopicPartition, int]:
        """The partitions that are paused, and until when (Unix ms)."""
        return self._waiting

    def open(self, consumer: AIOKafkaConsumer, *, at_most_ms: int) -> int:
        now_ms = self._now_ms()
        due = [partition for partition, until_ms in self._waiting.items() if until_ms <= now_ms]
        consumer.resume(*(partition for partition in due if partition in consumer.assignment()))
        self._let_go(due)
        return min([at_most_ms, *(until_ms - now_ms for until_ms in self._waiting.values())])

    def let_through(self, consumer: AIOKafkaConsumer, batches: Batches) -> Batches:
        through: dict[TopicPartition, Sequence[ConsumerRecord]] = {}
        for partition, fetched in batches.items():
            tier = tier_of(partition.topic, self._tiers)
            count, until_ms = len(fetched), None
            if tier is not None and fetched:
                seen, now_ms = self._seen[partition], self._now_ms()
                seen.note(fetched[-1].offset, now_ms=now_ms)
                count, until_ms = split_due([record_of(each) for each in fetched], tier, seen, now_ms=now_ms)
                seen.passed(fetched[-1].offset + 1 if until_ms is None else fetched[count].offset)
            if count:
                through[partition] = fetched[:count]
            if until_ms is not None:
                consumer.pause(partition)
                consumer.seek(partition, fetched[count].offset)
                self._waiting[partition] = until_ms
        self._count()
        return through

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        for partition in partitions:
            self._seen.pop(partition, None)
        self._let_go(partitions)

    def _let_go(self, partitions: Collection[TopicPartition]) -> None:
        for partition in partitions:
            self._waiting.pop(partition, None)
        self._count()

    def _count(self) -> None:
        waiting = Counter(partition.topic for partition in self._waiting)
        for tier in self._tiers:
            WAITING_PARTITIONS.labels(tier.number).set(waiting[tier.topic])
