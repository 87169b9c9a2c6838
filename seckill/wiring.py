"""The only place that constructs clients and services.

Importing opens nothing. Each `open_…` is an async context manager that builds one role from settings and takes it
down in the reverse order; `run_role` is a role as a process of its own, ended by SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc
import structlog
from aiokafka import AIOKafkaConsumer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr
from uuid_utils import uuid7

from consumers.dependencies import Dependencies
from consumers.lost_sales import LostSales
from consumers.rebuild import Rebuilder
from consumers.reconcile import ReconcileLimits, Reconciler
from consumers.sales_watch import SalesWatch
from consumers.seckill_rmq import SeckillCarrier
from seckill.admission import Admission, open_admission
from seckill.checkout.late import LateAdmission
from seckill.checkout.orphans import Orphans
from seckill.checkout.reservations import Reservations
from seckill.checkout.tcc import TccCheckout, TccPlan
from seckill.circuits import BreakerLimits
from seckill.client import front_url
from seckill.coordinator.server import serve_coordinator
from seckill.doctor.start import (
    opening_database,
    refuse_strangers_of_front,
    refuse_strangers_of_worker,
    require_database,
)
from seckill.domain.errors import OrderUnavailable, ProductUnavailable, PublishUnknown
from seckill.domain.retry import RetryPolicy
from seckill.draining import STOP_SIGNALS, Drain, second_signal_ends_process
from seckill.dtm.channels import open_channel as dial
from seckill.dtm.client import DtmClient
from seckill.dtm.protocol import TransOptions
from seckill.dtm.serving import BranchServer
from seckill.embedded import embedded_kafka, embedded_redis
from seckill.front.metrics import BATCH_SIZE
from seckill.front.product_client import ProductClient
from seckill.front.sale_desk import SaleDesk
from seckill.front.serve import serve_front
from seckill.messaging.connection import connection, start
from seckill.messaging.dead_letters import DeadLetters
from seckill.messaging.lag import oldest_uncommitted_ms, read_since
from seckill.messaging.publisher import Publisher, open_publisher
from seckill.messaging.worker import Worker, WorkerLimits
from seckill.ops import Check, Readiness, serve_ops
from seckill.order.service import serve_order
from seckill.plaintext import warn_of_plaintext
from seckill.product.service import serve_product
from seckill.schema import upgrade
from seckill.security import channel_credentials
from seckill.settings import NO_TLS, KafkaSettings, ServiceSettings, Settings, SettingsError, TlsSettings, listening

log = structlog.get_logger()

JOINING_TOLD_EVERY_MS = 5_000
STOP_LIMITS_S = (5, 1, 1)

UNPOLLED_MS_MAX = 2**31 - 1
"""How long a consumer may not poll before it leaves the group: as good as for ever."""

REJOIN_MARGIN_MS = 5_000
"""How much longer than a session a consumer waits for an answer of the group, as Kafka's own client does."""


@dataclass(frozen=True, slots=True)
class Role:
    """A running role: where it can be reached, how it ends, and the task whose end means that it failed."""

    name: str
    addresses: Mapping[str, str]
    drain: Drain
    task: asyncio.Task[None] | None = None


class NotInGroup(Exception):
    """The worker is up, and waits for its partitions."""


# --- clients ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_channel(address: str, tls: TlsSettings = NO_TLS) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to one of our own roles; it connects on first use. Raises CertificateProblem."""
    async with dial(address, channel_credentials(tls)) as channel:
        yield channel


@asynccontextmanager
async def open_dtm(settings: Settings, *, timeout_ms: int | None = None) -> AsyncIterator[DtmClient]:
    """A client of the coordinator that the settings name; it connects when it is first used."""
    credentials = channel_credentials(settings.tls)  # of the branches, whoever coordinates them
    async with (
        open_channel(settings.dtm.grpc, settings.tls if settings.dtm.tls else NO_TLS) as channel,
        DtmClient(
            channel,
            address=settings.dtm.grpc,
            http_url=front_url(settings.dtm.http),
            timeout_ms=timeout_ms or settings.dtm.request_timeout_ms,
            credentials=credentials,
        ) as client,
    ):
        yield client


