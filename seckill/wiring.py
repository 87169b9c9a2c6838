"""The only place that constructs clients and services.

Importing opens nothing. Each `open_…` is an async context manager that builds one role from settings and takes it
down in the reverse order; `run_role` is a role as a process of its own, ended by SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import structlog
from aiokafka import AIOKafkaConsumer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from consumers.reconcile import ReconcileLimits, Reconciler
from consumers.seckill_rmq import SeckillCarrier
from seckill.admission import Admission, open_admission
from seckill.checkout.late import LateAdmission
from seckill.checkout.orphans import Orphans
from seckill.checkout.reservations import Reservations
from seckill.checkout.tcc import TccCheckout, TccPlan
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
from seckill.dtm.channels import open_channel as dial
from seckill.dtm.client import DtmClient
from seckill.dtm.protocol import TransOptions
from seckill.dtm.serving import BranchServer
from seckill.embedded import embedded_kafka, embedded_redis
from seckill.front.metrics import BATCH_SIZE
from seckill.front.product_client import ProductClient
from seckill.front.serve import serve_front
from seckill.messaging.connection import connection, start
from seckill.messaging.dead_letters import DeadLetters
from seckill.messaging.lag import oldest_uncommitted_ms
from seckill.messaging.publisher import Publisher, open_publisher
from seckill.messaging.worker import Carrier, Worker, WorkerLimits
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
    """A running role: where it can be reached, and the task whose end means that it failed."""

    name: str
    addresses: Mapping[str, str]
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
async def open_consumer(settings: KafkaSettings) -> AsyncIterator[AIOKafkaConsumer]:
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
        await _stop_consumer(consumer)


async def _stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Leaves the group. `stop()` can hang while Kafka is down or forms the group, so it is bounded.

    It takes one cancellation for the end of its joining and goes on to leave, so that it may need a second one.
    """
    stopping = asyncio.create_task(consumer.stop())
    for limit_s in STOP_LIMITS_S:
        await asyncio.wait({stopping}, timeout=limit_s)
        if stopping.done():
            break
        stopping.cancel()
    if not stopping.done() or stopping.cancelled():
        log.warning("consumer_stop_incomplete", error="no answer in time")
    elif error := stopping.exception():
        log.warning("consumer_stop_incomplete", error=f"{type(error).__name__}: {error}")


# --- roles -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_coordinator(settings: Settings) -> AsyncIterator[Role]:
    async with AsyncExitStack() as stack:
        url = settings.coordinator.database_url.get_secret_value()
        await require_database("coordinator", url, settings.coordinator)
        async with opening_database("coordinator.database_url", url):
            served = await stack.enter_async_context(serve_coordinator(settings.coordinator, tls=settings.tls))
        yield Role("coordinator", {"coordinator.grpc": served.grpc_address, "coordinator.http": served.http_address})


def open_product(settings: Settings) -> AbstractAsyncContextManager[Role]:
    return _open_service("product", settings.product, serve_product(settings.product, settings.tls))


def open_order(settings: Settings) -> AbstractAsyncContextManager[Role]:
    return _open_service("order", settings.order, serve_order(settings.order, settings.tls))


@asynccontextmanager
async def _open_service(
    name: str, settings: ServiceSettings, service: AbstractAsyncContextManager[BranchServer]
) -> AsyncIterator[Role]:
    """A gRPC service on a database of its own, and what its operators ask."""
    async with AsyncExitStack() as stack:
        url = settings.database_url.get_secret_value()
        await require_database(name, url, settings)
        async with opening_database(f"{name}.database_url", url):
            served = await stack.enter_async_context(service)
        readiness = Readiness(name, {"database": served.check})
        ops = await stack.enter_async_context(serve_ops(settings.ops, readiness))
        stack.callback(readiness.stop)
        addresses = {f"{name}.grpc": served.address, f"{name}.ops": ops}
        if served.branch_address is not None:
            addresses[f"{name}.branch_grpc"] = served.branch_address
        yield Role(name, addresses)


@asynccontextmanager
async def open_front(settings: Settings) -> AsyncIterator[Role]:
    """Raises AdmissionUnavailable or PublishUnknown when Redis or Kafka does not answer at start, and Unfit."""
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
        publisher = await stack.enter_async_context(open_publisher(settings.kafka))
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
            )
        )
        yield Role("front", {"front.http": served.http_address, "front.grpc": served.grpc_address})


@asynccontextmanager
async def open_carrier(
    settings: Settings,
) -> AsyncIterator[tuple[Carrier, Mapping[str, Check]]]:
    """What carries an order from the topic to its end, and how to ask whether its dependencies answer."""
    async with AsyncExitStack() as stack:
        admission = await stack.enter_async_context(
            open_admission(settings.redis, settings.ledger, batch_max=settings.front.admission_batch_max)
        )
        publisher = await stack.enter_async_context(open_publisher(settings.kafka))
        await publisher.require_topics(
            {"kafka.topic": settings.kafka.topic, "kafka.dead_letter_topic": settings.kafka.dead_letter_topic}
        )
        channel = await stack.enter_async_context(open_channel(settings.product.grpc, settings.tls))
        order_channel = await stack.enter_async_context(open_channel(settings.order.grpc, settings.tls))
        client = await stack.enter_async_context(open_dtm(settings))
        reservations = Reservations(channel, address=settings.product.grpc, timeout_ms=settings.dtm.request_timeout_ms)
        carrier = SeckillCarrier(
            ledger=admission.ledger,
            late=LateAdmission(admission.gate, reservations),
            checkout=TccCheckout(client, reservations, _plan(settings)),
            reservations=reservations,
            dead_letters=DeadLetters(publisher, topic=settings.kafka.dead_letter_topic, group=settings.kafka.group),
            policy=RetryPolicy(settings.retry.attempts_max, settings.retry.base_ms, settings.retry.cap_ms),
            undecided_wait_ms=settings.ledger.undecided_wait_ms,
        )
        yield carrier, _checks(settings, admission, publisher, product=channel, order=order_channel, client=client)


