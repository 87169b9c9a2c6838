"""What only a real broker does: workers of one group that hand over to each other under load, and a restart.

The stand-in for Kafka cannot rebalance; see also `test_worker_group.py`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from seckill.audit.reading import read_facts
from seckill.audit.rules import judge
from seckill.audit.stores import open_stores, rest
from seckill.client import open_front
from seckill.domain.errors import InvalidOrder
from seckill.domain.order import Order, Sale
from seckill.messaging.delivery import Carrier, Delivered
from seckill.messaging.envelope import Record, decode
from seckill.messaging.publisher import Publisher, open_publisher
from seckill.messaging.reading import read_topic
from seckill.messaging.worker import Worker, WorkerLimits
from seckill.settings import Settings
from seckill.wiring import ROLES, open_carrier, open_consumer, with_values
from tests.servers import Servers, native
from tests.support.backbone import Backbone, open_backbone
from tests.support.restless_buyers import Crowd
from tests.support.sides import Side, real_side

LIMITS = WorkerLimits(
    batch_max=20, groups_per_sale_max=2, inflight_max=300, poll_timeout_ms=50, drain_timeout_ms=10_000
)
OPERATOR_TOKEN = "for-tests-only"

pytestmark = pytest.mark.slow


@pytest.fixture
def real(servers: Servers) -> Side:
    return real_side(servers)


@dataclass
class Counting:
    """The pipeline's own carrier; it counts what it has carried."""

    carrier: Carrier
    carried: int = 0

    async def carry(self, orders: Sequence[Delivered]) -> None:
        await self.carrier.carry(orders)
        self.carried += len(orders)

    async def bury(self, record: Record, error: InvalidOrder) -> None:
        raise AssertionError(record)