@asynccontextmanager
async def open_consumer(settings: KafkaSettings, drain: Drain | None = None) -> AsyncIterator[AIOKafkaConsumer]:
    """A started consumer of the group, subscribed to nothing yet. Raises PublishUnknown when no broker answers."""
    consumer = AIOKafkaConsumer(
        **connection(settings),
        group_id=settings.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        # A JoinGroup is answered once every member has come back or its session is over. Giving up before that would
        # join again as yet another member, and put off the end of the rebalance for ever.
        request_timeout_ms=max(settings.request_timeout_ms, settings.session_timeout_ms + REJOIN_MARGIN_MS),
        session_timeout_ms=settings.session_timeout_ms,
        heartbeat_interval_ms=settings.session_timeout_ms // 10,
        # A worker that waits for a dead dependency with its hands full does not poll, and is alive all the same. Had it
        # left the group for that, aiokafka would want a poll before it joins again, and the worker an assignment.
        max_poll_interval_ms=UNPOLLED_MS_MAX,
        rebalance_timeout_ms=settings.session_timeout_ms,
    )
    try:
        await start(consumer, settings)
    except PublishUnknown:
        await _stop_consumer(consumer)
        raise
    try:
        yield consumer
    finally:
        await _stop_consumer(consumer, drain)


async def _stop_consumer(consumer: AIOKafkaConsumer, drain: Drain | None = None) -> None:
    """Leaves the group. `stop()` can hang while Kafka is down or forms the group, so it is bounded.

    It takes one cancellation for the end of its joining and goes on to leave, so that it may need a second one.
    """
    stopping = asyncio.create_task(consumer.stop())
    for limit_s in STOP_LIMITS_S:
        await asyncio.wait({stopping}, timeout=drain.closing_s(limit_s) if drain else limit_s)
        if stopping.done():
            break
        stopping.cancel()
    if not stopping.done() or stopping.cancelled():
        log.warning("consumer_stop_incomplete", error="no answer in time")
    elif error := stopping.exception():
        log.warning("consumer_stop_incomplete", error=f"{type(error).__name__}: {error}")


# --- roles -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_coordinator(settings: Settings, drain: Drain | None = None) -> AsyncIterator[Role]:
    drain = drain or Drain(settings.coordinator.drain_timeout_ms)
    async with AsyncExitStack() as stack:
        url = settings.coordinator.database_url.get_secret_value()
        await require_database("coordinator", url, settings.coordinator)
        async with opening_database("coordinator.database_url", url):
            served = await stack.enter_async_context(
                serve_coordinator(settings.coordinator, tls=settings.tls, drain=drain)
            )
        addresses = {"coordinator.grpc": served.grpc_address, "coordinator.http": served.http_address}
        yield Role("coordinator", addresses, drain)


def open_product(settings: Settings, drain: Drain | None = None) -> AbstractAsyncContextManager[Role]:
    drain = drain or Drain(settings.product.drain_timeout_ms)
    return _open_service("product", settings.product, serve_product(settings.product, settings.tls, drain), drain)


def open_order(settings: Settings, drain: Drain | None = None) -> AbstractAsyncContextManager[Role]:
    drain = drain or Drain(settings.order.drain_timeout_ms)
    return _open_service("order", settings.order, serve_order(settings.order, settings.tls, drain), drain)


@asynccontextmanager
async def _open_service(
    name: str, settings: ServiceSettings, service: AbstractAsyncContextManager[BranchServer], drain: Drain
) -> AsyncIterator[Role]:
    """A gRPC service on a database of its own, and what its operators ask."""
    async with AsyncExitStack() as stack:
        url = settings.database_url.get_secret_value()
        await require_database(name, url, settings)
        async with opening_database(f"{name}.database_url", url):
            served = await stack.enter_async_context(service)
        readiness = Readiness(name, {"database": served.check})
        drain.when_begun(readiness.stop)
        ops = await stack.enter_async_context(serve_ops(settings.ops, readiness, drain))
        addresses = {f"{name}.grpc": served.address, f"{name}.ops": ops}
        if served.branch_address is not None:
            addresses[f"{name}.branch_grpc"] = served.branch_address
        try:
            yield Role(name, addresses, drain)
        finally:
            drain.begin()


