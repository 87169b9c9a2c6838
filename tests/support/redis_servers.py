"""Redis servers for the contract suites: the stand-in, and a real one."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill.admission import Admission, Ledger, open_admission
from seckill.domain.order import Order, Sale
from seckill.embedded import embedded_redis
from seckill.settings import LedgerSettings, RedisSettings
from tests.servers import native
from tests.support.sides import Side

FAR_AHEAD_MS = 32_503_680_000_000  # the year 3000


CONTRACT_DATABASE = 1
"""Of a real server: a front publishes whatever is due in its database, and what these suites leave there is not its."""


@dataclass(frozen=True, slots=True)
class Backend:
    url: str
    run_id_check: bool


@pytest.fixture(scope="session")
def redis_backend(side: Side) -> Iterator[Backend]:
    """Where the suite runs: on a stand-in of its own, then on a real server."""
    if side.kind == "embedded":
        with embedded_redis() as url:
            yield Backend(url, run_id_check=False)
    else:
        yield Backend(side.empty_redis(CONTRACT_DATABASE), run_id_check=True)


OWN_DATABASE = 7


@pytest.fixture(scope="module")
def own_redis(side: Side) -> Iterator[Backend]:
    """One that a module empties as it likes."""
    if side.kind == "embedded":
        with embedded_redis() as url:
            yield Backend(url, run_id_check=False)
    else:
        yield Backend(side.empty_redis(OWN_DATABASE), run_id_check=True)


@contextmanager
def redis_process() -> Iterator[native.Redis]:
    """A real server of the test's own."""
    with tempfile.TemporaryDirectory() as folder, native.redis_process(Path(folder)) as server:
        yield server


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


def lose_product(url: str, product_id: int) -> None:
    """Takes everything of a product out of Redis, as a server that lost its data has."""
    with raw_redis(url) as client:
        client.delete(*client.scan_iter(f"seckill:{{{product_id}}}:*"))


async def claim_due(ledger: Ledger, product_id: int, *, limit: int, republish_after_ms: int) -> list[Order]:
    """Looks for what is due and takes it, as reconcile does."""
    entries = await ledger.due(product_id, limit=limit)
    return await ledger.claim(entries, republish_after_ms=republish_after_ms)
