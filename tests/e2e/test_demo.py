"""The demo as a user runs it, and its proof: a row deleted behind its back must turn the verdict."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from seckill.demo.audit import Invariant
from seckill.settings import load_settings

if TYPE_CHECKING:
    from tests.e2e.conftest import Running, Seckill

pytestmark = pytest.mark.slow

INVARIANTS = {invariant.value: True for invariant in Invariant}


def test_a_whole_sale_ends_with_proof(seckill: Seckill) -> None:
    """More buyers than units, some of them unruly: all units are sold once, nothing is lost, all six hold."""
    ended = seckill.run("demo", "--stock", "100", "--buyers", "600", "--json")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout.splitlines()[-1])
    assert report["accepted"] == report["confirmed"] == 100
    assert (report["lost"], report["oversold"], report["duplicates"], report["dead_lettered"]) == (0, 0, 0, 0)
    assert report["invariants"] == INVARIANTS
    assert report["unexpected"] == 0
    assert report["rejected"].keys() >= {"SOLD_OUT", "UNKNOWN_PRODUCT", "INVALID_REQUEST", "BODY_TOO_LARGE"}
    assert report["requests"] == accounted_for(report)
    assert report["seconds"] > 0


def test_more_units_than_buyers_on_several_products(seckill: Seckill) -> None:
    """Stock that is not used up stays: who pressed twice still got one unit, on every product."""
    ended = seckill.run("demo", "--stock", "300", "--buyers", "400", "--products", "3", "--seed", "7", "--json")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout.splitlines()[-1])
    assert 300 < report["confirmed"] == report["accepted"] < 400
    assert report["rejected"]["ALREADY_ORDERED"] > 0
    assert report["repeated"] > 0
    assert "SOLD_OUT" not in report["rejected"]
    assert report["invariants"] == INVARIANTS
    assert report["requests"] == accounted_for(report)


def test_a_deleted_order_turns_the_verdict(seckill: Seckill, tmp_path: Path) -> None:
    """The audit reads the stores: with one order row deleted it ends with 1, names the order, and counts it lost."""
    replies = tmp_path / "replies.txt"
    demo = seckill.start(
        "demo", "--stock", "50", "--buyers", "200", "--keep-running", "--replies", str(replies), "--json"
    )
    addresses = json.loads(demo.line())["addresses"]
    assert json.loads(demo.line())["invariants"] == INVARIANTS
    assert addresses.keys() >= {"front.http", "front.grpc", "product.grpc", "order.grpc", "coordinator.grpc"}
    assert len(replies.read_text().splitlines()) == 50

    before = seckill.run("audit", "--replies", str(replies), "--json")
    assert before.returncode == 0, before.stderr
    assert json.loads(before.stdout)["invariants"] == INVARIANTS

    deleted = delete_one_order(seckill)
    after = seckill.run("audit", "--replies", str(replies), "--json")
    assert after.returncode == 1
    report = json.loads(after.stdout)
    assert (report["lost"], report["lost_orders"]) == (1, [deleted])
    assert not report["invariants"]["sold_is_confirmed"]
    assert not report["invariants"]["every_order_ends"]
    assert report["invariants"]["units_add_up"]
    assert report["invariants"]["redis_agrees"]
    assert stopped(demo)


def delete_one_order(seckill: Seckill) -> str:
    """Deletes a row of the order database, as a fault would; the order's id."""
    (run_file,) = Path(seckill.environment["XDG_RUNTIME_DIR"]).rglob("up-*.toml")
    url = load_settings(run_file).order.database_url.get_secret_value()
    with sqlite3.connect(url.removeprefix("sqlite+aiosqlite:///")) as database:
        product_id, key = database.execute("SELECT product_id, order_id FROM orders LIMIT 1").fetchone()
        assert database.execute("DELETE FROM orders WHERE order_id = ?", (key,)).rowcount == 1
    database.close()
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