@asynccontextmanager
async def open_front(settings: Settings, drain: Drain | None = None) -> AsyncIterator[Role]:
    """Raises AdmissionUnavailable or PublishUnknown when Redis or Kafka does not answer at start, and Unfit."""
    drain = drain or Drain(settings.front.drain_timeout_ms)
    await refuse_strangers_of_front(settings)
    async with AsyncExitStack() as stack:
        admission = await stack.enter_async_context(
            open_admission(
                settings.redis,
                settings.ledger,
                batch_max=settings.front.admission_batch_max,
                queue_max=settings.front.admission_queue_max,
                on_batch=BATCH_SIZE.observe,
            )
        )
        await admission.sales.check()
        publisher = await stack.enter_async_context(open_publisher(settings.kafka, drain))
        await publisher.require_topics({"kafka.topic": settings.kafka.topic})
        channel = await stack.enter_async_context(open_channel(settings.product.grpc, settings.tls))
        served = await stack.enter_async_context(
            serve_front(
                settings.front,
                admission=admission,
                publisher=publisher,
                product=channel,
                product_address=settings.product.grpc,
                tls=settings.tls,
                drain=drain,
            )
        )
        yield Role("front", {"front.http": served.http_address, "front.grpc": served.grpc_address}, drain)


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
        checks = _checks(settings, admission, publisher, product=channel, order=order_channel, client=client)
        dependencies = Dependencies(
            "worker",
            {**checks, "coordinator": lambda: _try_coordinator(client)},
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


async def check_service(channel: grpc.aio.Channel, address: str, service: str) -> None:
    """Raises ProductUnavailable or OrderUnavailable unless the gRPC health service says SERVING."""
    unavailable = OrderUnavailable if service == "order.Order" else ProductUnavailable
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        reply = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=2)
    except grpc.aio.AioRpcError as error:
        raise unavailable(address, f"{error.code().name} {error.details()}") from error
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        raise unavailable(address, "it is stopping")


def _checks(
    settings: Settings,
    admission: Admission,
    publisher: Publisher,
    *,
    product: grpc.aio.Channel,
    order: grpc.aio.Channel,
    client: DtmClient,
) -> dict[str, Check]:
    """How to ask everything that an order needs on its way."""
    return {
        "redis": admission.sales.check,
        "kafka": publisher.check,
        "product": lambda: check_service(product, settings.product.grpc, "product.Product"),
        "order": lambda: check_service(order, settings.order.grpc, "order.Order"),
        "coordinator": lambda: _check_coordinator(client),
    }


async def _check_coordinator(client: DtmClient) -> None:
    await client.new_gid()


async def _try_coordinator(client: DtmClient) -> None:
    """Whether it can write its log, which a gid does not need: a transaction without branches, rolled back at once."""
    gid = uuid7().hex
    await client.prepare(gid)
    await client.abort(gid, reason="only to see whether the log can be written")


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


@asynccontextmanager
async def open_orphans(settings: Settings) -> AsyncIterator[Orphans]:
    """What ends transactions for a coordinator that lost them; it connects when it is first used."""
    async with (
        open_channel(settings.product.grpc, settings.tls) as product,
        open_channel(settings.order.grpc, settings.tls) as order,
        open_dtm(settings) as client,
    ):
        yield _orphans(settings, client, product=product, order=order)


def _orphans(settings: Settings, client: DtmClient, *, product: grpc.aio.Channel, order: grpc.aio.Channel) -> Orphans:
    """It calls branches itself, where we dial them, and not where a coordinator does."""
    return Orphans(
        client,
        product=product,
        order=order,
        product_address=settings.product.grpc,
        order_address=settings.order.grpc,
        timeout_ms=settings.dtm.request_timeout_ms,
    )


