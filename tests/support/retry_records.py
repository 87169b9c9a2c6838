"""Records in retry topics, written as the worker writes them, without anybody who reads them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from seckill.domain.order import Order
from seckill.messaging.envelope import Record, encode
from seckill.messaging.publisher import open_publisher
from seckill.messaging.retry_topics import RetryStory, RetryTier, retry_record, retry_tiers
from seckill.settings import Settings

CAUSE = "BranchFailed: for the test"


def tiers_of(settings: Settings) -> tuple[RetryTier, ...]:
    return retry_tiers(settings.kafka, settings.retry)


async def put_off(settings: Settings, orders: Sequence[Order], tier: RetryTier, *, attempts: int = 3) -> None:
    """The copies that wait in the tier, and nothing else: neither their ledger entries nor the records they are of."""
    now_ms = time.time_ns() // 1_000_000
    story = RetryStory(attempts, now_ms, now_ms + tier.delay_ms, CAUSE)
    async with open_publisher(settings.kafka) as publisher:
        for offset, order in enumerate(orders):
            original = Record(settings.kafka.topic, 0, offset, now_ms, order.order_id.encode(), encode(order))
            key, value, headers = retry_record(original, order, tier, story)
            await publisher.send(tier.topic, key=key, value=value, headers=headers)
