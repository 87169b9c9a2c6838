"""The consumer's loop on a Kafka broker: group, route, then commit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition

from seckill.domain.reasons import DeadLetterReason
from seckill.draining import Drain
from seckill.messaging.envelope import ORIGIN_HEADER, encode
from seckill.messaging.lag import oldest_uncommitted_ms
from seckill.messaging.reading import Kept, oldest_record_ms, read_at, read_since, read_topic
from seckill.messaging.worker import WorkerLimits
from seckill.settings import KafkaSettings
from tests.support.odd_header import write_odd_header
from tests.support.recorder import LIMITS, Recorder, committed, order, publish, until, working
from tests.support.sides import Side


@pytest.fixture
def kafka(side: Side) -> str:
    """Bootstrap address."""
    return side.kafka


@pytest.fixture
async def topic(side: Side) -> str:
    name = f"orders-{uuid4().hex[:8]}"
    await side.create_topics(name)
    return name


@pytest.fixture
def group() -> str:
    return f"group-{uuid4().hex[:8]}"


async def test_a_backlog_forms_groups_of_one_sale(kafka: str, topic: str, group: str) -> None:
    """What waits for one sale is carried together, bounded by the batch, and no group mixes sales."""
    orders = [order(n, sale_id=4 + n % 2) for n in range(300)]
    await publish(kafka, topic, [encode(each) for each in orders])
    carrier = Recorder()
    async with working(kafka, topic, group, carrier):
        await until(lambda: len(carrier.carried) == 300)
    assert {o.order_id for o in carrier.carried} == {o.order_id for o in orders}
    assert all(len({o.sale_id for o in each}) == 1 and len(each) <= LIMITS.batch_max for each in carrier.groups)
    assert len(carrier.groups) < 60
    assert await committed(kafka, topic, group) == 300


async def test_a_header_whose_name_is_no_text_holds_up_nobody(kafka: str, topic: str, group: str) -> None:
    """Its record, and what its producer wrote behind it in the same batch, are set aside by their places; everything
    else is carried, what was fetched with them too.
    """
    first, behind, *orders = [order(number) for number in range(20)]
    await write_odd_header(kafka, topic, encode(first), encode(behind))
    await publish(kafka, topic, [encode(each) for each in orders])
    carrier = Recorder()
    async with working(kafka, topic, group, carrier):
        await until(lambda: len(carrier.carried) == 19 and len(carrier.buried) == 2)
    assert {each.order_id for each in carrier.carried} == {each.order_id for each in (first, *orders)}
    assert [(record.partition, record.offset, record.value) for record, _ in carrier.buried] == [
        (0, 1, None), (0, 2, None)
    ]  # fmt: skip
    assert {error.dead_letter_reason for _, error in carrier.buried} == {DeadLetterReason.UNREADABLE}
    assert await committed(kafka, topic, group) == 21


async def test_a_record_that_cannot_be_read_is_nobodys_order(kafka: str, topic: str, group: str) -> None:
    """Not for the watermark, without which no lost order of any product is published again, nor for a rebuild."""
    settings = KafkaSettings(bootstrap=kafka, topic=topic, group=group)
    await write_odd_header(kafka, topic)
    assert await oldest_uncommitted_ms(settings) is None
    assert await oldest_record_ms(settings, topic) is None
    kept: list[Kept] = []

    async def take(records: Sequence[Kept]) -> None:
        kept.extend(records)

    await write_odd_header(kafka, topic, b"one")
    assert await oldest_uncommitted_ms(settings) is not None
    await read_since(settings, topic, 0, take)
    assert [each.record.value for each in kept] == [b"one"]
    assert [record.value for record in await read_topic(settings, topic)] == [b"one"]
    assert list(await read_at(settings, topic, [(0, 0), (0, 1), (0, 2)])) == [(0, 1)]


async def test_the_watermark_knows_records_of_any_size(kafka: str, topic: str, group: str) -> None:
    """It fetches little of each partition, and a large record all the same, of every partition that begins with one."""
    settings = KafkaSettings(bootstrap=kafka, topic=topic, group=group)
    began_ms = time.time_ns() // 1_000_000
    await publish(kafka, topic, [b"x" * 300_000] * 16)
    oldest_ms = await oldest_uncommitted_ms(settings)
    assert oldest_ms is not None
    assert began_ms - 1_000 < oldest_ms <= min(record.timestamp_ms for record in await read_topic(settings, topic))
    assert await oldest_record_ms(settings, topic) == oldest_ms


async def test_nothing_is_committed_before_it_is_routed(kafka: str, topic: str, group: str) -> None:
    """A worker that is cut off in the middle of a group leaves its records to the next one.

    No reconcile runs here, and no ledger is there: it would bring the orders back, and so hide offsets that were
    committed too early.
    """
    await publish(kafka, topic, [encode(order(n)) for n in range(20)])
    stuck = Recorder()
    stuck.gate.clear()
    async with working(kafka, topic, group, stuck) as worker:
        await until(lambda: stuck.entered == 20)
        worker._limits = WorkerLimits(50, 2, 200, 50, drain_timeout_ms=200)
    assert stuck.carried == []
    assert await committed(kafka, topic, group) == 0
    carrier = Recorder()
    async with working(kafka, topic, group, carrier):
        await until(lambda: len(carrier.carried) == 20)


async def test_a_stop_finishes_what_was_fetched(kafka: str, topic: str, group: str) -> None:
    """Stopping waits for the groups in hand and commits them."""
    await publish(kafka, topic, [encode(order(n)) for n in range(20)])
    carrier = Recorder()
    carrier.gate.clear()
    async with working(kafka, topic, group, carrier) as worker:
        await until(lambda: carrier.entered == 20)
        worker.stop()
        await asyncio.sleep(0.2)
        carrier.gate.set()
    assert len(carrier.carried) == 20
    assert await committed(kafka, topic, group) == 20


async def test_a_stop_keeps_its_deadline(kafka: str, topic: str, group: str) -> None:
    """A group that does not end is cut off before the deadline, told by number, and not committed."""
    await publish(kafka, topic, [encode(order(n)) for n in range(20)])
    stuck, drain = Recorder(), Drain(1_000)
    stuck.gate.clear()
    async with working(kafka, topic, group, stuck, drain=drain) as worker:
        await until(lambda: stuck.entered == 20)
        worker.stop()
        began = time.monotonic()
        await until(lambda: bool(drain.left))
        assert 0.5 < time.monotonic() - began < 1
    assert drain.left == {"orders": 20}
    assert await committed(kafka, topic, group) == 0


async def test_work_in_hand_is_bounded(kafka: str, topic: str, group: str) -> None:
    """A worker whose services are slow stops fetching at its bound, whatever waits in the topic."""
    await publish(kafka, topic, [encode(order(n, sale_id=1 + n % 20)) for n in range(600)])
    carrier = Recorder()
    carrier.gate.clear()
    async with working(kafka, topic, group, carrier) as worker:
        await until(lambda: carrier.entered >= 100)
        await asyncio.sleep(0.5)
        assert worker._inflight <= LIMITS.inflight_max
        carrier.gate.set()
        await until(lambda: len(carrier.carried) == 600)
    assert carrier.most_at_once <= LIMITS.inflight_max


async def test_a_record_that_is_no_order_is_buried_and_the_rest_goes_on(kafka: str, topic: str, group: str) -> None:
    """Unreadable bytes, a wrong field and the article's array side by side: each goes its way, all are committed."""
    good = order(1)
    values = [b"\xff\x00", b'{"order_id":"x"}', b'[{"uid":5,"pid":7},{"uid":6,"pid":7}]', encode(good)]
    await publish(kafka, topic, values)
    carrier = Recorder()
    async with working(kafka, topic, group, carrier):
        await until(lambda: len(carrier.carried) == 3 and len(carrier.buried) == 2)
    assert {record.value for record, _ in carrier.buried} == {b"\xff\x00", b'{"order_id":"x"}'}
    assert good in carrier.carried
    assert await committed(kafka, topic, group) == 4


