"""How a role ends: unready, then no new work, then what is under way, and all of that before one deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from consumers.reconcile import Reconciler
from seckill.coordinator import serve_coordinator
from seckill.draining import CLOSING_S, Drain, DrainIncomplete
from seckill.dtm.protocol import TransOptions
from seckill.dtm.serving import serve
from seckill.ops import serve_http
from seckill.wire import seckill_pb2, seckill_pb2_grpc
from tests.support.backbone import Backbone
from tests.support.branches import Answer, serve_branches
from tests.support.coordinators import client_of, coordinator_settings
from tests.support.fronts import MemoryPublisher, RunningFront, running_front
from tests.support.redis_servers import Backend

# --- the deadline ----------------------------------------------------------------------------------------------------


async def test_every_part_asks_the_same_deadline() -> None:
    """What one part has used up is not there for the next one; work ends early enough for closing."""
    drain = Drain(10_000)
    drain.begin(delay_ms=2_000)
    assert 11.5 < drain.left_s() <= 12
    assert drain.left_s() - drain.work_left_s() == pytest.approx(CLOSING_S, abs=0.05)
    drain = Drain(100)
    assert 0 < drain.work_left_s() <= 0.08
    await asyncio.sleep(0.12)
    assert (drain.left_s(), drain.work_left_s(), drain.closing_s(5)) == (0, 0, 0)


async def test_it_begins_once_and_tells_everybody() -> None:
    """Whoever asked is told when it begins, once; a second begin does not move the deadline."""
    drain, told = Drain(1_000), list[str]()
    drain.when_begun(lambda: told.append("first"))
    drain.when_begun(lambda: told.append("second"))
    drain.begin()
    drain.begin(delay_ms=60_000)
    assert told == ["first", "second"]
    assert drain.left_s() <= 1


async def test_what_was_cut_off_is_an_error() -> None:
    """A process that had to leave something says what, by kind; one that left nothing ends well."""
    drain = Drain(1_000)
    await drain.begin_process(delay_ms=0)
    drain.leave("orders", 0)
    drain.end_process()
    drain.leave("orders", 3)
    drain.leave("calls", 1)
    with pytest.raises(DrainIncomplete, match="1 calls, 3 orders"):
        drain.end_process()


# --- HTTP ------------------------------------------------------------------------------------------------------------


async def test_answers_end_their_connections_once_it_has_begun() -> None:
    """A client on a kept connection is told to leave it before it is closed, with an answer and not in place of one."""
    drain = Drain(2_000)

    async def hello(_: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(
            serve_http(Starlette(routes=[Route("/", hello)]), "127.0.0.1:0", drain=drain)
        )
        session = await stack.enter_async_context(aiohttp.ClientSession(f"http://{address}"))
        for begun in (False, True):
            if begun:
                drain.begin()
            async with session.get("/") as response:
                assert (response.status, response.headers.get("connection")) == (200, "close" if begun else None)


# --- the front -------------------------------------------------------------------------------------------------------


@pytest.fixture
def product_id() -> int:
    return uuid4().int % 10**12 + 1


@asynccontextmanager
async def leaving(front: AsyncExitStack) -> AsyncIterator[asyncio.Task[None]]:
    """The front has been asked to end; it does so beside the block, and has ended after it."""
    ending = asyncio.create_task(front.aclose())
    await asyncio.sleep(0.1)
    try:
        yield ending
    finally:
        await asyncio.wait_for(ending, 20)


@asynccontextmanager
async def held_front(
    redis: Backend, product_address: str, drain_timeout_ms: int
) -> AsyncIterator[tuple[AsyncExitStack, RunningFront, MemoryPublisher, Drain]]:
    """A front in whose Kafka nothing is acknowledged until `released` is set; the client's session outlives it."""
    publisher, drain = MemoryPublisher(released=asyncio.Event()), Drain(drain_timeout_ms)
    async with AsyncExitStack() as front:
        running = running_front(redis, product_address, publisher=publisher, drain=drain)
        yield front, await front.enter_async_context(running), publisher, drain


