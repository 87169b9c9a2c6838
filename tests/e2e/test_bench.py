"""The benchmark does what it says on real servers. Its speeds are not judged here: machines differ, and are shared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.servers import Servers
from tests.servers.pipeline import empty_redis, pipeline_environment
from tests.support.programs import needs

if TYPE_CHECKING:
    from tests.e2e.conftest import Seckill

pytestmark = pytest.mark.slow

REDIS_DATABASE = 6


@pytest.fixture
async def bench(seckill: Seckill, servers: Servers) -> Seckill:
    """`seckill`, set to real servers that it has to itself."""
    redis_url = empty_redis(servers.redis, REDIS_DATABASE)
    seckill.environment |= await pipeline_environment(servers, suffix=f"-{seckill.folder.name}", redis_url=redis_url)
    return seckill


def test_a_backlog_is_confirmed_to_the_last_order(bench: Seckill) -> None:
    """Every order of the backlog is sold, by two workers as by one, and each role's share is told."""
    report = bench.json("bench", "backlog", "--orders", "400", "--workers", "2")
    assert (report["orders"], report["sold"]) == (400, 400)
    assert report["confirmed_per_second"] == pytest.approx(400 / report["seconds"], rel=0.05)
    assert set(report["cpu_us_per_order"]) >= {"product", "order", "other"}  # a worker may be done before it is up


def test_accepted_orders_are_counted_where_they_were_admitted(bench: Seckill) -> None:
    """Accepted are what Redis has admitted: what was answered, and at most what the connections had under way."""
    needs("wrk")
    report = bench.json("bench", "accept", "--seconds", "2", "--connections", "16")
    assert report["refused"] == report["broken_connections"] == 0
    assert 0 < report["requests"] <= report["accepted"] <= report["requests"] + 16


def test_memory_is_read_early_and_late(bench: Seckill) -> None:
    """Every role's size is told twice, the second time after more requests, and accepted ones were among them."""
    needs("wrk")
    report = bench.json("bench", "memory", "--first", "1", "--requests", "2000", "--units", "20", "--own-coordinator")
    assert 0 < report["requests"]["first"] < report["requests"]["last"]
    assert 0 < report["accepted"]["first"] < report["accepted"]["last"] <= 20 * report["sales"]
    roles = {"coordinator", "product", "order", "worker", "reconcile", "front"}
    assert set(report["resident_bytes"]) == roles
    assert all(size["first"] > 10 * 2**20 for size in report["resident_bytes"].values())
