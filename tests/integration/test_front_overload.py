"""More than the front can take, and what it needs being down: refused at once, with a code and a time to try again."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from seckill.wire import seckill_pb2, seckill_pb2_grpc
from tests.support.fronts import MemoryPublisher, RunningFront, running_front
from tests.support.redis_servers import Backend, redis_process

Request = seckill_pb2.SeckillOrderRequest


@pytest.fixture
def product_id() -> int:
    return secrets.randbelow(2**60) + 1


async def answer(front: RunningFront, user_id: int, product_id: int) -> tuple[int, str]:
    """Status and code of an order; one that is refused for now says when to come again."""
    body = {"user_id": user_id, "product_id": product_id}
    status, document, headers = await front.request("POST", "/v1/orders", json=body)
    assert (status in (429, 503)) == ("Retry-After" in headers)
    return status, document.get("code", "")


async def metric(front: RunningFront, name: str) -> float:
    async with front.http.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


async def until(condition: Callable[[], Any], *, within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.02)


# --- rate limits -------------------------------------------------------------------------------------------------


async def test_a_buyer_who_asks_too_often_is_told_so(
    front_redis: Backend, product_address: str, product_id: int
) -> None:
    """Above the buyer's rate: 429 RATE_LIMITED with Retry-After, counted, without a call of Redis; others pass."""
    async with running_front(front_redis, product_address, orders_per_user_per_s=1, orders_per_user_burst=3) as front:
        await front.open_sale(product_id, per_user_limit=10)
        before = await metric(front, 'seckill_front_turned_away_total{why="user_rate"}')
        answers = [await answer(front, 7, product_id) for _ in range(5)]
        assert answers == [(202, "")] * 3 + [(429, "RATE_LIMITED")] * 2
        assert await answer(front, 8, product_id) == (202, "")
        assert len(await front.ledger.entries(product_id)) == 4
        assert await metric(front, 'seckill_front_turned_away_total{why="user_rate"}') == before + 2
        await asyncio.sleep(1.1)
        assert await answer(front, 7, product_id) == (202, "")


async def test_a_repeat_counts_like_any_request(front_redis: Backend, product_address: str, product_id: int) -> None:
    """An idempotency key repeats an order, not a request: the limit is there for requests."""
    async with running_front(front_redis, product_address, orders_per_user_per_s=1, orders_per_user_burst=2) as front:
        await front.open_sale(product_id)
        answers = [await front.order(key="k", user_id=7, product_id=product_id) for _ in range(3)]
        assert [status for status, _ in answers] == [202, 202, 429]


async def test_all_buyers_together_have_a_limit(front_redis: Backend, product_address: str, product_id: int) -> None:
    """Above the front's own rate an order is 503 OVERLOADED, whoever asks."""
    async with running_front(front_redis, product_address, orders_per_s=5) as front:
        await front.open_sale(product_id, stock=100)
        answers = [await answer(front, user, product_id) for user in range(1, 9)]
        assert answers[:5] == [(202, "")] * 5
        assert (503, "OVERLOADED") in answers[5:]


async def test_no_limit_where_none_is_set(front_redis: Backend, product_address: str, product_id: int) -> None:
    """0 is no limit."""
    async with running_front(front_redis, product_address, orders_per_user_per_s=0) as front:
        await front.open_sale(product_id, stock=100, per_user_limit=100)
        assert {await answer(front, 7, product_id) for _ in range(40)} == {(202, "")}


async def test_the_limit_holds_over_grpc(front_redis: Backend, product_address: str, product_id: int) -> None:
    """Unary: RESOURCE_EXHAUSTED with its code; on a stream it is said in-band, with the time to wait."""
    async with running_front(front_redis, product_address, orders_per_user_per_s=1, orders_per_user_burst=1) as front:
        await front.open_sale(product_id, per_user_limit=10)
        stub = seckill_pb2_grpc.SeckillStub(front.channel)
        await stub.SeckillOrder(Request(user_id=7, product_id=product_id, quantity=1))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.SeckillOrder(Request(user_id=7, product_id=product_id, quantity=1))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(error.value.trailing_metadata() or ())["seckill-code"] == "RATE_LIMITED"
        requests = (Request(user_id=7, product_id=product_id, quantity=1, tag=tag) for tag in (1, 2))
        replies = [reply async for reply in stub.SeckillOrders(requests)]
        assert {(reply.status, reply.code) for reply in replies} == {("refused", "RATE_LIMITED")}
        assert all(reply.retry_after_ms > 0 for reply in replies)


# --- Kafka is down -----------------------------------------------------------------------------------------------


