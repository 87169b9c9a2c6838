"""A worker that carries nothing: its carrier only notes what it was given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from seckill.domain.errors import InvalidOrder
from seckill.domain.order import Order, order_id_from_key
from seckill.draining import Drain
from seckill.messaging.delivery import Delivered
from seckill.messaging.due_gate import Gate
from seckill.messaging.envelope import Record
from seckill.messaging.worker import Worker, WorkerLimits

LIMITS = WorkerLimits(batch_max=50, groups_per_sale_max=2, inflight_max=200, poll_timeout_ms=50, drain_timeout_ms=3_000)


class Recorder:
    """A carrier that notes what it was given, and can be made to wait."""

    def __init__(self) -> None:
        self.groups: list[list[Order]] = []
        self.buried: list[tuple[Record, InvalidOrder]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = 0
        self.most_at_once = 0
        self._now = 0

    async def carry(self, orders: Sequence[Delivered]) -> None:
        self.entered += len(orders)
        self._now += len(orders)
        self.most_at_once = max(self.most_at_once, self._now)
        await self.gate.wait()
        self._now -= len(orders)
        self.groups.append([delivered.order for delivered in orders])

    async def bury(self, record: Record, error: InvalidOrder) -> None:
        self.buried.append((record, error))

    @property
    def carried(self) -> list[Order]:
        return [order for group in self.groups for order in group]


def order(number: int, *, sale_id: int = 4) -> Order:
    return Order(order_id_from_key(7, uuid4().bytes), sale_id, 100 + number, 7, 1, 1_000, number)


@asynccontextmanager
async def working(
    bootstrap: str, topic: str, group: str, carrier: Recorder, *, drain: Drain | None = None, gate: Gate | None = None
) -> AsyncIterator[Worker]:
    """A running worker; on leaving it stops and drains."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await consumer.start()
    worker = Worker(consumer, carrier, LIMITS, gate=gate, drain=drain)
    running = asyncio.create_task(worker.run([topic]))
    try:
        yield worker
    finally:
        worker.stop()
        await running
        await consumer.stop()


async def publish(bootstrap: str, topic: str, values: Sequence[bytes]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        for value in values:
            await producer.send(topic, value)
    finally:
        await producer.stop()


async def committed(bootstrap: str, topic: str, group: str) -> int:
    """Sum of the group's committed offsets."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(4)]
        consumer.assign(partitions)
        return sum([await consumer.committed(partition) or 0 for partition in partitions])
    finally:
        await consumer.stop()


async def until(condition: Callable[[], bool], *, within_s: float = 15) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)
