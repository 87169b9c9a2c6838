"""One group, one global transaction: what is told follows from the rows, whatever the network loses."""

from __future__ import annotations

import asyncio

import pytest

from seckill.domain.order import Order, derived_order_id
from seckill.domain.outcomes import Confirmed, Failed, Rejected, Undecided
from seckill.dtm.errors import Refused
from tests.support.rigs import Rig
from tests.support.unreliable import Loss


async def orders_of(rig: Rig, users: int, *, stock: int) -> list[Order]:
    sale = await rig.backbone.open_sale(stock=stock)
    return [
        Order(derived_order_id(sale.product_id, "t", user, at_ms=1), sale.sale_id, user, sale.product_id, 1, 1, user)
        for user in range(1, users + 1)
    ]


async def counters(rig: Rig, orders: list[Order]) -> tuple[object, ...]:
    rows = await rig.backbone.query(
        "product", "SELECT stock, frozen, sold FROM sale WHERE sale_id = :id", id=orders[0].sale_id
    )
    return rows[0]


async def until_nothing_is_frozen(rig: Rig, orders: list[Order]) -> None:
    async with asyncio.timeout(20):
        while (await counters(rig, orders))[1]:
            await asyncio.sleep(0.1)


async def test_a_lost_answer_of_submit_changes_nothing(rig: Rig) -> None:
    """The rows say sold, so the orders are confirmed, and Submit is sent once."""
    orders = await orders_of(rig, 5, stock=10)
    rig.client.submit_losses = [Loss.ANSWER]
    assert list((await rig.checkout.run(orders)).values()) == [Confirmed()] * 5
    assert rig.client.submits == 1
    assert await counters(rig, orders) == (5, 0, 5)


async def test_the_coordinators_ok_alone_confirms_nothing(rig: Rig) -> None:
    """A Submit that is answered OK though nobody confirmed leaves the orders undecided, then free again, then sold."""
    orders = await orders_of(rig, 5, stock=10)
    rig.client.submit_losses = [Loss.REQUEST]
    outcomes = await rig.checkout.run(orders)
    assert all(isinstance(outcome, Undecided) for outcome in outcomes.values())
    assert await counters(rig, orders) == (5, 5, 0)
    await until_nothing_is_frozen(rig, orders)  # the coordinator cancels what nobody submits
    assert await counters(rig, orders) == (10, 0, 0)
    assert list((await rig.checkout.run(orders)).values()) == [Confirmed()] * 5
    assert await counters(rig, orders) == (5, 0, 5)


async def test_orders_that_another_transaction_holds_are_left_alone(rig: Rig) -> None:
    """A second group finds them frozen by the first: it neither takes them nor ends the first one's transaction."""
    orders = await orders_of(rig, 4, stock=10)
    rig.client.submit_losses = [Loss.REQUEST]
    await rig.checkout.run(orders[:2])
    outcomes = await rig.checkout.run(orders)
    kinds = [type(outcomes[order.order_id]) for order in orders]
    assert kinds == [Undecided, Undecided, Confirmed, Confirmed]
    assert await counters(rig, orders) == (6, 2, 2)


@pytest.mark.parametrize("method", ["CheckProductStock", "CreateOrderCheck"])
async def test_a_try_whose_answer_is_lost_is_cancelled_not_repeated(rig: Rig, method: str) -> None:
    """Its transaction is aborted as a whole; the halves run under new gids, and every unit is taken once."""
    orders = await orders_of(rig, 4, stock=10)
    rig.channels.answer_losses[method] = 1
    assert list((await rig.checkout.run(orders)).values()) == [Confirmed()] * 4
    assert await counters(rig, orders) == (6, 0, 4)
    gids = await rig.backbone.query("product", "SELECT gid FROM decision")
    ended = [await rig.client.query(str(gid)) for (gid,) in gids]
    assert sorted(each.status for each in ended if each is not None) == ["failed", "succeed", "succeed"]


async def test_a_try_on_its_way_keeps_its_orders_undecided(rig: Rig) -> None:
    """A Try that nobody heard of may still arrive when its abort got no answer either: its orders are not free."""
    orders = await orders_of(rig, 2, stock=10)
    rig.channels.delayed["CheckProductStock"] = []
    rig.client.aborts_lost = 1
    outcomes = await rig.checkout.run(orders)
    assert all(isinstance(outcome, Undecided) for outcome in outcomes.values())
    (late,) = rig.channels.delayed.pop("CheckProductStock")
    await late()
    assert await counters(rig, orders) == (8, 2, 0)
    await until_nothing_is_frozen(rig, orders)
    assert list((await rig.checkout.run(orders)).values()) == [Confirmed()] * 2


async def test_a_try_that_arrives_after_its_cancel_changes_nothing(rig: Rig) -> None:
    """Once an abort is acknowledged the orders are free: what arrives of the old transaction finds the door shut."""
    orders = await orders_of(rig, 1, stock=10)
    rig.channels.delayed["CheckProductStock"] = []
    outcomes = await rig.checkout.run(orders)
    assert isinstance(outcomes[orders[0].order_id], Failed)
    (late,) = rig.channels.delayed.pop("CheckProductStock")
    with pytest.raises(Refused):
        await late()
    assert await counters(rig, orders) == (10, 0, 0)


async def test_a_slow_service_is_not_asked_for_every_half(rig: Rig) -> None:
    """When the first half fails like the whole did, the second is failed with it instead of waiting the same time."""
    orders = await orders_of(rig, 8, stock=10)
    rig.channels.answer_losses["CheckProductStock"] = 100
    outcomes = await rig.checkout.run(orders)
    assert all(isinstance(outcome, Failed) and outcome.error.retryable for outcome in outcomes.values())  # type: ignore[attr-defined]
    assert 100 - rig.channels.answer_losses["CheckProductStock"] == 4  # 8, 4, 2, 1
    assert await counters(rig, orders) == (10, 0, 0)


async def test_a_group_that_is_wholly_refused_is_not_submitted(rig: Rig) -> None:
    """With no survivor there is nothing to confirm: the transaction is aborted, the refusals are told."""
    orders = await orders_of(rig, 3, stock=3)
    await rig.checkout.run(orders)
    late = [
        Order(
            derived_order_id(o.product_id, "late", o.user_id, at_ms=1), o.sale_id, 50 + o.user_id, o.product_id, 1, 1, 9
        )
        for o in orders
    ]
    before = rig.client.submits
    assert list((await rig.checkout.run(late)).values()) == [Rejected("SOLD_OUT")] * 3
    assert rig.client.submits == before
    assert await counters(rig, orders) == (0, 0, 3)
