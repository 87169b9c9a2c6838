"""The benchmark does what it says on real servers. Its speeds are not judged here: machines differ, and are shared."""

from __future__ import annotations

import json
import time
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


def test_patterns_are_measured_on_real_servers(bench: Seckill) -> None:
    """Every pattern sells, XA included; open transactions are seen, and those that XA holds without a connection."""
    report = bench.json("bench", "patterns", "--concurrency", "2", "--seconds", "0.7", "--no-groups")
    cells = {cell["pattern"]: cell for cell in report["cells"]}
    assert list(cells) == ["tcc", "saga", "xa", "message"]
    assert report["left_out"] == {}
    assert all(cell["transactions"]["open_max"] > 0 for cell in cells.values())
    prepared = {pattern: cell["transactions"]["prepared_mean"] for pattern, cell in cells.items()}
    assert prepared["xa"] > max(prepared["tcc"], prepared["saga"], prepared["message"])
    sums = report["sums"]
    assert sums["confirmed"] == sums["sold"] == sums["order_rows"] >= sum(cell["confirmed"] for cell in cells.values())
    assert sums["frozen"] == sums["prepared"] == 0


def test_patterns_are_measured_on_the_stand_ins(seckill: Seckill) -> None:
    """Each measurement has its figures, and what was confirmed is what both databases hold."""
    report = seckill.json("bench", "patterns", "--pattern", "tcc", "--concurrency", "1,4", "--seconds", "0.3")
    cells = {(cell["orders_each"], cell["concurrency"]): cell for cell in report["cells"]}
    assert list(cells) == [(1, 1), (1, 4), (500, 1), (500, 4)]
    for cell in cells.values():
        assert cell["confirmed_per_second"] == pytest.approx(cell["confirmed"] / cell["seconds"], rel=0.05)
        assert 0 < cell["latency_ms"]["p50"] <= cell["latency_ms"]["p99"]
        assert cell["connections"]["in_use_mean"] > 0
        assert cell["transactions"] is None  # SQLite keeps no list of them
    sums = report["sums"]
    assert sums["confirmed"] == sums["sold"] == sums["order_rows"] >= sum(cell["confirmed"] for cell in report["cells"])
    assert sums["frozen"] == 0


def test_an_interrupted_measurement_tells_what_there_is(seckill: Seckill) -> None:
    """Ctrl-C ends it with 130, and what has been measured by then is told; nobody has checked its sums."""
    seckill.environment["SECKILL__LOG__LEVEL"] = "info"
    concurrencies = ",".join(str(number) for number in range(1, 33))
    running = seckill.start(
        "bench", "patterns", "--pattern", "tcc", "--concurrency", concurrencies, "--seconds", "0.3", "--json"
    )
    until = time.monotonic() + 30
    while "cell_measured" not in running.stderr:
        assert time.monotonic() < until, running.stderr
        assert running.process.poll() is None, running.stderr
        time.sleep(0.05)
    assert running.stop() == 130
    report = json.loads(running.line())
    assert 1 <= len(report["cells"]) < 32
    assert report["sums"] is None
