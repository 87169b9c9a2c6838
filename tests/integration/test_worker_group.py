"""A worker and its consumer group: joining after a member that died, and ending when the group will not have it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from uuid import uuid4

from seckill.domain.errors import ConsumerEnded, InvalidOrder
from seckill.messaging.delivery import Delivered
from seckill.messaging.envelope import Record
from seckill.messaging.worker import Worker, WorkerLimits
from seckill.settings import KafkaSettings
from seckill.wiring import open_consumer
from tests.support.sides import Side

LIMITS = WorkerLimits(batch_max=50, groups_per_sale_max=2, inflight_max=200, poll_timeout_ms=50, drain_timeout_ms=3_000)
SESSION_MS = 6_000  # the shortest that a broker takes by default


class Nothing:
    """A carrier for topics without orders."""

    async def carry(self, orders: Sequence[Delivered]) -> None:
        raise AssertionError(orders)

    async def bury(self, record: Record, error: InvalidOrder) -> None:
        raise AssertionError(record)


def settings(bootstrap: str) -> KafkaSettings:
    name = f"group-{uuid4().hex}"
    return KafkaSettings(
        bootstrap=bootstrap, topic=name, group=name, request_timeout_ms=5_000, session_timeout_ms=SESSION_MS
    )


async def test_a_consumer_that_kafka_refuses_ends_the_worker(kafka_server: str) -> None:
    """An error of the group ends the worker with a ConsumerEnded that names it, for a supervisor to start another.

    The stand-in answers the SyncGroup of a second member with an error, which a broker does only for its own faults.
    """
    group = settings(kafka_server)
    async with open_consumer(group) as first, open_consumer(group) as second:
        one, other = Worker(first, Nothing(), LIMITS), Worker(second, Nothing(), LIMITS)
        tasks = [asyncio.create_task(one.run([group.topic]))]
        await one.joined.wait()
        tasks.append(asyncio.create_task(other.run([group.topic])))
        ended, _ = await asyncio.wait(tasks, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        one.stop()
        other.stop()
        errors = [error for error in await asyncio.gather(*tasks, return_exceptions=True) if error is not None]
        assert ended
        assert [type(error) for error in errors] == [ConsumerEnded]
        assert "InvalidRequest" in str(errors[0])


async def join_and_die(group: KafkaSettings) -> None:
    """A member in a process of its own that is killed: no heartbeat any more, and no leave request."""
    member = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.group_member", group.bootstrap, group.topic, group.group, str(SESSION_MS),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert member.stdout is not None
        assert await member.stdout.readline() == b"joined\n"
    finally:
        member.kill()
        await member.wait()


async def test_a_worker_joins_after_a_member_that_died(side: Side) -> None:
    """A member that vanished without leaving keeps its successor out for its session, not for ever."""
    group = settings(side.kafka)
    await side.create_topics(group.topic)
    async with open_consumer(group) as consumer:
        await join_and_die(group)
        worker = Worker(consumer, Nothing(), LIMITS)
        running = asyncio.create_task(worker.run([group.topic]))
        try:
            await asyncio.wait(
                {running, asyncio.ensure_future(worker.joined.wait())},
                timeout=3 * SESSION_MS / 1000,
                return_when=asyncio.FIRST_COMPLETED,
            )
            assert worker.joined.is_set()
        finally:
            worker.stop()
            await running