async def test_orders_under_way_are_finished_and_new_ones_refused(
    front_redis: Backend, product_address: str, product_id: int
) -> None:
    """A front that ends answers the order that it has taken with 202; what comes meanwhile is 503 with Retry-After on a
    connection that ends, UNAVAILABLE over gRPC, and the front is unready.
    """
    async with held_front(front_redis, product_address, 10_000) as (stack, front, publisher, drain):
        await front.open_sale(product_id)
        url, channel = f"http://{front.served.http_address}", grpc.aio.insecure_channel(front.served.grpc_address)
        async with aiohttp.ClientSession(url) as buyer, channel:
            wish = {"user_id": 1, "product_id": product_id}
            under_way = asyncio.create_task(buyer.post("/v1/orders", json=wish))
            while not (await front.ledger.stats(product_id)).entries:
                await asyncio.sleep(0.01)
            async with leaving(stack):
                async with buyer.post("/v1/orders", json=wish | {"user_id": 2}) as refused:
                    assert (refused.status, (await refused.json(content_type=None))["code"]) == (503, "UNAVAILABLE")
                    assert refused.headers["retry-after"] == "1"
                    assert refused.headers["connection"] == "close"
                async with buyer.get("/readyz") as unready:
                    assert unready.status == 503
                request = seckill_pb2.SeckillOrderRequest(user_id=3, product_id=product_id, quantity=1)
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await seckill_pb2_grpc.SeckillStub(channel).SeckillOrder(request)
                assert error.value.code() is grpc.StatusCode.UNAVAILABLE
                assert publisher.released is not None
                publisher.released.set()
                assert (await under_way).status == 202
        assert len(publisher.orders) == 1
        assert not drain.left


async def test_the_deadline_is_kept_and_who_waits_is_told(
    front_redis: Backend, product_address: str, product_id: int
) -> None:
    """Kafka never answers: the front ends before its deadline all the same, tells the buyer that the order is pending,
    and says what it left. The order stays in the ledger.
    """
    timeout_ms = 1_500
    async with held_front(front_redis, product_address, timeout_ms) as (stack, front, _, drain):
        await front.open_sale(product_id)
        async with aiohttp.ClientSession(f"http://{front.served.http_address}") as buyer:
            under_way = asyncio.create_task(buyer.post("/v1/orders", json={"user_id": 1, "product_id": product_id}))
            while not (await front.ledger.stats(product_id)).entries:
                await asyncio.sleep(0.01)
            began = time.monotonic()
            await stack.aclose()
            assert time.monotonic() - began < timeout_ms / 1_000
            answer = await under_way
            assert (answer.status, (await answer.json(content_type=None))["code"]) == (503, "PENDING")
        assert drain.left == {"orders": 1, "publishes": 1}


async def test_who_waits_for_a_result_is_answered_at_once(
    front_redis: Backend, product_address: str, product_id: int
) -> None:
    """A long `?wait=` does not hold up the end: it is answered with what is known."""
    async with AsyncExitStack() as stack:
        running = running_front(front_redis, product_address, drain=Drain(10_000))
        front = await stack.enter_async_context(running)
        await front.open_sale(product_id)
        _, placed = await front.order(user_id=1, product_id=product_id)
        async with aiohttp.ClientSession(f"http://{front.served.http_address}") as buyer:
            waiting = asyncio.create_task(buyer.get(f"/v1/orders/{placed['order_id']}?wait=20"))
            await asyncio.sleep(0.2)
            began = time.monotonic()
            await stack.aclose()
            answer = await waiting
            assert (answer.status, (await answer.json())["status"]) == (200, "processing")
            assert time.monotonic() - began < 5


# --- gRPC services and the coordinator -------------------------------------------------------------------------------


