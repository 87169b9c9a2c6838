"""Redis lost or set back in the middle of a sale, under workers and reconcile: each docstring is the schedule."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from seckill.admission.gate import Wanted
from seckill.domain.errors import AdmissionUnavailable
from seckill.domain.order import Order, Sale
from seckill.domain.outcomes import Admitted, OrderStatus, Refused
from seckill.domain.reasons import Refusal
from seckill.front.orders_api import OrderLookUp
from seckill.front.product_client import ProductClient
from seckill.messaging.publisher import Publisher, open_publisher
from seckill.wiring import ROLES, open_channel
from tests.servers import native
from tests.support.backbone import Backbone, open_backbone
from tests.support.rebuilds import publish, quick, redis_url, view_of
from tests.support.redis_servers import raw_redis
from tests.support.sides import Side

SNAPSHOTS = ("--appendonly", "no")
"""The server starts with what its last snapshot holds: so a test says exactly what is lost."""


@pytest.fixture
def redis_of_its_own(tmp_path: Path) -> Iterator[native.Redis]:
    with native.redis_process(tmp_path / "redis", options=SNAPSHOTS) as server:
        yield server


@pytest.fixture
async def restartable(side: Side, redis_of_its_own: native.Redis, tmp_path: Path) -> AsyncIterator[Backbone]:
    """A backbone on a Redis that the test may stop."""
    async with open_backbone(replace(side, redis=redis_of_its_own.url, run_id_check=True), tmp_path) as opened:
        yield opened


@asynccontextmanager
async def roles(backbone: Backbone, *names: str) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for name in names:
            await stack.enter_async_context(ROLES[name](quick(backbone.settings)))
        yield


class Load:
    """Buyers, one after the other: what Kafka has acknowledged was accepted."""

    def __init__(self, backbone: Backbone, sale: Sale, publisher: Publisher) -> None:
        self.accepted: list[Order] = []
        self._backbone = backbone
        self._sale = sale
        self._publisher = publisher
        self._buyers = iter(range(1, 10_000))

    async def buy(self, count: int) -> None:
        """That many orders are accepted; whoever is told to come later does."""
        wanted = len(self.accepted) + count
        while len(self.accepted) < wanted:
            user_id = next(self._buyers)
            try:
                answer = await self._backbone.gate.admit(Wanted(self._sale.product_id, user_id, 1))
            except AdmissionUnavailable:
                await asyncio.sleep(0.05)
                continue
            match answer:
                case Admitted(order_id, sale_id, at_ms, number):
                    order = Order(order_id, sale_id, user_id, self._sale.product_id, 1, at_ms, number)
                    await self._publisher.publish(order)
                    self.accepted.append(order)
                case _:
                    await asyncio.sleep(0.05)


@asynccontextmanager
async def load_on(backbone: Backbone, sale: Sale) -> AsyncIterator[Load]:
    async with open_publisher(backbone.settings.kafka) as publisher:
        yield Load(backbone, sale, publisher)


async def told(backbone: Backbone, orders: Sequence[Order]) -> list[OrderStatus | None]:
    """What buyers are told at this moment, in order."""
    address = backbone.settings.product.grpc
    async with open_channel(address) as channel:
        look = OrderLookUp(backbone.ledger, ProductClient(channel, address=address))
        found = [await look.find(order.order_id, wait_ms=0) for order in orders]
    return [result.status if result is not None else None for result in found]


async def until_told(backbone: Backbone, orders: Sequence[Order], status: OrderStatus) -> None:
    async with asyncio.timeout(60):
        while set(await told(backbone, orders)) != {status}:
            await asyncio.sleep(0.2)


async def until_vouched(backbone: Backbone, sale: Sale) -> None:
    async with asyncio.timeout(40):
        while (view := await backbone.book.read(sale.product_id)) is None or not view.vouched:
            await asyncio.sleep(0.1)


async def at_rest(backbone: Backbone, sale: Sale, *, sold: int) -> None:
    """Every order has ended, and both sides count the same."""
    async with asyncio.timeout(40):
        while (await backbone.ledger.stats(sale.product_id)).entries:
            await asyncio.sleep(0.1)
    row = await backbone.read_sale(sale)
    assert (row.stock, row.frozen, row.sold) == (sale.initial - sold, 0, sold)
    view = await view_of(backbone, sale)
    assert (view.stock, view.admitted, view.initial) == (sale.initial - sold, sold, sale.initial)
    assert sum((await backbone.book.units_of_buyers(sale.product_id, sale.sale_id)).values()) == sold


async def test_redis_set_back_to_a_file_of_ten_seconds_ago(
    restartable: Backbone, redis_of_its_own: native.Redis
) -> None:
    """A snapshot is kept; orders end and others come; Redis is stopped, and started with the old file.

    It pauses, since another process vouched for what it holds; what buyers were told of ends is told again; the rebuild
    counts what the file does not know; everything ends once.
    """
    backbone, server = restartable, redis_of_its_own
    sale = await backbone.open_sale(stock=30)
    async with load_on(backbone, sale) as load:
        async with roles(backbone, "worker"):
            await load.buy(5)
            await until_told(backbone, load.accepted, OrderStatus.CONFIRMED)
        await load.buy(3)
        with raw_redis(server.url) as redis:
            redis.save()
        old = shutil.copy(server.folder / "dump.rdb", server.folder.parent / "old.rdb")
        async with roles(backbone, "worker"):
            await load.buy(2)
            await until_told(backbone, load.accepted, OrderStatus.CONFIRMED)
        ended = list(load.accepted)
        await load.buy(1)
        await backbone.admit(sale, 9_999)  # its front dies before it publishes: nobody was told 202
        server.kill()
        shutil.copy(old, server.folder / "dump.rdb")
        server.start()
        assert await backbone.gate.admit(Wanted(sale.product_id, 8_888, 1)) == Refused(Refusal.PAUSED, rebuilding=True)
        assert set(await told(backbone, ended)) == {OrderStatus.CONFIRMED}
        async with roles(backbone, "reconcile"):
            await until_vouched(backbone, sale)
            assert (await view_of(backbone, sale)).stock == 30 - 11
            async with roles(backbone, "worker"):
                await load.buy(4)
                await until_told(backbone, load.accepted, OrderStatus.CONFIRMED)
                await at_rest(backbone, sale, sold=15)


async def test_redis_restarted_under_load_with_its_last_second_gone(
    restartable: Backbone, redis_of_its_own: native.Redis
) -> None:
    """Buyers, a worker and reconcile are at it when Redis dies; it comes back without what it wrote last."""
    backbone, server = restartable, redis_of_its_own
    sale = await backbone.open_sale(stock=500)
    async with load_on(backbone, sale) as load, roles(backbone, "worker", "reconcile"):
        await load.buy(40)
        with raw_redis(server.url) as redis:
            redis.save()
        await load.buy(40)
        buying = asyncio.create_task(load.buy(60))
        await asyncio.sleep(0.05)
        server.kill()
        server.start()
        async with asyncio.timeout(60):
            await buying
        await until_told(backbone, load.accepted, OrderStatus.CONFIRMED)
        await at_rest(backbone, sale, sold=140)


@pytest.mark.own_redis
async def test_everything_in_redis_is_deleted_in_a_sale(backbone: Backbone) -> None:
    """FLUSHALL under load, on a server that may tell no run id: what is missing tells, and everything ends once."""
    sale = await backbone.open_sale(stock=500)
    async with load_on(backbone, sale) as load, roles(backbone, "worker", "reconcile"):
        await load.buy(30)
        buying = asyncio.create_task(load.buy(60))
        await asyncio.sleep(0.1)
        with raw_redis(redis_url(backbone)) as redis:
            redis.flushdb()
        async with asyncio.timeout(60):
            await buying
        await until_told(backbone, load.accepted, OrderStatus.CONFIRMED)
        await at_rest(backbone, sale, sold=90)


@pytest.mark.own_redis
async def test_an_old_record_of_a_sale_that_redis_forgot_is_harmless(backbone: Backbone) -> None:
    """The record of an order that ended comes again, after Redis has forgotten sale and result: it ends the same."""
    sale = await backbone.open_sale(stock=5)
    async with load_on(backbone, sale) as load, roles(backbone, "worker", "reconcile"):
        await load.buy(1)
        await until_told(backbone, load.accepted, OrderStatus.CONFIRMED)
        with raw_redis(redis_url(backbone)) as redis:
            redis.flushdb()
        await publish(backbone, load.accepted)
        await until_vouched(backbone, sale)
        await at_rest(backbone, sale, sold=1)
