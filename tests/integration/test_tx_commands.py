"""`seckill tx retry` and `tx resolve` on running services, as an operator runs them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from seckill.cli.errors import FAILED, OK, UNREACHABLE
from seckill.domain.order import Order, Sale
from seckill.dtm.protocol import TransOptions
from seckill.settings import variable
from seckill.wiring import open_dtm
from tests.support.backbone import Backbone
from tests.support.branch_calls import branch_calls

DIALLED = ("product.grpc", "order.grpc", "dtm.grpc", "dtm.http")


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == OK, self.err
        return json.loads(self.out)


async def tx(backbone: Backbone, *arguments: str) -> Ended:
    """`seckill tx …` as a process, on the backbone's addresses."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SECKILL")}
    for name in DIALLED:
        section, _, key = name.partition(".")
        environment[variable(name)] = getattr(getattr(backbone.settings, section), key)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "seckill.cli", "tx", *arguments,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def orders_of(backbone: Backbone, count: int = 2) -> tuple[Sale, list[Order]]:
    sale = await backbone.open_sale(stock=10)
    return sale, [await backbone.admit(sale, user_id) for user_id in range(1, count + 1)]


async def counters(backbone: Backbone, sale: Sale) -> tuple[int, int, int]:
    row = await backbone.read_sale(sale)
    return row.stock, row.frozen, row.sold


# --- resolve ---------------------------------------------------------------------------------------------------------


async def test_a_lost_transaction_is_cancelled(backbone: Backbone) -> None:
    """Units of a gid that its coordinator lost, without confirmed orders, go back; a dry run only says so, and a
    repeat finds nothing to do.
    """
    sale, orders = await orders_of(backbone)
    async with branch_calls(backbone.settings, orders, uuid4().hex) as lost:
        await lost.product("try")
        await lost.order("try")
    told = (await tx(backbone, "resolve", lost.gid, "--dry-run", "--json")).json
    assert (told["action"], told["done"], told["coordinator"]) == ("cancel", False, None)
    assert {each["state"] for each in told["reservations"]} == {"frozen"}
    assert await counters(backbone, sale) == (8, 2, 0)

    ended = (await tx(backbone, "resolve", lost.gid, "--json")).json
    assert (ended["action"], ended["done"]) == ("cancel", True)
    assert {each["state"] for each in ended["reservations"]} == {"released"}
    assert await counters(backbone, sale) == (10, 0, 0)

    again = (await tx(backbone, "resolve", lost.gid, "--json")).json
    assert (again["action"], again["done"]) == (None, False)
    assert await counters(backbone, sale) == (10, 0, 0)


async def test_a_lost_transaction_with_confirmed_orders_is_confirmed(backbone: Backbone) -> None:
    """A confirmed order decides: the units that its gid still holds are sold."""
    sale, orders = await orders_of(backbone)
    async with branch_calls(backbone.settings, orders, uuid4().hex) as lost:
        await lost.product("try")
        await lost.order("try")
        await lost.order("confirm")
    ended = await tx(backbone, "resolve", lost.gid)
    assert ended.code == OK, ended.err
    assert "done: Confirm of product" in ended.out
    assert await counters(backbone, sale) == (8, 0, 2)


async def test_what_is_carried_is_refused(backbone: Backbone) -> None:
    """While its coordinator carries a transaction, nobody else ends it: the line names `tx retry`."""
    sale, orders = await orders_of(backbone)
    async with open_dtm(backbone.settings) as dtm:
        gid = await dtm.new_gid()
        await dtm.prepare(gid, options=TransOptions(timeout_to_fail_s=600))
        async with branch_calls(backbone.settings, orders, gid) as carried:
            await carried.product("try")
        refused = await tx(backbone, "resolve", gid)
        assert refused.code == FAILED
        assert f"seckill tx retry {gid}" in refused.err
        assert await counters(backbone, sale) == (8, 2, 0)
        await dtm.abort(gid)


async def test_contradicting_branches_are_left_to_a_person(backbone: Backbone) -> None:
    """Orders that are confirmed and whose units were given back: exit code 1, both numbers, and nothing changes."""
    sale, orders = await orders_of(backbone)
    async with branch_calls(backbone.settings, orders, uuid4().hex) as torn:
        await torn.product("try")
        await torn.order("try")
        await torn.order("confirm")
        await torn.product("cancel")
    refused = await tx(backbone, "resolve", torn.gid)
    assert refused.code == FAILED
    assert "2 orders are confirmed, and 2 reservations have given their units back" in refused.err
    assert await counters(backbone, sale) == (10, 0, 0)


