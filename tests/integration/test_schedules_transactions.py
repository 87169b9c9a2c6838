"""The schedules that a transaction and its branches have to survive, each by name. Those of orders: test_schedules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar
from uuid import uuid4

import grpc
import pytest

from consumers.reconcile import Reconciler
from consumers.seckill_rmq import SeckillCarrier
from seckill.coordinator import Coordinator, Store, Timing
from seckill.coordinator.commands import Claim, Command, Decide
from seckill.coordinator.refusals import Refusal
from seckill.domain.errors import OrderUnavailable
from seckill.domain.order import Order
from seckill.domain.outcomes import Undecided
from seckill.dtm import Channels, TransOptions
from seckill.wiring import open_reconciler, with_values
from tests.integration.test_carrier import CONFIRMED, carry, results
from tests.integration.test_reconcile import admitted, make_due
from tests.servers.databases import execute
from tests.support.backbone import Backbone
from tests.support.branch_calls import branch_calls
from tests.support.branches import Branches, serve_branches
from tests.support.relays import relay_to
from tests.support.rigs import Rig, open_rig
from tests.support.sides import Side
from tests.support.statuses import Fails
from tests.support.unreliable import Loss

pytestmark = pytest.mark.own_redis

T = TypeVar("T")

CONTRADICTS = grpc.StatusCode.FAILED_PRECONDITION
ORPHANED_S = 2.1
"""Older than that a branch is an orphan: `orphan_after_ms` is a second here, and ages are told in whole ones."""


async def counters(backbone: Backbone, order: Order) -> tuple[int, int, int]:
    """Stock, frozen and sold of the order's sale."""
    query = "SELECT stock, frozen, sold FROM sale WHERE sale_id = :id"
    ((stock, frozen, sold),) = await backbone.query("product", query, id=order.sale_id)
    return int(str(stock)), int(str(frozen)), int(str(sold))


async def until_confirmed(backbone: Backbone, carrier: SeckillCarrier, reconciler: Reconciler, order: Order) -> None:
    """Reconcile looks again and again; what it publishes is carried."""
    async with asyncio.timeout(40):
        while await results(backbone, [order]) != [(CONFIRMED, "")]:
            await make_due(backbone, [order])
            if (await reconciler.once()).counts["republished"]:
                await carry(carrier, [order])
            await asyncio.sleep(0.1)


# --- what a coordinator says -----------------------------------------------------------------------------------------


async def test_submit_of_a_gid_the_coordinator_lost(
    side: Side, rig: Rig, carrier: SeckillCarrier, reconciler: Reconciler
) -> None:
    """Both Tries have succeeded, the coordinator loses the gid, Submit comes. Ours refuses; DTM answers OK to an empty
    transaction, and calls it succeeded.

    Nobody is told confirmed on that word: the order waits, is ended as an orphan, and confirms under a new gid.
    """
    backbone = rig.backbone
    sale = await backbone.open_sale(stock=3)
    (order,) = await admitted(backbone, sale, 1)
    lost: list[str] = []

    async def forget(gid: str) -> None:
        lost.append(gid)
        await forget_transaction(backbone, side, gid)

    rig.client.forget, rig.client.submit_losses = forget, [Loss.GID]
    outcomes = await rig.checkout.run([order])
    assert isinstance(outcomes[order.order_id], Undecided)
    assert await counters(backbone, order) == (2, 1, 0)
    transaction = await rig.client.query(lost[0])
    assert (transaction.status if transaction else None) == ("succeed" if side.dtm else None)
    await until_confirmed(backbone, carrier, reconciler, order)
    assert await counters(backbone, order) == (2, 0, 1)
    assert len(await backbone.query("order", "SELECT gid FROM orders WHERE gid != :gid", gid=lost[0])) == 1


