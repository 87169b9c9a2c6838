"""The role that carries orders from the topic to their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from consumers.dependencies import Dependencies
from consumers.seckill_rmq import SeckillCarrier
from seckill.admission import open_admission
from seckill.checkout.late import LateAdmission
from seckill.checkout.reservations import Reservations
from seckill.checkout.tcc import TccCheckout, TccPlan
from seckill.circuits import BreakerLimits
from seckill.clients import open_channel, open_dtm
from seckill.doctor.start import (
    refuse_strangers_of_worker,
)
from seckill.domain.retry import RetryPolicy
from seckill.draining import Drain
from seckill.dtm.protocol import TransOptions
from seckill.front.product_client import ProductClient
from seckill.messaging.consumer import open_consumer
from seckill.messaging.dead_letters import DeadLetters
from seckill.messaging.publisher import open_publisher
from seckill.messaging.worker import Worker, WorkerLimits
from seckill.ops import Check, Readiness, serve_ops
from seckill.settings import KafkaSettings, ServiceSettings, Settings, SettingsError
from seckill.wiring.checks import dependency_checks, try_coordinator
from seckill.wiring.role import Role

log = structlog.get_logger()

JOINING_TOLD_EVERY_MS = 5_000


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
        await publisher.require_topics(
            {"kafka.topic": settings.kafka.topic, "kafka.dead_letter_topic": settings.kafka.dead_letter_topic}
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
            late=LateAdmission(
                admission.gate,
                reservations,
                doubt=admission.ledger.doubt,
                on_offer=ProductClient(channel, address=settings.product.grpc).is_on_offer,
            ),
            checkout=TccCheckout(client, reservations, _plan(settings)),
            reservations=reservations,
            dead_letters=DeadLetters(publisher, topic=settings.kafka.dead_letter_topic, group=settings.kafka.group),
            policy=RetryPolicy(settings.retry.attempts_max, settings.retry.base_ms, settings.retry.cap_ms),
            dependencies=dependencies,
            undecided_wait_ms=settings.ledger.undecided_wait_ms,
        )
        yield carrier, {**checks, "circuits": dependencies.check}


@asynccontextmanager
async def open_worker(settings: Settings, drain: Drain | None = None) -> AsyncIterator[Role]:
    """The consumer of the topic. On leaving it stops fetching, finishes what it holds, commits and leaves the group.

    Raises AdmissionUnavailable or PublishUnknown when Redis or Kafka does not answer at start, and Unfit.
    """
    drain = drain or Drain(settings.worker.drain_timeout_ms)
    await refuse_strangers_of_worker(settings)
    async with AsyncExitStack() as stack:
        carrier, checks = await stack.enter_async_context(open_carrier(settings, drain))
        await checks["redis"]()
        consumer = await stack.enter_async_context(open_consumer(settings.kafka, drain))
        limits = WorkerLimits(
            batch_max=settings.worker.batch_max,
            groups_per_sale_max=settings.worker.groups_per_sale_max,
            inflight_max=settings.worker.inflight_max,
            poll_timeout_ms=settings.worker.poll_timeout_ms,
            drain_timeout_ms=settings.worker.drain_timeout_ms,
        )
        worker = Worker(consumer, carrier, limits, held_back=carrier.held_back, drain=drain)
        readiness = Readiness("worker", {**checks, "group": lambda: _in_group(worker)})
        drain.when_begun(readiness.stop)
        ops = await stack.enter_async_context(serve_ops(settings.worker.ops, readiness, drain))
        task = asyncio.create_task(worker.run([settings.kafka.topic]), name="worker")
        try:
            await _joined(worker, task, settings.kafka)
            yield Role("worker", {"worker.ops": ops}, drain, task)
        finally:
            drain.begin()
            worker.stop()
            if not worker.joined.is_set():
                task.cancel()  # it waits for its first partitions, and holds nothing
            await asyncio.wait({task})
        if not task.cancelled():
            await task


async def _joined(worker: Worker, task: asyncio.Task[None], settings: KafkaSettings) -> None:
    """Waits until the group has taken the worker in. Says that it waits; a slow group is said, and joined later."""
    log.info("worker_waiting_for_partitions", topic=settings.topic, group=settings.group)
    joining = asyncio.create_task(worker.joined.wait())
    try:
        for waited_ms in range(0, settings.session_timeout_ms, JOINING_TOLD_EVERY_MS):
            if waited_ms:
                log.warning("worker_still_waiting_for_partitions", group=settings.group, waited_ms=waited_ms)
            await asyncio.wait(
                {joining, task}, timeout=JOINING_TOLD_EVERY_MS / 1000, return_when=asyncio.FIRST_COMPLETED
            )
            if joining.done() or task.done():
                return
    finally:
        joining.cancel()
    log.warning("worker_not_in_group", group=settings.group, waited_ms=settings.session_timeout_ms)


async def _in_group(worker: Worker) -> None:
    if not worker.joined.is_set():
        raise NotInGroup("the group has given it no partitions yet")


def _plan(settings: Settings) -> TccPlan:
    return TccPlan(
        product_address=settings.product.grpc,
        order_address=settings.order.grpc,
        product_branch_address=_registered("product", settings.product, settings),
        order_branch_address=_registered("order", settings.order, settings),
        try_timeout_ms=settings.dtm.try_timeout_ms,
        submit_timeout_ms=settings.dtm.submit_timeout_ms,
        batch_max=settings.worker.batch_max,
        batch_bytes_max=settings.worker.batch_bytes_max,
        options=TransOptions(
            wait_result=True,
            timeout_to_fail_s=settings.dtm.timeout_to_fail_s,
            retry_interval_s=settings.dtm.retry_interval_s,
            request_timeout_s=settings.dtm.branch_timeout_s,
        ),
    )


def _registered(name: str, service: ServiceSettings, settings: Settings) -> str:
    """Where the coordinator finds the branch. Raises SettingsError when it could not talk to it there."""
    if not settings.tls.enabled:
        return service.branch_grpc or service.grpc
    if settings.dtm.tls:
        return service.grpc
    if service.branch_grpc is None:
        raise SettingsError(
            f"{name}.branch_grpc is not set: with [tls] and dtm.tls = false the coordinator needs a port without TLS"
        )
    return service.branch_grpc
