"""What a worker hands to its carrier, and takes back when it has been routed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aiokafka import ConsumerRecord, TopicPartition

from seckill.domain.errors import InvalidOrder
from seckill.domain.order import Order
from seckill.messaging.envelope import Record
from seckill.messaging.offsets import PartitionProgress


@dataclass(slots=True)
class Arrival:
    """One record in the worker's hands, until everything in it is routed."""

    partition: TopicPartition
    progress: PartitionProgress
    record: Record
    unrouted: int = 1


@dataclass(frozen=True, slots=True)
class Delivered:
    """An order and the record that brought it. `alone`: the record holds nothing else."""

    order: Order
    record: Record
    arrival: Arrival
    alone: bool = True


class Carrier(Protocol):
    """What a worker does with what it fetched. Both return only after the order or record has been routed."""

    async def carry(self, orders: Sequence[Delivered]) -> None:
        """Orders of one sale, each record routed when this returns."""

    async def bury(self, record: Record, error: InvalidOrder) -> None:
        """A record that holds no order."""


def record_of(fetched: ConsumerRecord) -> Record:
    """A record as the client gives it."""
    return Record(
        topic=fetched.topic,
        partition=fetched.partition,
        offset=fetched.offset,
        timestamp_ms=fetched.timestamp,
        key=fetched.key,
        value=fetched.value,
        headers=tuple(fetched.headers),
    )