@asynccontextmanager
async def open_worker(settings: Settings) -> AsyncIterator[Role]:
    """The consumer of the topic. On leaving it stops fetching, finishes what it holds, commits and leaves the group.

    Raises AdmissionUnavailable or PublishUnknown when Redis or Kafka does not answer at start, and Unfit.
    """
    await refuse_strangers_of_worker(settings)
    async with AsyncExitStack() as stack:
        carrier, checks = await stack.enter_async_context(open_carrier(settings))
        await checks["redis"]()
        consumer = await stack.enter_async_context(open_consumer(settings.kafka))
        limits = WorkerLimits(
            batch_max=settings.worker.batch_max,
            groups_per_sale_max=settings.worker.groups_per_sale_max,
            inflight_max=settings.worker.inflight_max,
            poll_timeout_ms=settings.worker.poll_timeout_ms,
            drain_timeout_ms=settings.worker.drain_timeout_ms,
        )
        worker = Worker(consumer, carrier, limits)
        readiness = Readiness("worker", {**checks, "group": lambda: _in_group(worker)})
        ops = await stack.enter_async_context(serve_ops(settings.worker.ops, readiness))
        task = asyncio.create_task(worker.run([settings.kafka.topic]), name="worker")
        try:
            await _joined(worker, task, settings.kafka)
            yield Role("worker", {"worker.ops": ops}, task)
        finally:
            readiness.stop()
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
async def open_reconciler(settings: Settings) -> AsyncIterator[tuple[Reconciler, Mapping[str, Check]]]:
    """What looks after orders and transactions that somebody left behind, and how to ask for its dependencies."""
    async with AsyncExitStack() as stack:
        admission = await stack.enter_async_context(open_admission(settings.redis, settings.ledger))
        publisher = await stack.enter_async_context(open_publisher(settings.kafka))
        await publisher.require_topics({"kafka.topic": settings.kafka.topic})
        channel = await stack.enter_async_context(open_channel(settings.product.grpc, settings.tls))
        order_channel = await stack.enter_async_context(open_channel(settings.order.grpc, settings.tls))
        client = await stack.enter_async_context(open_dtm(settings))
        reservations = Reservations(channel, address=settings.product.grpc, timeout_ms=settings.dtm.request_timeout_ms)
        products = ProductClient(channel, address=settings.product.grpc)
        reconciler = Reconciler(
            ledger=admission.ledger,
            sales=lambda product_id: products.list_sales(product_id=product_id),
            reservations=reservations,
            orphans=Orphans(
                client,
                product=channel,
                order=order_channel,
                # It calls branches itself, where we dial them, and not where a coordinator does.
                product_address=settings.product.grpc,
                order_address=settings.order.grpc,
                timeout_ms=settings.dtm.request_timeout_ms,
            ),
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
async def open_reconcile(settings: Settings) -> AsyncIterator[Role]:
    """Raises AdmissionUnavailable or PublishUnknown when Redis or Kafka does not answer at start, and Unfit."""
    await refuse_strangers_of_worker(settings)
    async with AsyncExitStack() as stack:
        reconciler, checks = await stack.enter_async_context(open_reconciler(settings))
        await checks["redis"]()
        readiness = Readiness("reconcile", checks)
        ops = await stack.enter_async_context(serve_ops(settings.reconcile.ops, readiness))
        task = asyncio.create_task(reconciler.run(), name="reconcile")
        try:
            yield Role("reconcile", {"reconcile.ops": ops}, task)
        finally:
            readiness.stop()
            reconciler.stop()
            _, unfinished = await asyncio.wait({task}, timeout=settings.reconcile.drain_timeout_ms / 1000)
            if unfinished:  # every step of a look may be cut off: the next look finds what is left
                task.cancel()
                await asyncio.wait({task})


ROLES: Mapping[str, Callable[[Settings], AbstractAsyncContextManager[Role]]] = {
    "coordinator": open_coordinator,
    "product": open_product,
    "order": open_order,
    "worker": open_worker,
    "reconcile": open_reconcile,
    "front": open_front,
}
"""In the order in which they start; they stop in the reverse one, so that intake ends first."""


async def run_role(name: str, settings: Settings, *, started: Callable[[Role], None] | None = None) -> None:
    """One role as a process: serves until SIGTERM or SIGINT, then drains. Raises what ended it otherwise."""
    warn_of_plaintext(name, settings)
    async with ROLES[name](settings) as role:
        log.info("role_started", role=name, **role.addresses)
        if started is not None:
            started(role)
        await until_stopped(role)
        log.info("role_draining", role=name)
    log.info("role_stopped", role=name)


async def until_stopped(*roles: Role) -> None:
    """Returns on SIGTERM or SIGINT; raises when a role's own task ends before that."""
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
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
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)  # a second signal, while it drains, goes where the first would have gone


# --- everything in one process ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Embedded:
    """The whole pipeline in this process. `settings` name where everything really listens."""

    settings: Settings
    roles: tuple[Role, ...] = field(default_factory=tuple)

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


async def _open_roles(stack: AsyncExitStack, settings: Settings, names: Iterable[str]) -> Embedded:
    """Starts them one after the other; the addresses of each are settings of those that follow."""
    roles = []
    for name in names:
        role = await stack.enter_async_context(ROLES[name](listening(settings, name)))
        settings = with_values(settings, _as_sections(role.addresses))
        roles.append(role)
    return Embedded(settings, tuple(roles))


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
