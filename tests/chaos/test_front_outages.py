"""Kafka is killed or Redis frozen under a front: 503 at once, little is admitted, and it recovers by itself."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from seckill.wiring import ROLES
from tests.servers import Servers, native
from tests.support.pipeline import Pipeline, open_pipeline
from tests.support.sides import Side, real_side

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

OUTAGE_S = 8
BUYERS_AT_ONCE = 20
ANSWERED_WITHIN_S = 4.0
"""The longest that a buyer waits: the time-outs below, and a busy machine."""

OVER = {
    "front": {
        "publish_timeout_ms": 1_500, "publish_stalled_ms": 300, "circuit_failures_max": 3, "circuit_pause_ms": 300,
    },
    "kafka": {"request_timeout_ms": 3_000, "session_timeout_ms": 6_000},
    "redis": {"command_timeout_ms": 1_000},
    "ledger": {"republish_after_ms": 2_000, "undecided_wait_ms": 1_000},
}  # fmt: skip


@asynccontextmanager
async def selling(side: Side, folder: Path) -> AsyncIterator[tuple[Pipeline, int]]:
    """Everything runs, and a product is on sale."""
    async with (
        open_pipeline(side, folder, OVER) as pipeline,
        ROLES["reconcile"](pipeline.settings),
        pipeline.worker(),
    ):
        sale = await pipeline.backbone.open_sale(stock=100_000)
        yield pipeline, sale.product_id


async def ordered(pipeline: Pipeline, product_id: int, *, first_user: int, for_s: float) -> Counter[str]:
    """What buyers heard who never stopped asking; nobody waited too long."""
    heard: Counter[str] = Counter()
    ends, user = time.monotonic() + for_s, first_user

    async def buy(user_id: int) -> None:
        began = time.monotonic()
        status, document = await pipeline.post(user_id=user_id, product_id=product_id)
        assert time.monotonic() - began < ANSWERED_WITHIN_S
        assert status in (202, 503), document
        heard[document.get("code", "ACCEPTED")] += 1

    while time.monotonic() < ends:
        await asyncio.gather(*(buy(user_id) for user_id in range(user, user + BUYERS_AT_ONCE)))
        user += BUYERS_AT_ONCE
        await asyncio.sleep(0.05)
    return heard


async def until_accepted(pipeline: Pipeline, product_id: int, *, first_user: int) -> str:
    """The id of the first order that is accepted again."""
    async with asyncio.timeout(60):
        for user_id in range(first_user, first_user + 10_000):
            status, document = await pipeline.post(user_id=user_id, product_id=product_id)
            if status == 202:
                return str(document["order_id"])
            await asyncio.sleep(0.1)
    raise AssertionError("nothing is accepted")


async def test_kafka_is_killed(servers: Servers, tmp_path: Path) -> None:
    """A few orders are PENDING, all others are turned away before admission; afterwards all that were admitted end."""
    (tmp_path / "kafka").mkdir()
    with native.kafka_process(tmp_path / "kafka") as kafka:
        async with selling(replace(real_side(servers), kafka=kafka.bootstrap), tmp_path) as (pipeline, product_id):
            assert set(await ordered(pipeline, product_id, first_user=1, for_s=1)) == {"ACCEPTED"}
            kafka.kill()
            heard = await ordered(pipeline, product_id, first_user=100_000, for_s=OUTAGE_S)
            assert 0 < heard["PENDING"] <= 4 * BUYERS_AT_ONCE
            assert heard["UNAVAILABLE"] > heard["PENDING"]
            stats = await pipeline.backbone.ledger.stats(product_id)
            assert stats.entries <= heard["PENDING"] + BUYERS_AT_ONCE  # not those of all who asked
            await asyncio.to_thread(kafka.start)
            order_id = await until_accepted(pipeline, product_id, first_user=200_000)
            assert (await pipeline.end(order_id))[0] == "confirmed"
            async with asyncio.timeout(90):
                while (await pipeline.backbone.ledger.stats(product_id)).entries:
                    await asyncio.sleep(0.2)


async def test_redis_is_frozen(servers: Servers, tmp_path: Path) -> None:
    """Every buyer hears UNAVAILABLE in time, those who come later at once; afterwards orders are taken again."""
    (tmp_path / "redis").mkdir()
    with native.redis_process(tmp_path / "redis") as redis:
        async with selling(replace(real_side(servers), redis=redis.url), tmp_path) as (pipeline, product_id):
            assert set(await ordered(pipeline, product_id, first_user=1, for_s=1)) == {"ACCEPTED"}
            redis.freeze()
            heard = await ordered(pipeline, product_id, first_user=100_000, for_s=OUTAGE_S)
            assert set(heard) == {"UNAVAILABLE"}
            assert heard["UNAVAILABLE"] > 10 * BUYERS_AT_ONCE  # it would be a few rounds if each one waited
            redis.thaw()
            order_id = await until_accepted(pipeline, product_id, first_user=200_000)
            assert (await pipeline.end(order_id))[0] == "confirmed"
