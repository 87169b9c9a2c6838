"""Coordinators for tests: ours on a database in a temporary folder, or a DTM server that somebody else has started."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from pydantic import SecretStr

from seckill.coordinator import ServedCoordinator, serve_coordinator
from seckill.dtm import DtmClient
from seckill.settings import CoordinatorSettings

DTM_VARIABLE = "SECKILL_TEST_DTM"
"""`grpc host:port,http host:port` of a running DTM server, for the suites that can use one."""

BACKENDS = ["embedded", "dtm"] if DTM_VARIABLE in os.environ else ["embedded"]


@dataclass(frozen=True, slots=True)
class Backend:
    """Where a coordinator answers, and which kind it is: `embedded` or `dtm`."""

    kind: str
    grpc: str
    http: str


def database_url(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder / 'coordinator.db'}"


def coordinator_settings(folder: Path, **changes: Any) -> CoordinatorSettings:
    """Free ports, a log in `folder`, and cron runs that come quickly."""
    values: dict[str, Any] = {
        "grpc": "127.0.0.1:0",
        "http": "127.0.0.1:0",
        "database_url": SecretStr(database_url(folder)),
        "cron_interval_ms": 50,
    }
    return CoordinatorSettings(**values | changes)


@asynccontextmanager
async def coordinator_in(folder: Path, **changes: Any) -> AsyncIterator[ServedCoordinator]:
    async with serve_coordinator(coordinator_settings(folder, **changes)) as served:
        yield served


@asynccontextmanager
async def backend_of(kind: str, folder: Path) -> AsyncIterator[Backend]:
    if kind == "dtm":
        grpc_address, http_address = os.environ[DTM_VARIABLE].split(",")
        yield Backend(kind, grpc_address, http_address)
        return
    async with coordinator_in(folder) as served:
        yield Backend(kind, served.grpc_address, served.http_address)


@asynccontextmanager
async def client_of(backend: Backend | ServedCoordinator, *, timeout_ms: int = 5_000) -> AsyncIterator[DtmClient]:
    if isinstance(backend, ServedCoordinator):
        backend = Backend("embedded", backend.grpc_address, backend.http_address)
    async with (
        grpc.aio.insecure_channel(backend.grpc) as channel,
        DtmClient(channel, address=backend.grpc, http_url=f"http://{backend.http}", timeout_ms=timeout_ms) as client,
    ):
        yield client