async def test_a_rebalance_waits_for_what_is_in_hand(kafka: str, topic: str, group: str) -> None:
    """Partitions are given up only after their groups have been routed and their offsets committed."""
    await publish(kafka, topic, [encode(order(n)) for n in range(20)])
    carrier = Recorder()
    carrier.gate.clear()
    async with working(kafka, topic, group, carrier) as worker:
        await until(lambda: carrier.entered == 20)
        partitions = [TopicPartition(topic, number) for number in range(4)]
        revoking = asyncio.create_task(worker.on_partitions_revoked(partitions))
        await asyncio.sleep(0.3)
        assert not revoking.done()
        carrier.gate.set()
        await revoking
        assert await committed(kafka, topic, group) == 20


async def test_the_next_worker_goes_on_where_the_last_one_stopped(kafka: str, topic: str, group: str) -> None:
    """A worker that follows another in its group carries what came since, and nothing again."""
    first_half, second_half = [order(n) for n in range(100)], [order(n) for n in range(100, 200)]
    one, two = Recorder(), Recorder()
    await publish(kafka, topic, [encode(each) for each in first_half])
    async with working(kafka, topic, group, one):
        await until(lambda: len(one.carried) == 100)
    await publish(kafka, topic, [encode(each) for each in second_half])
    async with working(kafka, topic, group, two):
        await until(lambda: len(two.carried) == 100)
    assert {o.order_id for o in two.carried} == {o.order_id for o in second_half}
    assert await committed(kafka, topic, group) == 200


async def test_no_record_ends_the_worker(kafka: str, topic: str, group: str) -> None:
    """Nesting beyond reason, no value, headers without one: each record is routed, and the next order goes on."""
    good, array = order(1), b'[{"uid":5,"pid":7}]'
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    try:
        await producer.send(topic, b'{"order_id":' + b"[" * 100_000)
        await producer.send(topic, None, key=b"k")
        for header in (None, b"t/0/1/" + b"9" * 5_000):
            await producer.send(topic, array, headers=[(ORIGIN_HEADER, header)])
        await producer.send(topic, encode(good))
    finally:
        await producer.stop()
    carrier = Recorder()
    async with working(kafka, topic, group, carrier):
        await until(lambda: len(carrier.carried) == 3 and len(carrier.buried) == 2)
    assert good in carrier.carried
    assert await committed(kafka, topic, group) == 5
