"""Orders that wait in a retry topic, as everybody sees them who does not carry orders."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest

from consumers.reconcile import Reconciler
from consumers.sales_watch import SalesWatch
from seckill.audit.stores import open_stores, unrest
from seckill.audit.timeline import order_events
from seckill.domain.outcomes import Confirmed
from seckill.messaging.lag import consumer_lag, oldest_uncommitted_ms
from seckill.wiring import with_values
from tests.integration.test_carrier import free_order
from tests.integration.test_reconcile import admitted, make_due, published
from tests.support.backbone import Backbone
from tests.support.rebuilds import entries_of, lose, pass_everything, publish, view_of
from tests.support.retry_records import CAUSE, put_off, tiers_of

pytestmark = pytest.mark.own_redis


@pytest.fixture
def backbone(backbone: Backbone) -> Backbone:
    """With two retry topics."""
    return replace(backbone, settings=with_values(backbone.settings, {"retry": {"topic_delays_ms": (5_000, 30_000)}}))


async def lag_by_topic(backbone: Backbone) -> Counter[str]:
    settings, found = backbone.settings, Counter[str]()
    for each in await consumer_lag(settings.kafka, tiers_of(settings)):
        found[each.topic] += each.lag
    return found


async def test_a_retry_record_that_waits_is_not_published_again(backbone: Backbone, reconciler: Reconciler) -> None:
    """The group has passed the order's record, and its copy waits in the second retry topic for longer than its ledger
    entry: slow, until the group of the retry topics has passed it as well.
    """
    settings, sale = backbone.settings, await backbone.open_sale(stock=10)
    waiting = tiers_of(settings)[1]
    (order,) = await admitted(backbone, sale, 1, due=False)
    await publish(backbone, [order])
    await pass_everything(backbone)
    await put_off(settings, [order], waiting)
    assert +await lag_by_topic(backbone) == {waiting.topic: 1}
    await make_due(backbone, [order])
    assert (await reconciler.once()).counts == {"slow": 1}
    assert await published(backbone) == [order.order_id]

    await pass_everything(backbone, waiting)
    assert await oldest_uncommitted_ms(settings.kafka, tiers_of(settings)) is None
    await make_due(backbone, [order])
    assert (await reconciler.once()).counts == {"republished": 1}


async def test_an_order_past_the_front_that_waits_in_a_retry_topic_is_not_rebuilt_as_admitted(
    backbone: Backbone, watch: SalesWatch
) -> None:
    """Redis loses the sale. The group has passed an order's record because the order was put off, and not because it
    was admitted: it holds no unit. One that was admitted before it was put off has its number in the copy.
    """
    sale = await backbone.open_sale(stock=10, per_user_limit=2)
    late, admitted_late = free_order(sale.product_id, 1), await backbone.admit(sale, 2, quantity=2)
    first = tiers_of(backbone.settings)[0]
    await publish(backbone, [late])
    await pass_everything(backbone)
    await put_off(backbone.settings, [late, admitted_late], first)
    lose(backbone, sale)
    (rebuilt,) = await watch.by_hand(every=False)
    assert (rebuilt.stock, rebuilt.pending, rebuilt.parked) == (8, 1, 0)
    (entry,) = (await entries_of(backbone, sale)).values()
    assert (entry.order, entry.state) == (admitted_late, "pending")
    assert entry.due_ms == entry.published_at_ms + backbone.settings.ledger.republish_after_ms  # its copy is under way

    await pass_everything(backbone, first)  # the worker has let go of both: both were admitted
    lose(backbone, sale)
    (rebuilt,) = await watch.by_hand(every=False)
    assert (rebuilt.stock, rebuilt.pending, rebuilt.parked) == (7, 2, 0)
    assert (await view_of(backbone, sale)).stock == 7


async def test_what_waits_in_a_retry_topic_is_not_at_rest(backbone: Backbone) -> None:
    """A record that nobody has carried again is something under way, whatever the ledger says of its order."""
    sale = await backbone.open_sale(stock=10)
    (order,) = await admitted(backbone, sale, 1)
    await put_off(backbone.settings, [order], tiers_of(backbone.settings)[-1])
    await backbone.ledger.settle([(order, Confirmed())])
    async with open_stores(backbone.settings) as stores:
        assert await unrest(stores) == "1 records not yet consumed"
        await pass_everything(backbone, tiers_of(backbone.settings)[-1])
        assert await unrest(stores) == ""


async def test_a_story_tells_where_an_order_has_waited(backbone: Backbone) -> None:
    """Each copy in a retry topic is an event of the order's story: for how long it waits there, and why."""
    sale = await backbone.open_sale(stock=10)
    order, other = await admitted(backbone, sale, 2)
    for attempts, tier in enumerate(tiers_of(backbone.settings), start=1):
        await put_off(backbone.settings, [other, order], tier, attempts=3 * attempts)
    async with open_stores(backbone.settings) as stores:
        events = await order_events(stores, order.order_id)
    told = [event.what for event in events if event.store == "kafka"]
    assert [what.rpartition(" after ")[2] for what in told] == [f"3 attempts: {CAUSE}", f"6 attempts: {CAUSE}"]
    for what, tier in zip(told, tiers_of(backbone.settings), strict=True):
        waits = re.fullmatch(rf"put off by ([0-9.]+) s to {tier.topic}/\d/\d after .*", what)
        assert waits is not None
        assert 0 < float(waits[1]) <= tier.delay_ms / 1_000  # what is left of it when the copy is written