class _Slow(grpc.GenericRpcHandler):
    """One method, which answers when it is released."""

    def __init__(self, released: asyncio.Event) -> None:
        self._released = released

    def service(self, _details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def answer(request: bytes, _context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            await self._released.wait()
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


async def test_a_running_call_is_finished_and_health_says_so_before(released: asyncio.Event) -> None:
    """Once the end has begun health is NOT_SERVING while calls are served; a running call is answered, a later one is
    UNAVAILABLE.
    """
    drain = Drain(10_000)
    async with AsyncExitStack() as stack:
        call, channel = await stack.enter_async_context(slow_service(drain, released))
        first = asyncio.ensure_future(call(b"first"))
        await asyncio.sleep(0.1)
        drain.begin()
        await asyncio.sleep(0.05)
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="test.Slow"))
        assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
        second = asyncio.ensure_future(call(b"second"))  # unready, and not yet gone
        await asyncio.sleep(0.1)
        async with leaving(stack):
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await call(b"third")
            assert late.value.code() is grpc.StatusCode.UNAVAILABLE
            released.set()
            assert await asyncio.gather(first, second) == [b"first", b"second"]
    assert not drain.left


async def test_a_call_that_hangs_is_cut_off_and_counted(released: asyncio.Event) -> None:
    """A call that does not end is cancelled before the deadline; how many there were is told."""
    drain = Drain(1_000)
    async with AsyncExitStack() as stack:
        call, _ = await stack.enter_async_context(slow_service(drain, released))
        hanging = [asyncio.ensure_future(call(b"")) for _ in range(2)]
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await stack.aclose()
        assert time.monotonic() - began < 1
        ends = await asyncio.gather(*hanging, return_exceptions=True)
        assert all(isinstance(end, BaseException) for end in ends)
    assert drain.left == {"calls": 2}


@pytest.fixture
def released() -> asyncio.Event:
    return asyncio.Event()


@asynccontextmanager
async def slow_service(drain: Drain, released: asyncio.Event) -> AsyncIterator[tuple[Any, grpc.aio.Channel]]:
    """The client's channel outlives the server."""
    async with AsyncExitStack() as client, serve(
        "127.0.0.1:0", lambda server: server.add_generic_rpc_handlers([_Slow(released)]),
        names=["test.Slow"], status_of=lambda error: None, drain=drain,
    ) as address:  # fmt: skip
        channel = await client.enter_async_context(grpc.aio.insecure_channel(address))
        yield channel.unary_unary("/test.Slow/Call"), channel


async def test_a_coordinator_tells_what_it_leaves_to_the_next_one(sqlite_log: str) -> None:
    """Branch calls under way have the drain's time; a transaction that needs more is counted, and stays in the log."""
    drain = Drain(1_000)
    settings = coordinator_settings(sqlite_log, branch_timeout_s=5)
    async with serve_branches() as branches:
        async with serve_coordinator(settings, drain=drain) as served, client_of(served) as client:
            gid = await client.new_gid()
            await client.prepare(gid)
            data = {"confirm": branches.branch.confirm, "cancel": branches.branch.cancel}
            await client.register_branch(gid, trans_type="tcc", branch_id="01", data=data, payload=b"")
            branches.script(gid, "01", "confirm", Answer(pause_ms=3_000))
            await client.submit(gid, options=TransOptions())
            await branches.until(gid, 1)
            began = time.monotonic()
        assert time.monotonic() - began < 1
    assert drain.left == {"transactions": 1}


# --- reconcile -------------------------------------------------------------------------------------------------------


@pytest.mark.own_redis
async def test_a_reconciler_that_ends_begins_no_further_step(backbone: Backbone, reconciler: Reconciler) -> None:
    """Asked to stop, it leaves entries that are due to the next one; nothing is claimed or published any more."""
    sale = await backbone.open_sale(stock=10)
    orders = [await backbone.admit(sale, user_id) for user_id in (1, 2)]
    await backbone.ledger.postpone(orders, delay_ms=0)
    reconciler.stop()
    await asyncio.wait_for(reconciler.run(), 1)
    assert (await reconciler.once()).counts == {}
    assert len(await backbone.ledger.due(sale.product_id, limit=10)) == 2
