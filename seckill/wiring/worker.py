"""The role that carries orders from the topic to their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import structlog

from consumers.dependencies import Dependencies
from consumers.seckill_rmq import SeckillCarrier
from seckill.admission import open_admission
from seckill.checkout.late import LateAdmission
from seckill.checkout.reservations import Reservations
from seckill.circuits import BreakerLimits
from seckill.clients import open_channel, open_dtm
from seckill.doctor.start import (
    refuse_strangers_of_worker,
)
from seckill.domain.retry import RetryPolicy
from seckill.draining import Drain
from seckill.front.product_client import ProductClient
from seckill.messaging.consumer import open_consumer
from seckill.messaging.dead_letters import DeadLetters
from seckill.messaging.due_gate import DueGate
from seckill.messaging.publisher import open_publisher
from seckill.messaging.retry_topics import RetryTier, retry_tiers
from seckill.messaging.topics import by_setting
from seckill.messaging.worker import Worker, WorkerLimits
from seckill.ops import Check, Readiness, serve_ops
from seckill.settings import KafkaSettings, Settings
from seckill.wiring.checkout import checkout_of, require_xa
from seckill.wiring.checks import dependency_checks, try_coordinator
from seckill.wiring.role import Role

log = structlog.get_logger()

JOINING_TOLD_EVERY_MS = 5_000

RETRY_BATCH_MAX = 50
"""Orders of a sale that are carried together from the retry topics. Each may hang in each of its attempts, and what is
behind them waits until all of them are routed.
"""


class NotInGroup(Exception):
    """The worker is up, and waits for its partitions."""


@asynccontextmanager
async def open_carrier(
    settings: Settings, drain: Drain | None = None
) -> AsyncIterator[tuple[SeckillCarrier, Mapping[str, Check]]]:
    """What carries an order from the topic to its end, and how to ask whether its dependencies answer."""
    async with AsyncExitStack() as stack:
        admission = await stack.enter_async_context(
            open_admission(settings.redis, settings.ledger, batch_max=settings.front.admission_batch_max)
        )
        publisher = await stack.enter_async_context(open_publisher(settings.kafka, drain))
        kafka, tiers = settings.kafka, retry_tiers(settings.kafka, settings.retry)
        await publisher.require_topics(
            {"kafka.topic": kafka.topic, **by_setting(tiers), "kafka.dead_letter_topic": kafka.dead_letter_topic}
        )
        channel = await stack.enter_async_context(open_channel(settings.product.grpc, settings.tls))
        order_channel = await stack.enter_async_context(open_channel(settings.order.grpc, settings.tls))
        client = await stack.enter_async_context(open_dtm(settings))
        reservations = Reservations(channel, address=settings.product.grpc, timeout_ms=settings.dtm.request_timeout_ms)
        checks = dependency_checks(settings, admission, publisher, product=channel, order=order_channel, client=client)
        dependencies = Dependencies(
            "worker",
            {**checks, "coordinator": lambda: try_coordinator(client)},
            BreakerLimits(settings.worker.circuit_failures_max, settings.worker.circuit_pause_ms),
        )
        stack.push_async_callback(dependencies.close)
        carrier = SeckillCarrier(
            ledger=admission.ledger,
            parked=admission.parked,
            late=LateAdmission(
                admission.gate,
                reservations,
                doubt=admission.ledger.doubt,
                on_offer=ProductClient(channel, address=settings.product.grpc).is_on_offer,
            ),
            checkout=checkout_of(settings, client, reservations, product=channel, order=order_channel),
            reservations=reservations,
            dead_letters=DeadLetters(publisher, topic=kafka.dead_letter_topic, group=kafka.group),
            publisher=publisher,
            tiers=tiers,
            policy=RetryPolicy(
                settings.retry.attempts_max,
                settings.retry.base_ms,
                settings.retry.cap_ms,
                settings.retry.topic_delays_ms,
            ),
            dependencies=dependencies,
            undecided_wait_ms=settings.ledger.undecided_wait_ms,
        )
        yield carrier, {**checks, "circuits": dependencies.check}


@dataclass(frozen=True, slots=True)
class _Reader:
    """A worker and what it reads."""

    worker: Worker
    group: str
    topics: Sequence[str]


@asynccontextmanager
async def open_worker(settings: Settings, drain: Drain | None = None) -> AsyncIterator[Role]:
    """The consumers of the topic and of the retry topics. On leaving they stop fetching, finish what they hold, commit
    and leave their groups.

    Raises AdmissionUnavailable or PublishUnknown when Redis or Kafka does not answer at start, Unfit, and SettingsError
    when the databases cannot do what the pattern needs.
    """
    require_xa(settings, "product", "order")
    drain = drain or Drain(settings.worker.drain_timeout_ms)
    await refuse_strangers_of_worker(settings)
    async with AsyncExitStack() as stack:
        carrier, checks = await stack.enter_async_context(open_carrier(settings, drain))
        await checks["redis"]()
        readers = [await _open_reader(stack, settings, carrier, drain)]
        if tiers := retry_tiers(settings.kafka, settings.retry):
            readers.append(await _open_reader(stack, settings, carrier, drain, tiers))
        readiness = Readiness("worker", {**checks, "group": lambda: _in_groups(readers)})
        drain.when_begun(readiness.stop)
        ops = await stack.enter_async_context(serve_ops(settings.worker.ops, readiness, drain))
        tasks = [asyncio.create_task(each.worker.run(each.topics), name=each.group) for each in readers]
        first_end = asyncio.create_task(_first_end(tasks), name="worker")
        try:
            await asyncio.gather(*(_joined(*each, settings.kafka) for each in zip(readers, tasks, strict=True)))
            yield Role("worker", {"worker.ops": ops}, drain, first_end)
        finally:
            drain.begin()
            for reader, task in zip(readers, tasks, strict=True):
                reader.worker.stop()
                if not reader.worker.joined.is_set():
                    task.cancel()  # it waits for its first partitions, and holds nothing
            await asyncio.wait({*tasks, first_end})
        for task in tasks:
            if not task.cancelled():
                await task


async def _open_reader(
    stack: AsyncExitStack, settings: Settings, carrier: SeckillCarrier, drain: Drain, tiers: Sequence[RetryTier] = ()
) -> _Reader:
    """Of the retry topics, or without tiers of the main one."""
    kafka = settings.kafka
    group, topics = (kafka.retry_group, [tier.topic for tier in tiers]) if tiers else (kafka.group, [kafka.topic])
    consumer = await stack.enter_async_context(open_consumer(kafka, drain, group=group))
    limits = reader_limits(settings, of_retry_topics=bool(tiers))
    gate = DueGate(tiers) if tiers else None
    return _Reader(
        Worker(consumer, carrier, limits, held_back=carrier.held_back, gate=gate, drain=drain), group, topics
    )


def reader_limits(settings: Settings, *, of_retry_topics: bool) -> WorkerLimits:
    worker = settings.worker
    limits = WorkerLimits(
        batch_max=worker.batch_max,
        # An XA holds its sale's row from the first branch to the commit: a second group would only wait, and time out.
        groups_per_sale_max=1 if settings.transaction.pattern == "xa" else worker.groups_per_sale_max,
        inflight_max=worker.inflight_max,
        poll_timeout_ms=worker.poll_timeout_ms,
        drain_timeout_ms=worker.drain_timeout_ms,
    )
    if not of_retry_topics:
        return limits
    batch_max = min(worker.batch_max, RETRY_BATCH_MAX)
    return replace(limits, batch_max=batch_max, groups_per_sale_max=1, inflight_max=settings.retry.inflight_max)


async def _first_end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Ends as the first of them does: a role that reads only one of its topics has failed."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        if not task.cancelled():
            await task


async def _joined(reader: _Reader, task: asyncio.Task[None], settings: KafkaSettings) -> None:
    """Waits until the group has taken the worker in. Says that it waits; a slow group is said, and joined later."""
    group = reader.group
    log.info("worker_waiting_for_partitions", group=group, topics=reader.topics)
    joining = asyncio.create_task(reader.worker.joined.wait())
    try:
        for waited_ms in range(0, settings.session_timeout_ms, JOINING_TOLD_EVERY_MS):
            if waited_ms:
                log.warning("worker_still_waiting_for_partitions", group=group, waited_ms=waited_ms)
            await asyncio.wait(
                {joining, task}, timeout=JOINING_TOLD_EVERY_MS / 1000, return_when=asyncio.FIRST_COMPLETED
            )
            if joining.done() or task.done():
                return
    finally:
        joining.cancel()
    log.warning("worker_not_in_group", group=group, waited_ms=settings.session_timeout_ms)


async def _in_groups(readers: Sequence[_Reader]) -> None:
    for reader in readers:
        if not reader.worker.joined.is_set():
            raise NotInGroup(f"{reader.group} has given it no partitions yet")
