"""What the tests of rebuilding share: a watch over a backbone's sales, and ways in which Redis comes to know less."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from aiokafka import AIOKafkaConsumer, TopicPartition

from consumers.sales_watch import SalesWatch
from seckill.admission import SaleView
from seckill.admission.ledger import LedgerEntry
from seckill.crashpoints import CrashPoint, Deed, arm
from seckill.domain.order import Order, Sale
from seckill.messaging.publisher import open_publisher
from seckill.messaging.retry_topics import RetryTier
from seckill.settings import Settings
from seckill.wiring import open_sales_watch, with_values
from tests.support.backbone import Backbone
from tests.support.redis_servers import lose_product

WAIT_MS = 50
"""Far below the bound of a publish: a test that publishes later says so."""


def quick(settings: Settings) -> Settings:
    return with_values(settings, {"reconcile": {"rebuild_wait_ms": WAIT_MS}})


@asynccontextmanager
async def open_watch(backbone: Backbone) -> AsyncIterator[SalesWatch]:
    async with open_sales_watch(quick(backbone.settings)) as watch:
        yield watch


def redis_url(backbone: Backbone) -> str:
    return backbone.settings.redis.url.get_secret_value()


def lose(backbone: Backbone, sale: Sale) -> None:
    """Redis holds nothing of the sale's product any more."""
    lose_product(redis_url(backbone), sale.product_id)


async def view_of(backbone: Backbone, sale: Sale) -> SaleView:
    """The product's current sale in Redis, which is this one and open to orders as far as its copy goes."""
    view = await backbone.book.read(sale.product_id)
    assert view is not None
    assert (view.sale_id, view.vouched) == (sale.sale_id, True)
    return view


async def entries_of(backbone: Backbone, sale: Sale) -> dict[str, LedgerEntry]:
    found = await backbone.ledger.entries(sale.product_id)
    return {entry.order.order_id: entry for entry in found if entry.order.sale_id == sale.sale_id}


async def publish(backbone: Backbone, orders: Sequence[Order]) -> None:
    async with open_publisher(backbone.settings.kafka) as publisher:
        await asyncio.gather(*map(publisher.publish, orders))


async def pass_everything(backbone: Backbone, tier: RetryTier | None = None) -> None:
    """Commits the group's offsets at the end of the topic, or of a retry topic, as workers do that have routed every
    record.
    """
    kafka = backbone.settings.kafka
    topic, group = (kafka.topic, kafka.group) if tier is None else (tier.topic, kafka.retry_group)
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(4)]
        consumer.assign(partitions)
        await consumer.commit(await consumer.end_offsets(partitions))
    finally:
        await consumer.stop()


@contextmanager
def at_point(point: CrashPoint, deed: Deed) -> Iterator[None]:
    """Does it whenever that point is reached in this process."""
    arm(lambda reached: deed(reached) if reached is point else None)
    try:
        yield
    finally:
        arm(None)
