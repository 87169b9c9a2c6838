"""The roles that answer: coordinator, product, order and front."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from seckill.admission import open_admission
from seckill.clients import open_channel
from seckill.coordinator.server import serve_coordinator
from seckill.doctor.start import (
    opening_database,
    refuse_strangers_of_front,
    require_database,
)
from seckill.draining import Drain
from seckill.dtm.serving import BranchServer
from seckill.front.metrics import BATCH_SIZE
from seckill.front.serve import serve_front
from seckill.messaging.publisher import open_publisher
from seckill.ops import Readiness, serve_ops
from seckill.order.service import serve_order
from seckill.product.service import serve_product
from seckill.settings import ServiceSettings, Settings
from seckill.wiring.checkout import require_xa
from seckill.wiring.role import Role


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
    """Raises SettingsError at once when its database cannot do what the pattern needs."""
    require_xa(settings, "product")
    drain = drain or Drain(settings.product.drain_timeout_ms)
    return _open_service("product", settings.product, serve_product(settings.product, settings.tls, drain), drain)


def open_order(settings: Settings, drain: Drain | None = None) -> AbstractAsyncContextManager[Role]:
    """Raises SettingsError at once when its database cannot do what the pattern needs."""
    require_xa(settings, "order")
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