@asynccontextmanager
async def open_reconciler(
    settings: Settings, drain: Drain | None = None
) -> AsyncIterator[tuple[Reconciler, Mapping[str, Check]]]:
    """What looks after orders and transactions that somebody left behind, and how to ask for its dependencies."""
    async with AsyncExitStack() as stack:
        admission = await stack.enter_async_context(open_admission(settings.redis, settings.ledger))
        publisher = await stack.enter_async_context(open_publisher(settings.kafka, drain))
        await publisher.require_topics({"kafka.topic": settings.kafka.topic})
        channel = await stack.enter_async_context(open_channel(settings.product.grpc, settings.tls))
        order_channel = await stack.enter_async_context(open_channel(settings.order.grpc, settings.tls))
        client = await stack.enter_async_context(open_dtm(settings))
        reservations = Reservations(channel, address=settings.product.grpc, timeout_ms=settings.dtm.request_timeout_ms)
        products = ProductClient(channel, address=settings.product.grpc)
        reconciler = Reconciler(
            ledger=admission.ledger,
            sale=products.find_sale,
            reservations=reservations,
            orphans=_orphans(settings, client, product=channel, order=order_channel),
            client=client,
            publisher=publisher,
            watermark=lambda: oldest_uncommitted_ms(settings.kafka),
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
        yield reconciler, _checks(settings, admission, publisher, product=channel, order=order_channel, client=client)


@asynccontextmanager
async def open_sales_watch(settings: Settings) -> AsyncIterator[SalesWatch]:
    """What makes Redis' copies of sales again when they are lost."""
    async with AsyncExitStack() as stack:
        admission = await stack.enter_async_context(open_admission(settings.redis, settings.ledger))
        publisher = await stack.enter_async_context(open_publisher(settings.kafka))
        topic, letters = settings.kafka.topic, settings.kafka.dead_letter_topic
        await publisher.require_topics({"kafka.topic": topic, "kafka.dead_letter_topic": letters})
        channel = await stack.enter_async_context(open_channel(settings.product.grpc, settings.tls))
        reservations = Reservations(channel, address=settings.product.grpc, timeout_ms=settings.dtm.request_timeout_ms)
        products = ProductClient(channel, address=settings.product.grpc)
        rebuilder = Rebuilder(
            book=admission.rebuilds,
            ledger=admission.ledger,
            reservations=reservations,
            rows=products,
            copy_terms=SaleDesk(products, admission.sales).copy,
            read_records=lambda since_ms, take: read_since(settings.kafka, topic, since_ms, take),
            read_letters=lambda since_ms, take: read_since(settings.kafka, letters, since_ms, take),
            wait_ms=settings.reconcile.rebuild_wait_ms,
            look_after_ms=settings.ledger.republish_after_ms,
            clock_ms=lambda: time.time_ns() // 1_000_000,
        )
        lost = LostSales(admission.rebuilds, products, reservations)
        yield SalesWatch(lost, rebuilder, every_ms=settings.reconcile.every_ms)


@asynccontextmanager
async def open_reconcile(settings: Settings, drain: Drain | None = None) -> AsyncIterator[Role]:
    """Raises AdmissionUnavailable or PublishUnknown when Redis or Kafka does not answer at start, and Unfit."""
    drain = drain or Drain(settings.reconcile.drain_timeout_ms)
    await refuse_strangers_of_worker(settings)
    async with AsyncExitStack() as stack:
        reconciler, checks = await stack.enter_async_context(open_reconciler(settings, drain))
        watch = await stack.enter_async_context(open_sales_watch(settings))
        await checks["redis"]()
        readiness = Readiness("reconcile", checks)
        drain.when_begun(readiness.stop)
        ops = await stack.enter_async_context(serve_ops(settings.reconcile.ops, readiness, drain))
        task = asyncio.create_task(reconciler.run(), name="reconcile")
        watching = asyncio.create_task(watch.run(), name="sales-watch")  # beside it: a rebuild takes its time
        try:
            yield Role("reconcile", {"reconcile.ops": ops}, drain, task)
        finally:
            drain.begin()
            reconciler.stop()
            watch.stop()
            watching.cancel()  # a rebuild gives back what it has begun, and the next one begins anew
            _, unfinished = await asyncio.wait({task, watching}, timeout=drain.work_left_s())
            drain.leave("looks", len(unfinished))
            if unfinished:  # every step of a look may be cut off: the next look finds what is left
                task.cancel()
                await asyncio.wait({task})


class OpenRole(Protocol):
    """Builds a role from settings. It ends within `drain`; without one, within `drain_timeout_ms` of its section."""

    def __call__(self, settings: Settings, drain: Drain | None = None) -> AbstractAsyncContextManager[Role]: ...


ROLES: Mapping[str, OpenRole] = {
    "coordinator": open_coordinator,
    "product": open_product,
    "order": open_order,
    "worker": open_worker,
    "reconcile": open_reconcile,
    "front": open_front,
}
"""In the order in which they start; they stop in the reverse one, so that intake ends first."""


async def run_role(name: str, settings: Settings, *, started: Callable[[Role], None] | None = None) -> None:
    """One role as a process: serves until SIGTERM or SIGINT, then drains. Raises what ended it otherwise, and
    DrainIncomplete; what hangs beyond the deadline ends with the process.
    """
    warn_of_plaintext(name, settings)
    async with ROLES[name](settings) as role:
        log.info("role_started", role=name, **role.addresses)
        if started is not None:
            started(role)
        await until_stopped(role)
        delay_ms = drain_delay_ms(settings, name)
        log.info("role_draining", role=name, timeout_ms=role.drain.timeout_ms, delay_ms=delay_ms)
        await role.drain.begin_process(delay_ms=delay_ms)
    role.drain.end_process()
    log.info("role_stopped", role=name)


def drain_delay_ms(settings: Settings, role: str) -> int:
    """How long a role serves on after it is unready: 0 for those that nobody sends work to."""
    delay_ms: int = getattr(getattr(settings, role), "drain_delay_ms", 0)
    return delay_ms


async def until_stopped(*roles: Role) -> None:
    """Returns on SIGTERM or SIGINT; raises when a role's own task ends before that. From then on a second signal ends
    the process at once.
    """
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, signalled.set)
    waiting = asyncio.create_task(signalled.wait())
    tasks = {role.task for role in roles if role.task is not None}
    try:
        await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                await task
    finally:
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
        second_signal_ends_process()


