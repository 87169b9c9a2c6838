"""A dependency of the worker is down: nothing is carried or dead-lettered for it, and all goes on afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import aiohttp
import grpc
import pytest

from consumers.seckill_rmq import SeckillCarrier
from seckill.domain.order import Order
from seckill.wiring import ROLES, open_carrier, with_values
from tests.integration.test_carrier import CONFIRMED, carry, direct, free_order, letters, results, until_free
from tests.support.backbone import Backbone
from tests.support.pipeline import open_pipeline
from tests.support.relays import relay_to
from tests.support.sides import Side

OUTAGE_S = 2.0
"""The attempts of these tests would be over in a tenth of a second."""


async def until(condition: Callable[[], bool], *, within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


async def held_back(carrier: SeckillCarrier, orders: list[Order]) -> asyncio.Task[None]:
    """The task that carries them, which has found out that something is down and waits for it."""
    carrying = asyncio.create_task(carry(carrier, orders))
    await until(carrier.held_back)
    await asyncio.sleep(OUTAGE_S)
    return carrying


@pytest.mark.own_coordinator
async def test_an_outage_of_the_coordinator_is_no_attempt(backbone: Backbone, carrier: SeckillCarrier) -> None:
    """However long the coordinator is down, its orders wait in hand; when it is back they confirm, without a letter."""
    sale = await backbone.open_sale(stock=5)
    orders = [await backbone.admit(sale, user) for user in (1, 2)]
    await backbone.stop("coordinator")
    carrying = await held_back(carrier, orders)
    assert not carrying.done()
    assert await letters(backbone) == []
    await backbone.start("coordinator")
    async with asyncio.timeout(20):
        await carrying
    assert await results(backbone, orders) == [(CONFIRMED, "")] * 2
    assert await letters(backbone) == []


async def test_an_outage_of_product_is_no_attempt_of_a_late_order(backbone: Backbone, carrier: SeckillCarrier) -> None:
    """An order past the front, which no ledger brings back, waits for the product service in the worker's hands."""
    sale = await backbone.open_sale(stock=5)
    order = direct(free_order(sale.product_id, 1))
    await backbone.stop("product")
    carrying = await held_back(carrier, [order])
    assert not carrying.done()
    await backbone.start("product")
    async with asyncio.timeout(20):
        await carrying
    assert await results(backbone, [order]) == [(CONFIRMED, "")]
    assert await letters(backbone) == []


async def test_no_group_is_carried_while_something_is_down(backbone: Backbone, carrier: SeckillCarrier) -> None:
    """One group finds out; the next one makes no call before the dependency is back."""
    sale = await backbone.open_sale(stock=5)
    first, second = [await backbone.admit(sale, user) for user in (1, 2)]
    await backbone.stop("product")
    await carry(carrier, [first])  # undecided: its Try may have arrived, so that it waits in the ledger
    assert carrier.held_back()
    waiting = asyncio.create_task(carry(carrier, [second]))
    await asyncio.sleep(OUTAGE_S)
    assert not waiting.done()
    await backbone.start("product")
    async with asyncio.timeout(20):
        await waiting
    assert await results(backbone, [second]) == [(CONFIRMED, "")]
    await until_free(backbone)
    await carry(carrier, [first])
    assert await results(backbone, [first]) == [(CONFIRMED, "")]


async def test_one_bad_order_does_not_hold_the_others(backbone: Backbone) -> None:
    """A service that fails with one order and answers its health check is not down: that order ends, others go on."""
    sale = await backbone.open_sale(stock=5)
    bad, good = [await backbone.admit(sale, user) for user in (1, 2)]
    async with relay_to(backbone.settings.order.grpc) as order:
        order.lost["CreateOrderCheck"] = [grpc.StatusCode.UNKNOWN] * 3
        settings = with_values(backbone.settings, {"order": {"grpc": order.address}})
        async with open_carrier(settings) as (carrier, _):
            await carry(carrier, [bad])
            assert not carrier.held_back()
            await carry(carrier, [good])
    assert len(await letters(backbone)) == 1
    assert await results(backbone, [good]) == [(CONFIRMED, "")]


async def test_a_worker_in_an_outage_stays_in_its_group_and_says_so(side: Side, tmp_path: Path) -> None:
    """Product is down for longer than all attempts would last: unready, no letter, no new worker; then all confirms.

    What the first groups had begun is undecided, and is brought back by reconcile.
    """
    over = {"worker": {"inflight_max": 10}, "ledger": {"republish_after_ms": 1_000, "undecided_wait_ms": 500}}
    async with open_pipeline(side, tmp_path, over) as pipeline, ROLES["reconcile"](pipeline.settings):
        backbone = pipeline.backbone
        sale = await backbone.open_sale(stock=30)
        await backbone.stop("product")
        product_id = sale.product_id
        ids = [await pipeline.accepted(user_id=user, product_id=product_id) for user in range(1, 31)]
        async with pipeline.worker() as worker, aiohttp.ClientSession() as http:
            url = f"http://{worker.addresses['worker.ops']}/readyz"
            async with asyncio.timeout(20):
                while "down" not in (report := await (await http.get(url)).json())["checks"]["circuits"]:
                    await asyncio.sleep(0.1)
            assert not report["ready"]
            await asyncio.sleep(OUTAGE_S)
            assert worker.task is not None
            assert not worker.task.done()
            await backbone.start("product")
            ends = await asyncio.gather(*(pipeline.end(order_id) for order_id in ids))
            assert ends == [("confirmed", "")] * 30
            async with http.get(url) as response:
                assert (await response.json())["checks"]["circuits"] == "ok"
        assert await letters(backbone) == []


# --- slow is not down ------------------------------------------------------------------------------------------------


async def test_a_slow_database_slows_acceptance_and_loses_nothing(side: Side, tmp_path: Path) -> None:
    """Behind a stalled product service the ledger fills: more is OVERLOADED; what was accepted ends, then more."""
    bound = 8
    over = {"ledger": {"entries_max": bound, "republish_after_ms": 2_000, "undecided_wait_ms": 500}}
    async with open_pipeline(side, tmp_path, over) as pipeline, ROLES["reconcile"](pipeline.settings):
        sale = await pipeline.backbone.open_sale(stock=100)
        pipeline.product.held["CheckProductStock"] = release = asyncio.Event()
        async with pipeline.worker() as worker:
            answers = [await pipeline.post(user_id=user, product_id=sale.product_id) for user in range(1, 20)]
            assert [status for status, _ in answers] == [202] * bound + [503] * (19 - bound)
            assert {document["code"] for _, document in answers[bound:]} == {"OVERLOADED"}
            await asyncio.sleep(OUTAGE_S)
            assert worker.task is not None
            assert not worker.task.done()
            release.set()
            ids = [document["order_id"] for _, document in answers[:bound]]
            ends = await asyncio.gather(*(pipeline.end(order_id) for order_id in ids))
            assert ends == [("confirmed", "")] * bound
            more = await pipeline.accepted(user_id=50, product_id=sale.product_id)
            assert await pipeline.end(more) == ("confirmed", "")
        assert await letters(pipeline.backbone) == []
