"""gRPC's health service of product and order: they serve when their database does."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.servers import native
from tests.servers.databases import execute, fresh_database
from tests.support.fronts import running_product

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
Status = health_pb2.HealthCheckResponse.ServingStatus

ANSWERS_WITHIN_S = 2
"""Who asks does not wait longer."""


async def health_of(address: str) -> Status:
    async with grpc.aio.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service="product.Product")
        return (await health_pb2_grpc.HealthStub(channel).Check(request, timeout=ANSWERS_WITHIN_S)).status


async def until(address: str, status: Status) -> None:
    async with asyncio.timeout(20):
        while await health_of(address) != status:
            await asyncio.sleep(0.1)


async def test_a_service_that_cannot_use_its_database_does_not_serve(tmp_path: Path) -> None:
    """NOT_SERVING, in time, while somebody else holds the database; SERVING as soon as it can be used again."""
    file = tmp_path / "product.db"
    async with running_product(f"sqlite+aiosqlite:///{file}") as address:
        assert await health_of(address) == SERVING
        with closing(sqlite3.connect(file, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            assert await health_of(address) == NOT_SERVING
        await until(address, SERVING)


async def test_a_frozen_stopped_or_read_only_server_is_no_database(tmp_path: Path) -> None:
    """Whether MariaDB hangs, is gone, or takes no writes: NOT_SERVING, in time; SERVING when it is back."""
    with native.mariadb_process(tmp_path) as mariadb:
        async with running_product(fresh_database(mariadb.url, "product")) as address:
            assert await health_of(address) == SERVING
            mariadb.freeze()
            began = time.monotonic()
            assert await health_of(address) == NOT_SERVING
            assert time.monotonic() - began < ANSWERS_WITHIN_S
            mariadb.thaw()
            await until(address, SERVING)
            execute(mariadb.url, ["SET GLOBAL read_only = 1"])
            assert await health_of(address) == NOT_SERVING
            execute(mariadb.url, ["SET GLOBAL read_only = 0"])
            await until(address, SERVING)
            mariadb.kill()
            assert await health_of(address) == NOT_SERVING
            mariadb.start()
            await until(address, SERVING)
