"""The front as a running role: both servers and the background work, and how they end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from seckill.admission import Admission
from seckill.dtm.serving import SERVER_OPTIONS, add_port
from seckill.front.grpc import SeckillService
from seckill.front.http import FrontParts, create_app
from seckill.front.intake import Intake, Publisher
from seckill.front.product_client import ProductClient
from seckill.front.sale_desk import SaleDesk
from seckill.ops import PortInUse, Readiness, serve_http
from seckill.security import front_files, server_credentials
from seckill.settings import NO_TLS, FrontSettings, TlsSettings
from seckill.wire import seckill_pb2_grpc

log = structlog.get_logger(__name__)

GRPC_REQUEST_BYTES_MAX = 16_384
GRPC_CALLS_MAX = 4_096


@dataclass(frozen=True, slots=True)
class ServedFront:
    """Where the running front listens."""

    http_address: str
    grpc_address: str


@asynccontextmanager
async def serve_front(
    settings: FrontSettings,
    *,
    admission: Admission,
    publisher: Publisher,
    product: grpc.aio.Channel,
    product_address: str,
    tls: TlsSettings = NO_TLS,
) -> AsyncIterator[ServedFront]:
    """Serves until the block ends. Then: unready, no new orders, those under way are finished within
    `drain_timeout_ms`. Admission and the publisher stay the caller's to close. `tls` is for gRPC; HTTP has its own in
    `settings`. Raises PortInUse and CertificateProblem.
    """
    products = ProductClient(product, address=product_address)
    intake = Intake(
        admission.gate,
        publisher,
        publish_timeout_ms=settings.publish_timeout_ms,
        orders_max=settings.admission_queue_max,
    )
    readiness = Readiness(
        "front", {"redis": admission.sales.check, "kafka": publisher.check, "product": products.check}
    )
    parts = FrontParts(intake, admission.ledger, SaleDesk(products, admission.sales), readiness)
    service = SeckillService(intake, products, admission.sales)
    app = create_app(settings, parts)
    front_files(settings).check()
    async with (
        serve_http(
            app,
            settings.http,
            drain_timeout_ms=settings.drain_timeout_ms,
            connections_max=settings.connections_max,
            certificate=settings.tls_certificate,
            key=settings.tls_key,
        ) as http_address,
        _serve_grpc(service, settings, server_credentials(tls)) as grpc_address,
    ):
        try:
            log.info("front_serving", http=http_address, grpc=grpc_address)
            yield ServedFront(http_address, grpc_address)
        finally:
            readiness.stop()
            service.drain()
            await intake.drain(timeout_ms=settings.drain_timeout_ms)


@asynccontextmanager
async def _serve_grpc(
    service: SeckillService, settings: FrontSettings, credentials: grpc.ServerCredentials | None
) -> AsyncIterator[str]:
    server = grpc.aio.server(
        options=[*SERVER_OPTIONS, ("grpc.max_receive_message_length", GRPC_REQUEST_BYTES_MAX)],
        maximum_concurrent_rpcs=GRPC_CALLS_MAX,
    )
    seckill_pb2_grpc.add_SeckillServicer_to_server(service, server)
    healthy = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs lack `aio`
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    try:
        port = add_port(server, settings.grpc, credentials)
    except RuntimeError as error:
        raise PortInUse(settings.grpc, str(error)) from error
    await server.start()
    for name in ("", "seckill.Seckill"):
        await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield f"{settings.grpc.rpartition(':')[0]}:{port}"
    finally:
        await healthy.enter_graceful_shutdown()
        service.drain()
        await server.stop(settings.drain_timeout_ms / 1_000)
