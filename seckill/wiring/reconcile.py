"""The role that looks after what somebody left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from consumers.conflicts import Conflicts
from consumers.lag_watch import LagWatch
from consumers.lost_sales import LostSales
from consumers.rebuild import Rebuilder
from consumers.reconcile import ReconcileLimits, Reconciler
from consumers.sales_watch import SalesWatch
from seckill.admission import open_admission
from seckill.checkout.orphans import Orphans
from seckill.checkout.reservations import Reservations
from seckill.clients import open_channel, open_dtm
from seckill.doctor.start import (
    refuse_strangers_of_worker,
)
from seckill.draining import Drain
from seckill.front.product_client import ProductClient
from seckill.front.sale_desk import SaleDesk
from seckill.messaging.dead_letters import DeadLetters
from seckill.messaging.lag import consumer_lag, oldest_uncommitted_ms
from seckill.messaging.publisher import open_publisher
from seckill.messaging.reading import read_since, read_tiers
from seckill.messaging.retry_topics import RetryTier, retry_tiers
from seckill.messaging.topics import by_setting
from seckill.ops import Check, Readiness, serve_ops
from seckill.settings import KafkaSettings, Settings
from seckill.wiring.checkout import orphans_of
from seckill.wiring.checks import dependency_checks
from seckill.wiring.role import Role


@asynccontextmanager
async def open_orphans(settings: Settings) -> AsyncIterator[Orphans]:
    """What ends transactions for a coordinator that lost them; it connects when it is first used."""
    async with (
        open_channel(settings.product.grpc, settings.tls) as product,
        open_channel(settings.order.grpc, settings.tls) as order,
        open_dtm(settings) as client,
    ):
        yield orphans_of(settings, client, product=product, order=order)


@asynccontextmanager
async def open_reconciler(
    settings: Settings, drain: Drain | None = None
) -> AsyncIterator[tuple[Reconciler, Mapping[str, Check]]]:
    """What looks after orders and transactions that somebody left behind, and how to ask for its dependencies."""
    async with AsyncExitStack() as stack:
        admission = await stack.enter_async_context(open_admission(settings.redis, settings.ledger))
        publisher = await stack.enter_async_context(open_publisher(settings.kafka, drain))
        tiers = retry_tiers(settings.kafka, settings.retry)
        await publisher.require_topics(_topics(settings.kafka, tiers))
        channel = await stack.enter_async_context(open_channel(settings.product.grpc, settings.tls))
        order_channel = await stack.enter_async_context(open_channel(settings.order.grpc, settings.tls))
        client = await stack.enter_async_context(open_dtm(settings))
        reservations = Reservations(channel, address=settings.product.grpc, timeout_ms=settings.dtm.request_timeout_ms)
        products = ProductClient(channel, address=settings.product.grpc)
        reconciler = Reconciler(
            ledger=admission.ledger,
            sale=products.find_sale,
            reservations=reservations,
            orphans=orphans_of(settings, client, product=channel, order=order_channel),
            client=client,
            publisher=publisher,
            conflicts=Conflicts(
                admission.ledger,
                DeadLetters(publisher, topic=settings.kafka.dead_letter_topic, group=settings.kafka.group),
                topic=settings.kafka.topic,
            ),
            watermark=lambda: oldest_uncommitted_ms(settings.kafka, tiers),
            limits=ReconcileLimits(
                every_ms=settings.reconcile.every_ms,
                batch_max=settings.reconcile.batch_max,
                republish_after_ms=settings.ledger.republish_after_ms,
                publish_within_ms=settings.front.publish_timeout_ms,
                undecided_wait_ms=settings.ledger.undecided_wait_ms,
                orphan_after_ms=settings.reconcile.orphan_after_ms,
                orphans_max=settings.reconcile.orphans_max,
            ),
        )
        yield (
            reconciler,
            dependency_checks(settings, admission, publisher, product=channel, order=order_channel, client=client),
        )


@asynccontextmanager
async def open_sales_watch(settings: Settings) -> AsyncIterator[SalesWatch]:
    """What makes Redis' copies of sales again when they are lost."""
    async with AsyncExitStack() as stack:
        admission = await stack.enter_async_context(open_admission(settings.redis, settings.ledger))
        publisher = await stack.enter_async_context(open_publisher(settings.kafka))
        kafka, tiers = settings.kafka, retry_tiers(settings.kafka, settings.retry)
        await publisher.require_topics(_topics(kafka, tiers))
        channel = await stack.enter_async_context(open_channel(settings.product.grpc, settings.tls))
        reservations = Reservations(channel, address=settings.product.grpc, timeout_ms=settings.dtm.request_timeout_ms)
        products = ProductClient(channel, address=settings.product.grpc)
        rebuilder = Rebuilder(
            book=admission.rebuilds,
            ledger=admission.ledger,
            reservations=reservations,
            rows=products,
            copy_terms=SaleDesk(products, admission.sales).copy,
            read_records=partial(read_since, kafka, kafka.topic),
            read_retries=partial(read_tiers, kafka, tiers),
            read_letters=partial(read_since, kafka, kafka.dead_letter_topic),
            wait_ms=settings.reconcile.rebuild_wait_ms,
            look_after_ms=settings.ledger.republish_after_ms,
            clock_ms=lambda: time.time_ns() // 1_000_000,
        )
        lost = LostSales(admission.rebuilds, products, reservations)
        yield SalesWatch(lost, rebuilder, every_ms=settings.reconcile.every_ms)


def _topics(kafka: KafkaSettings, tiers: Sequence[RetryTier]) -> dict[str, str]:
    """What is read or written here, by the setting that names it."""
    return {"kafka.topic": kafka.topic, **by_setting(tiers), "kafka.dead_letter_topic": kafka.dead_letter_topic}


def _lag_watch(settings: Settings) -> LagWatch:
    kafka, tiers = settings.kafka, retry_tiers(settings.kafka, settings.retry)
    return LagWatch(partial(consumer_lag, kafka, tiers), main_topic=kafka.topic)


@asynccontextmanager
async def open_reconcile(settings: Settings, drain: Drain | None = None) -> AsyncIterator[Role]:
    """Raises AdmissionUnavailable or PublishUnknown when Redis or Kafka does not answer at start, and Unfit."""
    drain = drain or Drain(settings.reconcile.drain_timeout_ms)
    await refuse_strangers_of_worker(settings)
    async with AsyncExitStack() as stack:
        reconciler, checks = await stack.enter_async_context(open_reconciler(settings, drain))
        watch = await stack.enter_async_context(open_sales_watch(settings))
        lag = _lag_watch(settings)
        await checks["redis"]()
        readiness = Readiness("reconcile", checks)
        drain.when_begun(readiness.stop)
        ops = await stack.enter_async_context(serve_ops(settings.reconcile.ops, readiness, drain))
        task = asyncio.create_task(reconciler.run(), name="reconcile")
        watching = asyncio.create_task(watch.run(), name="sales-watch")  # beside it: a rebuild takes its time
        measuring = asyncio.create_task(lag.run(), name="lag-watch")
        try:
            yield Role("reconcile", {"reconcile.ops": ops}, drain, task)
        finally:
            drain.begin()
            reconciler.stop()
            watch.stop()
            watching.cancel()  # a rebuild gives back what it has begun, and the next one begins anew
            measuring.cancel()
            _, unfinished = await asyncio.wait({task, watching, measuring}, timeout=drain.work_left_s())
            drain.leave("looks", len(unfinished))
            if unfinished:  # every step of a look may be cut off: the next look finds what is left
                task.cancel()
                await asyncio.wait({task})