async def forget_transaction(backbone: Backbone, side: Side, gid: str) -> None:
    """As a coordinator whose store was set back: the gid is in none of its tables."""
    if side.servers is None:
        await backbone.query("coordinator", "DELETE FROM coordinator_branch WHERE gid = :gid", gid=gid)
        await backbone.query("coordinator", "DELETE FROM coordinator_transaction WHERE gid = :gid", gid=gid)
        return
    for table in ("trans_branch_op", "trans_global"):
        tables = await backbone.query(
            "product", "SELECT table_schema FROM information_schema.tables WHERE table_name = :table", table=table
        )
        execute(side.servers.mariadb, [f"DELETE FROM `{schema}`.{table} WHERE gid = '{gid}'" for (schema,) in tables])


async def test_submit_sent_twice(
    side: Side, backbone: Backbone, carrier: SeckillCarrier, reconciler: Reconciler
) -> None:
    """Submit is sent, order's Confirm fails for the moment, and Submit is sent again. Ours goes on confirming; DTM runs
    the second one with no branches and calls the transaction succeeded.

    The rows are read, and they say frozen: the order waits, and in the end it confirms once.
    """
    sale = await backbone.open_sale(stock=3)
    (order,) = await admitted(backbone, sale, 1)
    async with relay_to(backbone.settings.order.grpc) as relay, open_rig(backbone, order_address=relay.address) as rig:
        relay.lost["CreateOrder"] = [grpc.StatusCode.INTERNAL]
        rig.client.submit_losses = [Loss.TWICE]
        outcomes = await rig.checkout.run([order])
        (undecided,) = outcomes.values()
        assert isinstance(undecided, Undecided)
        assert await counters(backbone, order) == (2, 1, 0)
        transaction = await rig.client.query(undecided.gid)
        assert transaction is not None
        assert transaction.status == ("succeed" if side.dtm else "submitted")
        await until_confirmed(backbone, carrier, reconciler, order)
    assert await counters(backbone, order) == (2, 0, 1)
    assert await backbone.query("order", "SELECT count(*) FROM orders") == [(1,)]


class HeldStore(Store):
    """A coordinator's log in which writes of one kind wait until the test lets them go; all others pass them by."""

    def __init__(self, url: str, held: type) -> None:
        super().__init__(url)
        self._held = held
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def write(self, command: Command[T]) -> T:
        if isinstance(command, self._held):
            self.reached.set()
            await self.go.wait()
        return await super().write(command)


@pytest.fixture
async def branches() -> AsyncIterator[Branches]:
    async with serve_branches() as served:
        yield served


@pytest.mark.parametrize("held", [Claim, Decide], ids=["before-it-is-claimed", "before-its-status-changes"])
async def test_a_branch_registered_between_a_time_outs_look_and_its_status_change(
    log_url: str, branches: Branches, held: type
) -> None:
    """A cron run finds a transaction whose time is over; a branch is registered; then the status changes.

    That branch is cancelled as well, before the one that was there at the look; later ones are refused.
    """
    data = {"confirm": branches.branch.confirm, "cancel": branches.branch.cancel}
    async with (
        HeldStore(log_url, held) as store,
        Channels() as channels,
        Coordinator(store, channels, Timing(cron_interval_ms=50)) as coordinator,
    ):
        gid = coordinator.new_gid()
        await coordinator.prepare(gid, "tcc", TransOptions(timeout_to_fail_s=1))
        await coordinator.register_branch(gid, "tcc", "01", data, b"")
        await asyncio.wait_for(store.reached.wait(), 10)
        await coordinator.register_branch(gid, "tcc", "02", data, b"")
        store.go.set()
        assert await branches.until(gid, 2) == [("02", "cancel"), ("01", "cancel")]
        with pytest.raises(Refusal):
            await coordinator.register_branch(gid, "tcc", "03", data, b"")


# --- what comes to a branch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [("confirm", "cancel"), ("cancel", "confirm")])
@pytest.mark.parametrize("branch", ["product", "order"])
async def test_confirm_and_cancel_both_delivered(backbone: Backbone, branch: str, first: str, second: str) -> None:
    """A branch gets Confirm and Cancel of one gid, in either order, and the second one again and again.

    The first decides. The second changes nothing, and says so every time.
    """
    sale = await backbone.open_sale(stock=3)
    (order,) = await admitted(backbone, sale, 1)
    async with branch_calls(backbone.settings, [order], uuid4().hex) as calls:
        await calls.call(branch, "try")
        await calls.call(branch, first)
        for _ in range(2):
            with Fails(CONTRADICTS, second, first):
                await calls.call(branch, second)
            if branch == "product":
                assert await counters(backbone, order) == ((2, 0, 1) if first == "confirm" else (3, 0, 0))
            else:
                written = await backbone.query("order", "SELECT status FROM orders")
                assert written == ([(1,)] if first == "confirm" else [])
        await calls.call(branch, first)  # a repeat of what was decided is no contradiction


