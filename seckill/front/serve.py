"""The front as a running role: both servers and the background work, and how they end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import grpc
import structlog

from seckill.admission import Admission
from seckill.circuits import Breaker, BreakerLimits
from seckill.draining import Drain
from seckill.dtm.serving import SERVER_OPTIONS, Health, add_port, stop_server
from seckill.front.door import Door, DoorLimits
from seckill.front.grpc import SeckillService
from seckill.front.http import FrontParts, create_app, too_many_connections
from seckill.front.intake import Intake, Publisher
from seckill.front.limits import Rate, RateLimits
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
    drain: Drain | None = None,
) -> AsyncIterator[ServedFront]:
    """Serves until the block ends, unready once `drain` has begun. Then no order is taken (503, UNAVAILABLE), those
    under way are finished, whoever waits for a result is told what is known, and only then the ports are closed.
    Admission and the publisher stay the caller's to close. `tls` is for gRPC; HTTP has its own in `settings`. Raises
    PortInUse and CertificateProblem.
    """
    drain = drain or Drain(settings.drain_timeout_ms)
    products = ProductClient(product, address=product_address)
    door = _door(settings, admission, publisher)
    intake = Intake(admission.gate, publisher, door, publish_timeout_ms=settings.publish_timeout_ms)
    readiness = Readiness(
        "front",
        {
            "redis": admission.sales.check,
            "kafka": publisher.check,
            "product": products.check,
            "circuits": door.check,
        },
        # Orders are taken without it; were every front unready while it restarts, nobody could order anywhere.
        dispensable=frozenset({"product"}),
    )
    drain.when_begun(readiness.stop)
    parts = FrontParts(intake, admission.ledger, SaleDesk(products, admission.sales), readiness)
    service = SeckillService(intake, products, admission.sales)
    app = create_app(settings, parts)
    front_files(settings).check()
    async with (
        serve_http(
            app,
            settings.http,
            drain=drain,
            connections_max=settings.connections_max,
            refused=too_many_connections(),
            certificate=settings.tls_certificate,
            key=settings.tls_key,
        ) as http_address,
        _serve_grpc(service, settings, server_credentials(tls), drain) as grpc_address,
    ):
        try:
            log.info("front_serving", http=http_address, grpc=grpc_address)
            yield ServedFront(http_address, grpc_address)
        finally:
            drain.begin()
            service.drain()
            admission.ledger.stop_waiting()
            await intake.drain(drain)
            await door.close()


def _door(settings: FrontSettings, admission: Admission, publisher: Publisher) -> Door:
    probed = BreakerLimits(settings.circuit_failures_max, settings.circuit_pause_ms)
    # Brokers that answer may still refuse records (too few replicas), so that one order tries it first.
    tried = replace(probed, trial_ms=settings.publish_timeout_ms)
    return Door(
        RateLimits(
            _rate(settings.orders_per_user_per_s, settings.orders_per_user_burst),
            _rate(settings.orders_per_s, settings.orders_per_s),
        ),
        DoorLimits(settings.admission_queue_max, settings.publish_stalled_ms),
        kafka=Breaker("front", "kafka", publisher.check, tried),
        redis=Breaker("front", "redis", admission.sales.check, replace(probed, failures_max=1)),
    )


def _rate(per_s: int, burst: int) -> Rate | None:
    return Rate(per_s, burst) if per_s else None


@asynccontextmanager
async def _serve_grpc(
    service: SeckillService, settings: FrontSettings, credentials: grpc.ServerCredentials | None, drain: Drain
) -> AsyncIterator[str]:
    server = grpc.aio.server(
        options=[*SERVER_OPTIONS, ("grpc.max_receive_message_length", GRPC_REQUEST_BYTES_MAX)],
        maximum_concurrent_rpcs=GRPC_CALLS_MAX,
    )
    seckill_pb2_grpc.add_SeckillServicer_to_server(service, server)
    health = Health(server, drain)
    try:
        port = add_port(server, settings.grpc, credentials)
    except RuntimeError as error:
        raise PortInUse(settings.grpc, str(error)) from error
    await server.start()
    await health.serving(["seckill.Seckill"])
    try:
        yield f"{settings.grpc.rpartition(':')[0]}:{port}"
    finally:
        await health.stopping()
        service.drain()
        await stop_server(server, drain, running=lambda: service.streams)
