"""`seckill audit` as an operator has it: once, in a loop, for one sale, and with something broken."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_demo import delete_one_order

if TYPE_CHECKING:
    from tests.e2e.conftest import Seckill

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Shop:
    """A running pipeline with one sale, and its one order, which was confirmed."""

    seckill: Seckill
    sale_id: int
    order_id: str


@pytest.fixture(scope="module")
def shop(new_seckill: Callable[[], Seckill]) -> Iterator[Shop]:
    seckill = new_seckill()
    running = seckill.start("up", "--base-port", "0", "--json")
    assert json.loads(running.line())["addresses"]
    sale = seckill.json("sale", "create", "--product", "5", "--stock", "3", "--ends", "+1h")
    order_id = seckill.json("publish", "--user", "1", "--product", "5")["order_id"]
    assert seckill.json("order", "show", order_id, "--wait", "20")["status"] == "confirmed"
    yield Shop(seckill, sale["sale_id"], order_id)
    assert running.stop(signal.SIGTERM) == 0


def test_a_sound_sale_is_audited(shop: Shop) -> None:
    """Once: 0 and a table. In a loop: one line of JSON each."""
    audit = shop.seckill.run("audit", "--sale", str(shop.sale_id))
    assert audit.returncode == 0, audit.stderr
    assert "6 of 6 invariants hold; 0 units oversold, no order lost." in audit.stdout
    assert not audit.stderr
    watched = shop.seckill.run("audit", "--watch", "--interval", "0.2", "--count", "2", "--json")
    assert watched.returncode == 0, watched.stderr
    assert [json.loads(line)["holds"] for line in watched.stdout.splitlines()] == [True, True]


def test_a_sale_that_is_not_there(shop: Shop) -> None:
    """Nothing to audit is no success."""
    unknown = shop.seckill.run("audit", "--sale", "999")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
    assert "no such sale" in unknown.stderr


def test_ctrl_c_ends_the_watch(shop: Shop) -> None:
    """It is not a failure of the audit: 130, without a traceback."""
    watching = shop.seckill.start("audit", "--watch", "--interval", "60")
    assert "all 6 invariants hold in 1 sales: 1 confirmed" in watching.line()
    assert watching.stop(signal.SIGINT) == 130
    assert "Traceback" not in watching.stderr


async def test_a_lost_order_is_named_with_its_timeline(shop: Shop) -> None:
    """1, the id, and what every store says of it; in a loop as well. The last test here: the sale stays broken."""
    assert await delete_one_order(shop.seckill) == shop.order_id
    broken = shop.seckill.run("audit", "--pause", "0.1")
    assert broken.returncode == 1
    assert f"sold_is_confirmed: order {shop.order_id}: its units are sold, but there is no" in broken.stderr
    story = broken.stdout[broken.stdout.index(f"\norder {shop.order_id}\n") :]
    for line in ("reservation sold, gid", "no order", "decided confirm", "the buyer is told confirmed", ": succeed"):
        assert line in story
    watched = shop.seckill.run("audit", "--watch", "--count", "1", "--pause", "0.1", "--limit", "1", "--json")
    assert watched.returncode == 1
    report = json.loads(watched.stdout)
    assert (len(report["timelines"]), report["more_timelines"], report["holds"]) == (1, 1, False)
