"""Coordinators for tests: ours, with its log in SQLite or in MariaDB, or a DTM server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
from pydantic import SecretStr

from seckill.coordinator import ServedCoordinator, serve_coordinator
from seckill.coordinator.store import OnWrite
from seckill.dtm import DtmClient
from seckill.schema import upgrade
from seckill.settings import CoordinatorSettings
from tests.servers import DtmAddress, Servers, fresh_database


@dataclass(frozen=True, slots=True)
class Backend:
    """Where a coordinator answers, and which kind it is: `sqlite` and `mariadb` are ours, `dtm-sql` is a DTM."""

    kind: str
    grpc: str
    http: str


@dataclass(frozen=True, slots=True)
class Logs:
    """Makes databases for logs, `sqlite` or `mariadb`."""

    kind: str
    empty_database: Callable[[], str]

    async def fresh(self) -> str:
        """URL of a log that has its tables and nothing in them."""
        url = self.empty_database()
        await upgrade("coordinator", url)
        return url


def sqlite_logs(folder: Path) -> Logs:
    return Logs("sqlite", lambda: f"sqlite+aiosqlite:///{folder / uuid4().hex}.db")


def mariadb_logs(servers: Servers) -> Logs:
    return Logs("mariadb", lambda: fresh_database(servers, "coordinator"))


def coordinator_settings(log_url: str, **changes: Any) -> CoordinatorSettings:
    """Free ports, and cron runs that come quickly."""
    values: dict[str, Any] = {
        "grpc": "127.0.0.1:0",
        "http": "127.0.0.1:0",
        "database_url": SecretStr(log_url),
        "cron_interval_ms": 50,
    }
    return CoordinatorSettings(**values | changes)


@asynccontextmanager
async def coordinator_on(
    log_url: str, *, on_write: OnWrite | None = None, **changes: Any
) -> AsyncIterator[ServedCoordinator]:
    """Ours, on a log that has its tables."""
    async with serve_coordinator(coordinator_settings(log_url, **changes), on_write=on_write) as served:
        yield served


def backend_at(kind: str, at: ServedCoordinator | DtmAddress) -> Backend:
    match at:
        case ServedCoordinator(grpc_address=grpc_address, http_address=http_address):
            return Backend(kind, grpc_address, http_address)
        case DtmAddress(grpc=grpc_address, http=http_address):
            return Backend(kind, grpc_address, http_address)


@asynccontextmanager
async def client_of(backend: Backend | ServedCoordinator, *, timeout_ms: int = 5_000) -> AsyncIterator[DtmClient]:
    if isinstance(backend, ServedCoordinator):
        backend = backend_at("ours", backend)
    async with (
        grpc.aio.insecure_channel(backend.grpc) as channel,
        DtmClient(channel, address=backend.grpc, http_url=f"http://{backend.http}", timeout_ms=timeout_ms) as client,
    ):
        yield client
