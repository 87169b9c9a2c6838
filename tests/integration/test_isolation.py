"""A group in which one order is poison: the others confirm, and only that one waits or is set aside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from consumers.seckill_rmq import SeckillCarrier
from seckill.domain.order import Order, derived_order_id
from seckill.domain.outcomes import OrderStatus
from seckill.messaging.reading import read_topic
from seckill.messaging.retry_topics import retry_story, retry_tiers
from seckill.wiring import open_carrier, with_values
from tests.integration.test_carrier import carry, free_order, letters, results, take_by_another
from tests.support.backbone import Backbone
from tests.support.recorder import until
from tests.support.relays import Poison, Relay, relay_to

CONFIRMED = (OrderStatus.CONFIRMED, "")
HANGS = None
TRY = "CheckProductStock"


@asynccontextmanager
async def relayed(
    backbone: Backbone, *, delays_ms: tuple[int, ...], try_timeout_ms: int = 700
) -> AsyncIterator[tuple[SeckillCarrier, Relay]]:
    """A carrier, and what stands between it and its product service."""
    async with relay_to(backbone.settings.product.grpc) as product:
        over = {
            "product": {"grpc": product.address},
            "retry": {"topic_delays_ms": delays_ms},
            "dtm": {"try_timeout_ms": try_timeout_ms},
        }
        async with open_carrier(with_values(backbone.settings, over)) as (carrier, _):
            yield carrier, product


@asynccontextmanager
async def poisoned(
    backbone: Backbone,
    order: Order,
    told: grpc.StatusCode | bytes | None,
    *,
    delays_ms: tuple[int, ...],
    method: str = TRY,
) -> AsyncIterator[SeckillCarrier]:
    """A carrier whose product service cannot digest one order."""
    async with relayed(backbone, delays_ms=delays_ms) as (carrier, product):
        product.poison[method] = Poison(order.key, told)
        yield carrier


@pytest.mark.parametrize(("told", "count"), [(grpc.StatusCode.INTERNAL, 64), (HANGS, 8)], ids=["it breaks", "it hangs"])
async def test_an_order_that_fails_for_ever_takes_nobody_along(
    backbone: Backbone, told: grpc.StatusCode | None, count: int
) -> None:
    """The first order of a group makes its service fail, or hang: the others confirm in place, and it alone is put off.

    Its entry stays, and its buyer is told that it is being processed.
    """
    sale = await backbone.open_sale(stock=count)
    orders = [await backbone.admit(sale, user) for user in range(1, count + 1)]
    async with poisoned(backbone, orders[0], told, delays_ms=(60_000,)) as carrier:
        await carry(carrier, orders)
    assert await results(backbone, orders) == [(OrderStatus.PROCESSING, "")] + [CONFIRMED] * (count - 1)
    assert await letters(backbone) == []
    retry = backbone.settings.retry.model_copy(update={"topic_delays_ms": (60_000,)})
    (tier,) = retry_tiers(backbone.settings.kafka, retry)
    (record,) = await read_topic(backbone.settings.kafka, tier.topic)
    story = retry_story(record)
    assert record.key == orders[0].order_id.encode()
    assert (story.attempts, story.cause.split(":")[0]) == (3, "ProductUnavailable")
    (entry,) = await backbone.ledger.entries(sale.product_id)
    assert (entry.order, entry.state) == (orders[0], "pending")
    assert story.first_failed_ms < entry.published_at_ms < record.timestamp_ms + 5_000 < entry.due_ms
    assert (await backbone.read_sale(sale)).sold == count - 1


async def test_an_order_that_makes_the_worker_itself_fail_takes_nobody_along(backbone: Backbone) -> None:
    """A reply that cannot be read is an error that nobody foresaw: one order has it, and one letter is written."""
    sale = await backbone.open_sale(stock=8)
    orders = [await backbone.admit(sale, user) for user in range(1, 9)]
    async with poisoned(backbone, orders[7], b"\xff\xff no message", delays_ms=(60_000,)) as carrier:
        await carry(carrier, orders)
    ends = await results(backbone, orders)
    assert ends.pop(7) == (OrderStatus.DELAYED, "")
    assert ends == [CONFIRMED] * 7
    (letter,) = await letters(backbone)
    assert (letter["seckill-dlq-reason"], letter["seckill-dlq-exception"]) == ("UNEXPECTED", "DecodeError")


@pytest.mark.parametrize("told", [grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT], ids=["transient", "not"])
async def test_no_order_gets_a_letter_for_its_neighbour(backbone: Backbone, told: grpc.StatusCode) -> None:
    """Without retry topics, too: whatever kind of failure it is, the others of its group confirm."""
    sale = await backbone.open_sale(stock=30)
    orders = [await backbone.admit(sale, user) for user in range(1, 31)]
    async with poisoned(backbone, orders[0], told, delays_ms=()) as carrier:
        await carry(carrier, orders)
    assert await results(backbone, orders) == [(OrderStatus.DELAYED, "")] + [CONFIRMED] * 29
    (letter,) = await letters(backbone)
    assert letter["seckill-dlq-attempts"] == ("3" if told is grpc.StatusCode.INTERNAL else "2")  # the last one alone


async def test_a_refusal_that_cannot_be_written_down_is_one_orders_end(backbone: Backbone) -> None:
    """Of orders past the front one is refused, and the product service cannot digest that: it alone gets a letter."""
    sale = await backbone.open_sale(stock=30)
    orders = [free_order(sale.product_id, user) for user in range(1, 13)]
    second = Order(derived_order_id(sale.product_id, "second", at_ms=1), 0, 1, sale.product_id, 1, 0)
    refused = grpc.StatusCode.INVALID_ARGUMENT
    async with poisoned(backbone, second, refused, delays_ms=(), method="RejectReservations") as carrier:
        await carry(carrier, [*orders, second])
    assert await results(backbone, orders) == [CONFIRMED] * 12
    (letter,) = await letters(backbone)
    assert (letter["seckill-dlq-reason"], letter["seckill-dlq-attempts"]) == ("BRANCH_FAILED", "2")


async def test_a_rejection_that_cannot_be_written_fails_nobody_else(backbone: Backbone) -> None:
    """What order refuses cannot be rejected: the rest of its transaction runs on at once."""
    sale = await backbone.open_sale(stock=10)
    orders = [await backbone.admit(sale, user) for user in range(1, 9)]
    refused = grpc.StatusCode.INVALID_ARGUMENT
    async with poisoned(backbone, orders[3], refused, delays_ms=(), method="RejectReservations") as carrier:
        await carry(carrier, orders[:1])
        await take_by_another(backbone, orders[3])
        await carry(carrier, orders[1:])
    ends = await results(backbone, orders)
    assert ends.pop(3) == (OrderStatus.DELAYED, "")
    assert ends == [CONFIRMED] * 7
    gids = await backbone.query("order", "SELECT DISTINCT gid FROM orders WHERE status = 1")
    assert len(gids) == 3  # one of them is of the foreign row
    (letter,) = await letters(backbone)
    assert letter["seckill-dlq-reason"] == "BRANCH_FAILED"


async def test_who_has_ended_is_told_while_another_hangs(backbone: Backbone) -> None:
    """A group that failed is tried again in pieces: the end of each is told as it is known."""
    sale = await backbone.open_sale(stock=8)
    orders = [await backbone.admit(sale, user) for user in range(1, 9)]
    async with relayed(backbone, delays_ms=(60_000,), try_timeout_ms=3_000) as (carrier, product):
        product.lost[TRY] = [grpc.StatusCode.INTERNAL] * 4  # of the group, its half, …: each order has failed once
        carrying = asyncio.create_task(carry(carrier, orders))
        await until(lambda: not product.lost[TRY])
        product.poison[TRY] = Poison(orders[7].key, HANGS)
        await until(lambda: product.calls.count(TRY) == 4 + 8)
        async with asyncio.timeout(1.5):
            while await results(backbone, orders[:7]) != [CONFIRMED] * 7:
                await asyncio.sleep(0.05)
        assert not carrying.done()
        product.poison.clear()
        await carrying