async def test_a_branch_that_was_decided_otherwise_is_named(backbone: Backbone) -> None:
    """A branch that refuses the end that the others ask for is told with what it answered; product keeps its units."""
    sale, orders = await orders_of(backbone)
    async with branch_calls(backbone.settings, orders, uuid4().hex) as torn:
        await torn.product("try")
        await torn.order("try")
        await torn.order("confirm")
    await backbone.query("order", "DELETE FROM orders WHERE gid = :gid", gid=torn.gid)
    refused = await tx(backbone, "resolve", torn.gid)
    assert refused.code == FAILED
    assert "contradict" in refused.err
    assert "FAILED_PRECONDITION" in refused.err
    assert await counters(backbone, sale) == (8, 2, 0)


@pytest.mark.parametrize("command", ["retry", "resolve"])
@pytest.mark.parametrize("gid", ["no-such-gid", "'; -- " + "x" * 200])
async def test_an_unknown_gid(backbone: Backbone, command: str, gid: str) -> None:
    """A gid that nobody knows, whatever it looks like, ends with 1 and a line that says so."""
    ended = await tx(backbone, command, "--", gid)
    assert ended.code == FAILED, ended.err
    assert "know it" in ended.err
    assert len(ended.err.strip().splitlines()) == 1


@pytest.mark.own_coordinator
async def test_without_a_coordinator_nothing_is_done(backbone: Backbone) -> None:
    """Whether a transaction is lost, only its coordinator can say: while it is down, both commands end with 3."""
    sale, orders = await orders_of(backbone)
    async with branch_calls(backbone.settings, orders, uuid4().hex) as lost:
        await lost.product("try")
    await backbone.stop("coordinator")
    for command in ("resolve", "retry"):
        ended = await tx(backbone, command, lost.gid)
        assert ended.code == UNREACHABLE
        assert "dtm.http" in ended.err
    assert await counters(backbone, sale) == (8, 2, 0)
    await backbone.start("coordinator")


# --- retry -----------------------------------------------------------------------------------------------------------


async def test_a_retry_brings_the_next_look_forward(backbone: Backbone) -> None:
    """A decided transaction in a long pause is carried on at once; a dry run leaves it in its pause."""
    sale, orders = await orders_of(backbone)
    options = TransOptions(retry_interval_s=300)
    async with open_dtm(backbone.settings) as dtm:
        gid = await dtm.new_gid()
        await dtm.prepare(gid, options=options)
        method = f"{backbone.settings.product.grpc}/product.Product"
        await dtm.register_branch(
            gid, trans_type="tcc", branch_id="01", payload=b"",
            data={"confirm": f"{method}/UpdateProductStock", "cancel": f"{method}/RollbackProductStock"},
        )  # fmt: skip
        async with branch_calls(backbone.settings, orders, gid) as carried:
            await carried.product("try")
        await backbone.stop("product")
        await dtm.abort(gid)  # product is down, so the call fails, and the next one is ten minutes away
        await until_paused(backbone, gid)
        await backbone.start("product")
        told = (await tx(backbone, "retry", gid, "--dry-run", "--json")).json
        assert told == {"gid": gid, "status": "aborting", "retried": False}
        assert await next_look_in_s(backbone, gid) > 60
        assert (await tx(backbone, "retry", gid, "--json")).json["retried"] is True
        async with asyncio.timeout(30):
            while (found := await dtm.query(gid)) is None or not found.finished:
                await asyncio.sleep(0.1)
        assert await counters(backbone, sale) == (10, 0, 0)
        finished = await tx(backbone, "retry", gid)
    assert finished.code == FAILED
    assert "finished (failed)" in finished.err


async def next_look_in_s(backbone: Backbone, gid: str) -> float:
    async with open_dtm(backbone.settings) as dtm:
        found = await dtm.query(gid)
    assert found is not None
    assert found.next_cron_at is not None
    return (found.next_cron_at - datetime.now(UTC)).total_seconds()


async def until_paused(backbone: Backbone, gid: str) -> None:
    async with asyncio.timeout(20):
        while await next_look_in_s(backbone, gid) < 60:
            await asyncio.sleep(0.1)
