"""gRPC's health service for a server that is worth nothing without its database: asked for one, it asks the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from seckill.dtm.database import MYSQL

HEALTH_TIMEOUT_S = 1.5
"""How long a check waits for the database: less than whoever asks waits for the answer."""

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

NOT_SERVING_MEANS = "it does not serve now: it is stopping, or its database does not answer in time"
"""For who asked and was told NOT_SERVING."""

log = structlog.get_logger(__name__)


class DatabaseReadOnly(Exception):
    """The server answers and takes no writes: a replica, or a primary that was told to stop."""

    def __init__(self) -> None:
        super().__init__("the database is read-only")


async def check_database(sessions: async_sessionmaker[AsyncSession]) -> None:
    """Raises what the driver raises when the database does not answer, and DatabaseReadOnly."""
    async with sessions() as session:
        if session.get_bind().dialect.name not in MYSQL:
            await session.execute(text("SELECT 1"))
        elif (await session.execute(text("SELECT @@global.read_only"))).scalar_one():
            raise DatabaseReadOnly


class CheckingHealth(health.aio.HealthServicer):  # type: ignore[misc, name-defined]  # the stubs lack `aio`
    """`Check` says NOT_SERVING while `check` raises or does not return; `Watch` tells only whether the server ends."""

    def __init__(self, check: Callable[[], Awaitable[None]] | None) -> None:
        super().__init__()
        self._check = check
        self._asking: asyncio.Task[bool] | None = None

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        reply: health_pb2.HealthCheckResponse = await super().Check(request, context)
        if self._check is not None and reply.status == SERVING and not await self._answers():
            return health_pb2.HealthCheckResponse(status=NOT_SERVING)
        return reply

    async def _answers(self) -> bool:
        """One question to the database at a time, whoever asks meanwhile. It is never cut off: a driver may not return
        from that before the database has answered, and its connection would be lost.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="health-check")
        await asyncio.wait({self._asking}, timeout=HEALTH_TIMEOUT_S)
        return self._asking.done() and self._asking.result()

    async def _ask(self) -> bool:
        assert self._check is not None
        try:
            await self._check()
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, the service cannot serve
            log.warning("health_check_failed", error=repr(error))
            return False
        return True
