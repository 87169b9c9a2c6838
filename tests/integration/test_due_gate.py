"""A worker of retry topics on a broker: it carries what is due, and what waits delays nobody."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest
from aiokafka import TopicPartition

from seckill.domain.order import Order
from seckill.messaging.due_gate import DueGate
from seckill.messaging.envelope import Record, encode
from seckill.messaging.publisher import open_publisher
from seckill.messaging.retry_topics import RetryStory, RetryTier, retry_record
from seckill.settings import KafkaSettings
from tests.servers import Servers
from tests.support.recorder import Recorder, committed, order, until, working
from tests.support.sides import Side, real_side

LONG_MS = 60_000


@pytest.fixture
async def tier(side: Side) -> RetryTier:
    """Its records wait as long as their headers say."""
    topic = f"orders-{uuid4().hex[:8]}-retry-0"
    await side.create_topics(topic)
    return RetryTier(0, topic, LONG_MS)


async def put_off(
    side: Side,
    tier: RetryTier,
    waits: Sequence[tuple[Order, int]],
    key_of: Callable[[Order], bytes] = lambda _: b"one partition",
) -> None:
    """Orders, each with how long it waits (ms)."""
    now_ms = time.time_ns() // 1_000_000
    async with open_publisher(KafkaSettings(bootstrap=side.kafka)) as publisher:
        for waiting, wait_ms in waits:
            record = Record("orders", 0, 0, now_ms, None, encode(waiting))
            _, value, headers = retry_record(record, waiting, tier, RetryStory(3, now_ms, now_ms + wait_ms, "X: x"))
            await publisher.send(tier.topic, key=key_of(waiting), value=value, headers=headers)


def ids(orders: Sequence[Order]) -> list[str]:
    return [each.order_id for each in orders]


async def test_what_is_due_is_carried_and_what_waits_delays_nobody(side: Side, tier: RetryTier) -> None:
    """Due records go through; the partition behind them stands still until the next one is due, and others do not."""
    first, second, third, other = (order(number) for number in range(4))
    carrier, gate, group = Recorder(), DueGate([tier]), f"group-{uuid4().hex[:8]}"
    async with working(side.kafka, tier.topic, group, carrier, gate=gate) as worker:
        await worker.joined.wait()
        await put_off(side, tier, [(first, -1), (second, 3_000), (third, LONG_MS)])
        await until(lambda: ids(carrier.carried) == [first.order_id] and bool(gate.waiting))
        (partition,) = gate.waiting
        async with open_publisher(KafkaSettings(bootstrap=side.kafka)) as publisher:
            for number in range(8):  # some of them into other partitions; without a header they are due at once
                await publisher.send(tier.topic, key=bytes([number]), value=encode(order(number)))
            await publisher.send(tier.topic, key=b"one partition", value=encode(other))
        await until(lambda: len(carrier.carried) > 2)
        due_ms = gate.waiting[partition]
        await until(lambda: second.order_id in ids(carrier.carried))
        assert time.time_ns() // 1_000_000 >= due_ms
        await until(lambda: partition in gate.waiting)
    assert not {third.order_id, other.order_id} & set(ids(carrier.carried))


async def test_a_worker_that_starts_anew_reads_what_waited(side: Side, tier: RetryTier) -> None:
    """What waits is not committed; the next worker waits for it as long as it is still to wait, and no longer."""
    first, second = order(1), order(2)
    one, two, group = Recorder(), Recorder(), f"group-{uuid4().hex[:8]}"
    gate = DueGate([tier])
    async with working(side.kafka, tier.topic, group, one, gate=gate) as worker:
        await worker.joined.wait()
        await put_off(side, tier, [(first, -1), (second, 5_000)])
        await until(lambda: len(one.carried) == 1 and bool(gate.waiting))
        (due_ms,) = gate.waiting.values()
    assert await committed(side.kafka, tier.topic, group) == 1
    async with working(side.kafka, tier.topic, group, two, gate=DueGate([tier])):
        await until(lambda: len(two.carried) == 1)
    assert time.time_ns() // 1_000_000 >= due_ms
    assert (ids(one.carried), ids(two.carried)) == ([first.order_id], [second.order_id])
    assert await committed(side.kafka, tier.topic, group) == 2


async def test_a_partition_that_is_taken_away_is_forgotten(side: Side, tier: RetryTier) -> None:
    """Whoever gets it reads from what is committed; nothing is resumed, or sought, where it is not at home."""
    await put_off(side, tier, [(order(1), LONG_MS)])
    gate = DueGate([tier])
    async with working(side.kafka, tier.topic, f"group-{uuid4().hex[:8]}", Recorder(), gate=gate) as worker:
        await until(lambda: bool(gate.waiting))
        await worker.on_partitions_revoked([TopicPartition(tier.topic, number) for number in range(4)])
        assert not gate.waiting


@pytest.fixture
def real(servers: Servers) -> Side:
    """The stand-in answers the SyncGroup of a second member with an error."""
    return real_side(servers)


async def test_a_rebalance_while_records_wait(real: Side) -> None:
    """A second worker joins while every partition waits, then the first one leaves: each record is carried when it is
    due, by one of them.
    """
    tier = RetryTier(0, f"orders-{uuid4().hex[:8]}-retry-0", LONG_MS)
    await real.create_topics(tier.topic)
    waiting, wait_ms = [order(number) for number in range(40)], 15_000
    began_ms = time.time_ns() // 1_000_000
    await put_off(real, tier, [(each, wait_ms) for each in waiting], key_of=lambda each: each.order_id.encode())
    one, two, group = Recorder(), Recorder(), f"group-{uuid4().hex[:8]}"
    gates = DueGate([tier]), DueGate([tier])
    async with AsyncExitStack() as leaving, AsyncExitStack() as staying:
        await leaving.enter_async_context(working(real.kafka, tier.topic, group, one, gate=gates[0]))
        await until(lambda: len(gates[0].waiting) == 4)
        await staying.enter_async_context(working(real.kafka, tier.topic, group, two, gate=gates[1]))
        await until(lambda: len(gates[0].waiting) == len(gates[1].waiting) == 2)
        assert not gates[0].waiting.keys() & gates[1].waiting.keys()
        await leaving.aclose()
        await until(lambda: len(gates[1].waiting) == 4)
        assert not one.carried + two.carried
        await until(lambda: len(two.carried) == 40)
    assert time.time_ns() // 1_000_000 >= began_ms + wait_ms
    assert sorted(ids(two.carried)) == sorted(ids(waiting))
    assert await committed(real.kafka, tier.topic, group) == 40
