"""The coordinator as a server: its log, its engine, gRPC and HTTP, opened together and closed in order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog
from starlette.routing import BaseRoute

from seckill.coordinator.engine import Coordinator
from seckill.coordinator.grpc_api import DtmApi, status_of
from seckill.coordinator.http_api import coordinator_app
from seckill.coordinator.store import OnWrite, Store
from seckill.coordinator.timing import Timing
from seckill.draining import Drain
from seckill.dtm.channels import Channels
from seckill.dtm.serving import serve
from seckill.ops import Readiness, ops_routes, serve_http
from seckill.security import channel_credentials, database_context, server_credentials
from seckill.settings import NO_TLS, CoordinatorSettings, TlsSettings
from seckill.wire.dtmgimp_pb2_grpc import add_DtmServicer_to_server

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServedCoordinator:
    """A coordinator that answers at these addresses (`host:port`)."""

    coordinator: Coordinator
    grpc_address: str
    http_address: str


@asynccontextmanager
async def serve_coordinator(
    settings: CoordinatorSettings,
    *,
    tls: TlsSettings = NO_TLS,
    extra_routes: Sequence[BaseRoute] = (),
    on_write: OnWrite | None = None,
    drain: Drain | None = None,
) -> AsyncIterator[ServedCoordinator]:
    """Serves until the context is left; then no new requests, the branch calls under way end, the log is closed.

    Port 0 takes a free one. With `tls` it serves gRPC and dials branches with it; HTTP stays plain, by design.
    `extra_routes` are HTTP routes beside DTM's.
    """
    timing = Timing(
        branch_timeout_s=settings.branch_timeout_s,
        retry_interval_s=settings.retry_interval_s,
        timeout_to_fail_s=settings.timeout_to_fail_s,
        cron_interval_ms=settings.cron_interval_ms,
    )
    drain = drain or Drain(settings.drain_timeout_ms)
    async with AsyncExitStack() as stack:
        channels = await stack.enter_async_context(Channels(channel_credentials(tls)))
        context = database_context("coordinator", settings)
        url = settings.database_url.get_secret_value()
        store = await stack.enter_async_context(Store(url, on_write=on_write, tls=context))
        coordinator = await stack.enter_async_context(Coordinator(store, channels, timing, drain))
        readiness = Readiness("coordinator", {"log": coordinator.check})
        drain.when_begun(readiness.stop)
        app = coordinator_app(coordinator, [*extra_routes, *ops_routes(readiness)])
        http_address = await stack.enter_async_context(serve_http(app, settings.http, drain=drain))
        grpc_address = await stack.enter_async_context(
            serve(
                settings.grpc,
                lambda server: add_DtmServicer_to_server(DtmApi(coordinator), server),
                names=["dtmgimp.Dtm"],
                status_of=status_of,
                drain=drain,
                credentials=server_credentials(tls),
                check=coordinator.check,
            )
        )
        log.info("coordinator_serving", grpc=grpc_address, http=http_address)
        try:
            yield ServedCoordinator(coordinator, grpc_address, http_address)
        finally:
            log.info("coordinator_stopping")
            drain.begin()