class RunningWorker:
    """A worker of the group, which can be told to leave it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self.counting: Counting
        self.worker: Worker
        self.task: asyncio.Task[None]

    @property
    def carried(self) -> int:
        return self.counting.carried

    async def start(self) -> None:
        carrier, _ = await self._stack.enter_async_context(open_carrier(self._settings))
        consumer = await self._stack.enter_async_context(open_consumer(self._settings.kafka))
        self.counting = Counting(carrier)
        self.worker = Worker(consumer, self.counting, LIMITS)
        self.task = asyncio.create_task(self.worker.run([self._settings.kafka.topic]))

    async def leave(self) -> None:
        self.worker.stop()
        await self.task
        await self._stack.aclose()


async def until(condition: Callable[[], bool], *, within_s: float = 30) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


async def test_workers_hand_over_under_load(real: Side, tmp_path: Path) -> None:
    """A second worker joins while the first is carrying, then the first one leaves: every order ends exactly once."""
    async with open_backbone(real, tmp_path) as backbone, open_publisher(backbone.settings.kafka) as publisher:
        sale = await backbone.open_sale(stock=100_000)
        orders: list[Order] = []
        enough = asyncio.Event()
        fed = asyncio.create_task(feed(backbone, publisher, sale, orders, enough))
        one, two = RunningWorker(backbone.settings), RunningWorker(backbone.settings)
        await one.start()
        await until(lambda: one.carried > 100)
        await two.start()
        await until(lambda: two.carried > 100)
        before = one.carried
        await until(lambda: one.carried > before + 100)  # both have partitions now, and go on with them
        await one.leave()
        before = two.carried
        await until(lambda: two.carried > before + 200)
        enough.set()
        await fed
        async with open_stores(backbone.settings) as stores:
            unrest = await rest(stores, [sale.product_id], timeout_s=30)
            verdict = judge(
                await read_facts(stores, accepted=[o.order_id for o in orders], product_ids=[sale.product_id])
            )
        await two.leave()
    assert not unrest
    assert verdict.holds, verdict.breaches
    assert verdict.confirmed == len(orders) > 500
    assert one.carried + two.carried < 1.5 * len(orders)  # handing over is clean: few records come twice


async def feed(
    backbone: Backbone, publisher: Publisher, sale: Sale, orders: list[Order], enough: asyncio.Event
) -> None:
    """Admits and publishes orders of ever new buyers, up to 500 a second."""
    while not enough.is_set():
        ten = await asyncio.gather(*(backbone.admit(sale, len(orders) + user) for user in range(1, 11)))
        await asyncio.gather(*(publisher.publish(order) for order in ten))
        orders += ten
        await asyncio.sleep(0.02)


# --- the broker restarts ---------------------------------------------------------------------------------------------


async def test_a_killed_broker_loses_no_order(real: Side, tmp_path: Path) -> None:
    """The broker is killed under load and comes back after seconds: what was answered 202 or PENDING ends once.

    Front and worker live through it, without being started again.
    """
    with native.kafka_process(tmp_path / "kafka") as broker:
        async with open_pipeline(real, tmp_path, broker.bootstrap) as (settings, crowd):
            ordering = asyncio.create_task(crowd.order_for(9, per_second=60))
            await asyncio.sleep(2)
            await asyncio.to_thread(broker.kill)
            await asyncio.sleep(2)
            await asyncio.to_thread(broker.start)
            await ordering
            async with open_stores(settings) as stores:
                unrest = await rest(stores, crowd.products, timeout_s=45)
                promised = {*crowd.accepted, *crowd.unsure, *crowd.direct}
                for record in await read_topic(settings.kafka, settings.kafka.topic):
                    with suppress(InvalidOrder):
                        promised |= {order.order_id for order in decode(record)}
                for order_id in promised:
                    await crowd.ask(order_id)
                verdict = judge(await read_facts(stores, accepted=promised, product_ids=crowd.products))
    story = f"answers {dict(crowd.answers)}, confirmed {verdict.confirmed}, rejected {dict(verdict.rejected)}"
    assert not unrest, f"{unrest}; {story}"
    assert verdict.holds, f"{verdict.breaches}; {verdict.lost}; {story}"
    assert not crowd.wrong, f"{crowd.wrong}; {story}"
    assert promised <= crowd.told.keys(), story
    assert verdict.confirmed > 100, story


@asynccontextmanager
async def open_pipeline(side: Side, folder: Path, bootstrap: str) -> AsyncIterator[tuple[Settings, Crowd]]:
    """The roles in this process, reconcile among them, on that broker and otherwise on the side's servers."""
    here = Side(side.kind, bootstrap, side.redis, side.run_id_check, side.dtm, side.servers)
    async with open_backbone(here, folder) as backbone, AsyncExitStack() as stack:
        settings = with_values(
            backbone.settings,
            {
                "front": {"operator_token": SecretStr(OPERATOR_TOKEN), "publish_timeout_ms": 2_000},
                "ledger": {"republish_after_ms": 3_000, "undecided_wait_ms": 2_000},
                "kafka": {"session_timeout_ms": 6_000, "request_timeout_ms": 5_000},
                "redis": {"url": SecretStr(side.empty_redis(3))},
            },
        )
        worker = await stack.enter_async_context(ROLES["worker"](settings))
        await stack.enter_async_context(ROLES["reconcile"](settings))  # what Kafka never got is published by it
        role = await stack.enter_async_context(ROLES["front"](settings))
        front = await stack.enter_async_context(
            open_front(role.addresses["front.http"], operator_token=OPERATOR_TOKEN, timeout_s=10)
        )
        publisher = await stack.enter_async_context(open_publisher(settings.kafka))
        products = [random.randrange(10**12) + 1 for _ in range(2)]
        for product_id in products:
            await front.create_sale(
                {"product_id": product_id, "stock": 5_000, "ends_at_ms": 4_000_000_000_000}, change_id=f"c{product_id}"
            )
        yield settings, Crowd(front, publisher, settings.kafka, products, random.Random(1))
        assert worker.task is not None
        assert not worker.task.done(), worker.task.exception()
