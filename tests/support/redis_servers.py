"""Redis servers for the contract suites: the stand-in, and a real one where `redis-server` is installed."""

from __future__ import annotations

import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill.admission import Admission, open_admission
from seckill.domain.order import Sale
from seckill.embedded import embedded_redis
from seckill.settings import LedgerSettings, RedisSettings
from tests.support.programs import needs

FAR_AHEAD_MS = 32_503_680_000_000  # the year 3000


@dataclass(slots=True)
class RedisProcess:
    """A real server of our own on a loopback port; `restart` keeps its data and gives it a new run id."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory),
             "--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while not self._answers():
            if time.monotonic() > deadline:
                raise RuntimeError(f"redis-server did not answer on port {self.port}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=10)
            self.process = None

    def restart(self) -> None:
        self.stop()
        self.start()


@contextmanager
def redis_process() -> Iterator[RedisProcess]:
    """Where no `redis-server` is installed the test is skipped; on CI it fails."""
    needs("redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        server = RedisProcess(Path(directory), port)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@dataclass(frozen=True, slots=True)
class Backend:
    url: str
    run_id_check: bool


@pytest.fixture(scope="session", params=["embedded", "redis"])
def redis_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Where the suite runs: on the stand-in, then on a real server."""
    if request.param == "embedded":
        with embedded_redis() as url:
            yield Backend(url, run_id_check=False)
    else:
        with redis_process() as server:
            yield Backend(server.url, run_id_check=True)


@pytest.fixture
def product_id() -> int:
    """A product of the test's own, so that tests may share a server."""
    return secrets.randbelow(2**62) + 2**53 + 1  # above what a Lua number holds exactly


@pytest.fixture
async def admission(redis_backend: Backend) -> AsyncIterator[Admission]:
    async with admission_on(redis_backend) as opened:
        yield opened


@asynccontextmanager
async def admission_on(
    backend: Backend,
    *,
    batch_max: int = 200,
    queue_max: int = 10_000,
    on_batch: Callable[[int], None] | None = None,
    **ledger: int,
) -> AsyncIterator[Admission]:
    """Gate, ledger and sale book on that server; further arguments are those of the ledger's settings."""
    settings = RedisSettings.model_validate({"url": backend.url, "run_id_check": backend.run_id_check})
    async with open_admission(
        settings, LedgerSettings(**ledger), batch_max=batch_max, queue_max=queue_max, on_batch=on_batch
    ) as opened:
        yield opened


def a_sale(product_id: int, **changes: Any) -> Sale:
    """An open sale of 10 units, 1 each, that began long ago and ends in the year 3000."""
    stock = changes.pop("stock", 10)
    values: dict[str, Any] = {
        "sale_id": 2**53 + 7, "product_id": product_id, "name": "a sale", "starts_at_ms": 1_000,
        "ends_at_ms": FAR_AHEAD_MS, "per_user_limit": 1, "price_cents": 990, "state": "open", "initial": stock,
        "stock": stock, "frozen": 0, "sold": 0, "created_at_ms": 500,
    }  # fmt: skip
    return Sale(**(values | changes))


@contextmanager
def raw_redis(url: str) -> Iterator[redis.Redis]:
    """A plain client, to look at or disturb what the tested code keeps."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        yield client
