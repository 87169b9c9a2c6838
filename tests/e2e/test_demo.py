"""The demo as a user runs it, and its proof: a row deleted behind its back must turn the verdict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import create_async_engine

from seckill.audit.rules import Invariant
from seckill.order.tables import orders
from seckill.settings import load_settings
from tests.servers import Servers
from tests.servers.found import DTM, KAFKA, MARIADB, REDIS
from tests.servers.pipeline import pipeline_environment
from tests.support.sides import Side

if TYPE_CHECKING:
    from tests.e2e.conftest import Running, Seckill

pytestmark = pytest.mark.slow

INVARIANTS = {invariant.value: True for invariant in Invariant}
REDIS_DATABASE = 4
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def here(side: Side, seckill: Seckill) -> Seckill:
    """`seckill` on the embedded servers, or on real ones that its environment names."""
    if side.servers is not None:
        redis = side.empty_redis(REDIS_DATABASE)
        suffix = f"-{uuid.uuid4().hex[:8]}"
        seckill.environment |= await pipeline_environment(side.servers, suffix=suffix, redis_url=redis)
    return seckill


def test_a_whole_sale_ends_with_proof(here: Seckill) -> None:
    """More buyers than units, some of them unruly: all units are sold once, nothing is lost, all six hold."""
    ended = here.run("demo", "--stock", "100", "--buyers", "600", "--json")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout.splitlines()[-1])
    assert report["accepted"] == report["confirmed"] == 100
    assert (report["lost"], report["oversold"], report["duplicates"], report["dead_lettered"]) == (0, 0, 0, 0)
    assert report["invariants"] == INVARIANTS
    assert report["unexpected"] == 0
    assert report["rejected"].keys() >= {"SOLD_OUT", "UNKNOWN_PRODUCT", "INVALID_REQUEST", "BODY_TOO_LARGE"}
    assert report["requests"] == accounted_for(report)
    assert report["seconds"] > 0


def test_the_demo_that_make_runs_on_real_servers(servers: Servers, seckill: Seckill) -> None:
    """`python -m tests.servers run` makes topics and databases on the servers that it is given, for the demo."""
    given = {
        KAFKA: servers.kafka,
        REDIS: servers.redis,
        MARIADB: servers.mariadb,
        DTM: f"{servers.dtm.grpc},{servers.dtm.http}",
    }
    demo = [sys.executable, "-m", "seckill.cli", "demo", "--stock", "50", "--buyers", "200", "--json"]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.servers", "run", "--", *demo],
        env=seckill.environment | given, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout.splitlines()[-1])
    assert report["confirmed"] == 50
    assert report["invariants"] == INVARIANTS


def test_more_units_than_buyers_on_several_products(here: Seckill) -> None:
    """Stock that is not used up stays: who pressed twice still got one unit, on every product."""
    ended = here.run("demo", "--stock", "300", "--buyers", "400", "--products", "3", "--seed", "7", "--json")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout.splitlines()[-1])
    assert 300 < report["confirmed"] == report["accepted"] < 400
    assert report["rejected"]["ALREADY_ORDERED"] > 0
    assert report["repeated"] > 0
    assert "SOLD_OUT" not in report["rejected"]
    assert report["invariants"] == INVARIANTS
    assert report["requests"] == accounted_for(report)


async def test_a_deleted_order_turns_the_verdict(here: Seckill, tmp_path: Path) -> None:
    """The audit reads the stores: with one order row deleted it ends with 1, names the order, and counts it lost."""
    replies = tmp_path / "replies.txt"
    demo = here.start("demo", "--stock", "50", "--buyers", "200", "--keep-running", "--replies", str(replies), "--json")
    addresses = json.loads(demo.line())["addresses"]
    assert json.loads(demo.line())["invariants"] == INVARIANTS
    assert addresses.keys() >= {"front.http", "front.grpc", "product.grpc", "order.grpc"}
    assert len(replies.read_text().splitlines()) == 50

    before = here.run("audit", "--replies", str(replies), "--json")
    assert before.returncode == 0, before.stderr
    assert json.loads(before.stdout)["invariants"] == INVARIANTS

    deleted = await delete_one_order(here)
    after = here.run("audit", "--replies", str(replies), "--json")
    assert after.returncode == 1
    report = json.loads(after.stdout)
    assert (report["lost"], report["lost_orders"]) == (1, [deleted])
    assert not report["invariants"]["sold_is_confirmed"]
    assert not report["invariants"]["every_order_ends"]
    assert report["invariants"]["units_add_up"]
    assert report["invariants"]["redis_agrees"]
    assert stopped(demo)


def order_database(seckill: Seckill) -> str:
    (run_file,) = Path(seckill.environment["XDG_RUNTIME_DIR"]).rglob("up-*.toml")
    return load_settings(run_file).order.database_url.get_secret_value()


async def delete_one_order(seckill: Seckill) -> str:
    """Deletes a row of the order database, as a fault would; the order's id."""
    engine = create_async_engine(order_database(seckill))
    async with engine.begin() as connection:
        found = await connection.execute(select(orders.c.product_id, orders.c.order_id).limit(1))
        product_id, key = found.one()
        assert (await connection.execute(delete(orders).where(orders.c.order_id == key))).rowcount == 1
    await engine.dispose()
    return f"{product_id}-{key.hex()}"


def accounted_for(report: dict[str, Any]) -> int:
    """Every request ended somehow: confirmed, a repeat, refused, set aside, or without an answer."""
    ended: int = report["confirmed"] + report["repeated"] + sum(report["rejected"].values())
    return ended + report["dead_lettered"] + report["lost"] + report["unanswered"]


def stopped(running: Running) -> bool:
    """Ctrl-C drains and ends it with 0, and it says so."""
    return running.stop() == 0 and "drained and ended" in running.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_demo_ended_in_the_middle_leaves_nothing_behind(
    seckill: Seckill, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """A signal while the crowd buys: the exit code of the signal, no buyers' process and no directory left."""
    seckill.environment["TMPDIR"] = str(tmp_path)
    demo = seckill.start("demo", "--buyers", "1000000", "--json")
    crowd = child_of(demo.process.pid)
    assert list(tmp_path.iterdir())
    assert demo.stop(number) == code
    assert demo.stderr.splitlines()[-1] in {"seckill: terminated", "seckill: interrupted"}
    assert "Traceback" not in demo.stderr
    assert not list(tmp_path.iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(crowd, 0)


def child_of(pid: int) -> int:
    """The process that this one starts, waited for."""
    deadline = time.monotonic() + 30
    while not (children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(children[0])