# --- everything in one process ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Embedded:
    """The whole pipeline in this process. `settings` name where everything really listens."""

    settings: Settings
    drain: Drain  # of all roles together
    roles: tuple[Role, ...] = field(default_factory=tuple)

    async def until_stopped(self) -> None:
        """As `until_stopped`; then they are unready, and what hangs beyond the deadline ends with the process."""
        await until_stopped(*self.roles)
        await self.drain.begin_process(delay_ms=self.settings.front.drain_delay_ms)

    @property
    def addresses(self) -> dict[str, str]:
        found = {name: address for role in self.roles for name, address in role.addresses.items()}
        return found | {
            "kafka.bootstrap": self.settings.kafka.bootstrap,
            "redis.url": self.settings.redis.url.get_secret_value(),
        }


@asynccontextmanager
async def open_embedded(settings: Settings) -> AsyncIterator[Embedded]:
    """Stand-ins for Kafka, Redis and SQL, then every role on them. State dies with the process."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seckill-")))
        standing_in: dict[str, dict[str, Any]] = {
            "redis": {"url": SecretStr(stack.enter_context(embedded_redis())), "run_id_check": False},
            "kafka": {"bootstrap": stack.enter_context(embedded_kafka())},
            "product": {"database_url": _sqlite(folder / "product.db")},
            "order": {"database_url": _sqlite(folder / "order.db")},
            "coordinator": {"database_url": _sqlite(folder / "coordinator.db")},
            "front": {"operator_token": settings.front.operator_token or SecretStr(secrets.token_urlsafe(24))},
        }
        settings = with_values(settings, standing_in)
        await _upgrade_databases(settings)
        yield await _open_roles(stack, settings, ROLES)


@asynccontextmanager
async def open_on_servers(settings: Settings) -> AsyncIterator[Embedded]:
    """Every role but the coordinator, on the servers that the settings name; `dtm.grpc` is who coordinates.

    Topics and schema have to be there. Raises what a role raises that does not start.
    """
    token = settings.front.operator_token or SecretStr(secrets.token_urlsafe(24))
    settings = with_values(settings, {"front": {"operator_token": token}})
    async with AsyncExitStack() as stack:
        yield await _open_roles(stack, settings, [name for name in ROLES if name != "coordinator"])


async def _open_roles(stack: AsyncExitStack, settings: Settings, names: Collection[str]) -> Embedded:
    """Starts them one after the other; the addresses of each are settings of those that follow."""
    roles = []
    drain = Drain(max(getattr(settings, name).drain_timeout_ms for name in names))
    for name in names:
        role = await stack.enter_async_context(ROLES[name](listening(settings, name), drain))
        settings = with_values(settings, _as_sections(role.addresses))
        roles.append(role)
    return Embedded(settings, drain, tuple(roles))


async def _upgrade_databases(settings: Settings) -> None:
    """The embedded profile owns its databases, so it makes their tables by itself; elsewhere an operator does."""
    for name in ("product", "order", "coordinator"):
        url = getattr(settings, name).database_url.get_secret_value()
        async with opening_database(f"{name}.database_url", url):
            await upgrade(name, url)


def with_values(settings: Settings, values: Mapping[str, Mapping[str, Any]]) -> Settings:
    """The settings with some values of some sections replaced."""
    sections = {name: getattr(settings, name).model_copy(update=dict(over)) for name, over in values.items()}
    return settings.model_copy(update=sections)


def _as_sections(addresses: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """`{"product.grpc": …}` as sections; the coordinator's addresses are also where its clients find it."""
    sections: dict[str, dict[str, str]] = {}
    for name, address in addresses.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = address
    if "coordinator" in sections:
        sections["dtm"] = dict(sections["coordinator"])
    return sections


def _sqlite(path: Path) -> SecretStr:
    return SecretStr(f"sqlite+aiosqlite:///{path}")
