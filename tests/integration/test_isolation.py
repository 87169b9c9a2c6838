"""A group in which one order is poison: the others confirm, and only that one waits or is set aside."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from consumers.seckill_rmq import SeckillCarrier
from seckill.domain.order import Order
from seckill.domain.outcomes import OrderStatus
from seckill.messaging.lag import read_topic
from seckill.messaging.retry_topics import retry_story, retry_tiers
from seckill.wiring import open_carrier, with_values
from tests.integration.test_carrier import carry, letters, results
from tests.support.backbone import Backbone
from tests.support.relays import Poison, relay_to

CONFIRMED = (OrderStatus.CONFIRMED, "")
HANGS = None


@asynccontextmanager
async def poisoned(
    backbone: Backbone, order: Order, told: grpc.StatusCode | bytes | None, *, delays_ms: tuple[int, ...]
) -> AsyncIterator[SeckillCarrier]:
    """A carrier whose product service cannot digest one order."""
    async with relay_to(backbone.settings.product.grpc) as product:
        product.poison["CheckProductStock"] = Poison(order.key, told)
        over = {
            "product": {"grpc": product.address},
            "retry": {"topic_delays_ms": delays_ms},
            "dtm": {"try_timeout_ms": 700},
        }
        async with open_carrier(with_values(backbone.settings, over)) as (carrier, _):
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
    assert letter["seckill-dlq-attempts"] == ("3" if told is grpc.StatusCode.INTERNAL else "1")