async def test_with_kafka_down_nothing_is_admitted(front_redis: Backend, product_address: str, product_id: int) -> None:
    """After some failed publishes orders are 503 before admission: no unit is tied up; the front recovers by itself."""
    quick = {"circuit_failures_max": 3, "circuit_pause_ms": 100, "publish_timeout_ms": 300}
    async with running_front(front_redis, product_address, **quick) as front:
        await front.open_sale(product_id, stock=100)
        front.publisher.failing = True
        answers = [await answer(front, user, product_id) for user in range(1, 21)]
        assert answers == [(503, "PENDING")] * 3 + [(503, "UNAVAILABLE")] * 17
        assert len(await front.ledger.entries(product_id)) == 3
        async with front.http.get("/readyz") as response:
            assert "kafka has been down" in (await response.json())["checks"]["circuits"]
        await asyncio.sleep(0.5)
        assert await answer(front, 50, product_id) == (503, "UNAVAILABLE")
        front.publisher.failing = False
        await until(lambda: accepted(front, product_id))
        async with front.http.get("/readyz") as response:
            assert (await response.json())["checks"]["circuits"] == "ok"


async def accepted(front: RunningFront, product_id: int) -> bool:
    return await answer(front, secrets.randbelow(2**60) + 1, product_id) == (202, "")


class Refusing(MemoryPublisher):
    """Brokers that answer, and take no record: too few of them are in sync."""

    async def check(self) -> None:
        """They answer."""


async def test_a_kafka_that_answers_and_takes_nothing_is_tried_with_one_order(
    front_redis: Backend, product_address: str, product_id: int
) -> None:
    """Half-open, one order at a time goes as far as Kafka; its failure turns all others away again."""
    publisher = Refusing(failing=True)
    quick = {"circuit_failures_max": 1, "circuit_pause_ms": 100, "publish_timeout_ms": 5_000}
    async with running_front(front_redis, product_address, publisher=publisher, **quick) as front:
        await front.open_sale(product_id, stock=1_000)
        assert await answer(front, 1, product_id) == (503, "PENDING")
        answers = []
        for first in range(10, 1_000, 50):
            users = range(first, first + 50)
            answers += await asyncio.gather(*(answer(front, user, product_id) for user in users))
            await asyncio.sleep(0.05)
        assert 1 <= answers.count((503, "PENDING")) <= 20  # one for each pause
        assert answers.count((503, "UNAVAILABLE")) == len(answers) - answers.count((503, "PENDING"))
        publisher.failing = False
        await until(lambda: accepted(front, product_id))


async def test_a_stalled_publish_stops_admission(front_redis: Backend, product_address: str, product_id: int) -> None:
    """While the oldest order waits for Kafka too long, further ones are OVERLOADED; when it is through, they pass."""
    publisher = MemoryPublisher(released=asyncio.Event())
    async with running_front(front_redis, product_address, publisher=publisher, publish_stalled_ms=100) as front:
        await front.open_sale(product_id)
        first = asyncio.create_task(answer(front, 1, product_id))
        await until(lambda: _entries(front, product_id))
        await asyncio.sleep(0.15)
        assert await answer(front, 2, product_id) == (503, "OVERLOADED")
        assert len(await front.ledger.entries(product_id)) == 1
        assert publisher.released is not None
        publisher.released.set()
        assert await first == (202, "")
        assert await answer(front, 2, product_id) == (202, "")


async def _entries(front: RunningFront, product_id: int) -> bool:
    return bool(await front.ledger.entries(product_id))


# --- Redis is down -----------------------------------------------------------------------------------------------


async def test_a_redis_that_hangs_is_not_waited_for_twice(product_address: str, product_id: int) -> None:
    """The first orders wait for their time-out; those that come later are 503 at once, until Redis answers again."""
    with redis_process() as redis:
        backend = Backend(redis.url, run_id_check=True)
        async with running_front(backend, product_address, circuit_pause_ms=100) as front:
            await front.open_sale(product_id)
            redis.freeze()
            try:
                first = asyncio.create_task(answer(front, 1, product_id))
                assert await first == (503, "UNAVAILABLE")
                await until(lambda: _quick(front, product_id))
                began = time.monotonic()
                answers = await asyncio.gather(*(answer(front, user, product_id) for user in range(100, 300)))
                assert set(answers) == {(503, "UNAVAILABLE")}
                assert time.monotonic() - began < 1.5
            finally:
                redis.thaw()
            await until(lambda: accepted(front, product_id))


async def _quick(front: RunningFront, product_id: int) -> bool:
    """Whether an order is answered without waiting for Redis."""
    began = time.monotonic()
    assert await answer(front, secrets.randbelow(2**60) + 1, product_id) == (503, "UNAVAILABLE")
    return time.monotonic() - began < 0.5