async def test_a_try_whose_reply_was_lost_repeated_after_its_competitor_was_cancelled(backbone: Backbone) -> None:
    """One unit, which a competitor has frozen; a Try is refused SOLD_OUT and its reply is lost; the competitor is
    cancelled, so the unit is there again; the Try is repeated.

    It answers the bytes of its first reply and takes nothing: whoever hears either of them acts alike.
    """
    sale = await backbone.open_sale(stock=2)
    first, second = await admitted(backbone, sale, 2)
    await backbone.query("product", "UPDATE sale SET stock = 1, initial = 1 WHERE sale_id = :id", id=sale.sale_id)
    async with (
        branch_calls(backbone.settings, [first], uuid4().hex) as competitor,
        branch_calls(backbone.settings, [second], uuid4().hex) as calls,
    ):
        await competitor.product("try")
        reply = await calls.product("try")
        assert [row.reason for row in reply.outcomes] == ["SOLD_OUT"]
        await competitor.product("cancel")
        repeated = await calls.product("try")
    assert repeated.SerializeToString() == reply.SerializeToString()
    assert await counters(backbone, second) == (1, 0, 0)


# --- transactions that nobody carries --------------------------------------------------------------------------------


async def test_the_orphan_rules_cancel_followed_by_a_stray_confirm(backbone: Backbone, reconciler: Reconciler) -> None:
    """Both Tries have succeeded under a gid that no coordinator knows; the orphan rule cancels it; then a Confirm of
    each branch arrives that had been on its way.

    Neither does anything, and the orders are free to be carried anew.
    """
    sale = await backbone.open_sale(stock=10)
    orders = await admitted(backbone, sale, 2)
    async with branch_calls(backbone.settings, orders, uuid4().hex) as lost:
        await lost.product("try")
        await lost.order("try")
        assert (await reconciler.once()).counts == {"waiting": 2}
        await asyncio.sleep(ORPHANED_S)
        assert (await reconciler.once()).counts == {"orphan_cancelled": 1}
        for branch in ("order", "product"):
            with Fails(CONTRADICTS, "confirm", "cancel"):
                await lost.call(branch, "confirm")
    assert await counters(backbone, orders[0]) == (10, 0, 0)
    assert await backbone.query("order", "SELECT count(*) FROM orders") == [(0,)]
    await make_due(backbone, orders)
    assert (await reconciler.once()).counts == {"republished": 2}


async def test_the_orphan_rules_cancel_is_lost_and_a_stray_confirm_comes_first(backbone: Backbone) -> None:
    """The orphan rule's Cancel does not reach the order service; there a stray Confirm arrives instead.

    Product was not cancelled without order's OK, so the confirmed order still has its units: they are sold.
    """
    sale = await backbone.open_sale(stock=10)
    (order,) = await admitted(backbone, sale, 1, due=False)
    async with (
        relay_to(backbone.settings.order.grpc) as relay,
        open_reconciler(with_values(backbone.settings, {"order": {"grpc": relay.address}})) as (reconciler, _),
        branch_calls(backbone.settings, [order], uuid4().hex) as lost,
    ):
        await lost.product("try")
        await lost.order("try")
        await asyncio.sleep(ORPHANED_S)
        relay.lost["RollbackOrder"] = [grpc.StatusCode.UNAVAILABLE]
        findings = await reconciler.once()
        assert isinstance(findings.cut_short["orphans"], OrderUnavailable)
        assert await counters(backbone, order) == (9, 1, 0)
        await lost.order("confirm")
        assert (await reconciler.once()).counts == {"orphan_confirmed": 1}
    assert await counters(backbone, order) == (9, 0, 1)
