"""The front's gRPC API: real gRPC, the Redis stand-in, a real product service, records kept in memory."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import AsyncExitStack

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from seckill.domain.outcomes import Confirmed, Rejected
from seckill.domain.reasons import Rejection
from seckill.front.grpc import STREAM_ORDERS_MAX
from seckill.wire import seckill_pb2, seckill_pb2_grpc
from tests.support.fronts import OPERATOR, MemoryPublisher, RunningFront, running_front
from tests.support.redis_servers import Backend

Request = seckill_pb2.SeckillOrderRequest
Response = seckill_pb2.SeckillOrderResponse


@pytest.fixture
def product_id() -> int:
    return secrets.randbelow(2**60) + 1


def stub(front: RunningFront) -> seckill_pb2_grpc.SeckillAsyncStub:
    return seckill_pb2_grpc.SeckillStub(front.channel)


async def refused(front: RunningFront, request: Request) -> tuple[grpc.StatusCode, dict[str, str]]:
    """The status of a call that must fail, and its trailing metadata."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub(front).SeckillOrder(request)
    return error.value.code(), {str(key): str(value) for key, value in error.value.trailing_metadata() or ()}


async def test_an_order_is_accepted(front: RunningFront, product_id: int) -> None:
    """The unary call answers with the id once the record was acknowledged."""
    await front.open_sale(product_id, per_user_limit=2)
    reply = await stub(front).SeckillOrder(Request(user_id=7, product_id=product_id, quantity=2))
    assert (reply.status, reply.code) == ("accepted", "")
    (order,) = front.publisher.orders
    assert (order.order_id, order.user_id, order.quantity) == (reply.order_id, 7, 2)


async def test_a_request_id_makes_a_call_repeatable(front: RunningFront, product_id: int) -> None:
    """A repeat gets the same order, later its end; another quantity under the id is KEY_REUSED."""
    await front.open_sale(product_id, per_user_limit=5)
    request = Request(user_id=7, product_id=product_id, quantity=2, request_id="r-1")
    first, again = [await stub(front).SeckillOrder(request) for _ in range(2)]
    assert first == again
    assert len(front.publisher.orders) == 1
    code, trailing = await refused(front, Request(user_id=7, product_id=product_id, quantity=3, request_id="r-1"))
    assert (code, trailing["seckill-code"]) == (grpc.StatusCode.INVALID_ARGUMENT, "KEY_REUSED")
    await front.ledger.settle([(front.publisher.orders[0], Rejected(Rejection.ENDED))])
    ended = await stub(front).SeckillOrder(request)
    assert (ended.order_id, ended.status, ended.code) == (first.order_id, "rejected", "ENDED")


async def test_the_http_front_and_the_grpc_front_are_one(front: RunningFront, product_id: int) -> None:
    """A key that came over HTTP names the same order over gRPC."""
    await front.open_sale(product_id)
    _, document = await front.order(key="k", user_id=7, product_id=product_id)
    reply = await stub(front).SeckillOrder(Request(user_id=7, product_id=product_id, quantity=1, request_id="k"))
    assert reply.order_id == document["order_id"]


async def test_refusals_have_statuses_and_codes(front_redis: Backend, product_address: str, product_id: int) -> None:
    """Every refusal is a status with its stable code, and ALREADY_ORDERED names the first order."""
    async with running_front(front_redis, product_address, ledger={"entries_max": 2}) as front:
        sale = await front.open_sale(product_id, stock=3, per_user_limit=2)
        first = await stub(front).SeckillOrder(Request(user_id=1, product_id=product_id, quantity=2))
        expected = [
            (Request(user_id=1, product_id=product_id, quantity=1), "FAILED_PRECONDITION", "ALREADY_ORDERED"),
            (Request(user_id=2, product_id=product_id, quantity=2), "FAILED_PRECONDITION", "SOLD_OUT"),
            (Request(user_id=2, product_id=product_id, quantity=3), "FAILED_PRECONDITION", "LIMIT_EXCEEDED"),
            (Request(user_id=2, product_id=product_id + 1, quantity=1), "NOT_FOUND", "UNKNOWN_PRODUCT"),
            (Request(user_id=2, product_id=product_id, quantity=0), "INVALID_ARGUMENT", "INVALID_REQUEST"),
            (Request(user_id=2, product_id=product_id, quantity=-1), "INVALID_ARGUMENT", "INVALID_REQUEST"),
            (Request(user_id=0, product_id=product_id, quantity=1), "INVALID_ARGUMENT", "INVALID_REQUEST"),
            (Request(), "INVALID_ARGUMENT", "INVALID_REQUEST"),
            (Request(user_id=2, product_id=product_id, quantity=1, request_id="a b"), "INVALID_ARGUMENT",
             "INVALID_REQUEST"),
            (Request(user_id=2, product_id=product_id, quantity=1, request_id="x" * 129), "INVALID_ARGUMENT",
             "INVALID_REQUEST"),
        ]  # fmt: skip
        for request, status, code in expected:
            got, trailing = await refused(front, request)
            assert (got.name, trailing["seckill-code"]) == (status, code)
            assert trailing.get("seckill-order-id") == (first.order_id if code == "ALREADY_ORDERED" else None)
        await front.request("POST", f"/v1/sales/{sale['sale_id']}/pause", headers=OPERATOR)
        got, trailing = await refused(front, Request(user_id=2, product_id=product_id, quantity=1))
        assert (got.name, trailing["seckill-code"]) == ("UNAVAILABLE", "PAUSED")
        await front.request("POST", f"/v1/sales/{sale['sale_id']}/resume", headers=OPERATOR)
        await front.open_sale(product_id + 1)
        for user in (1, 2):
            await stub(front).SeckillOrder(Request(user_id=user, product_id=product_id + 1, quantity=1))
        got, trailing = await refused(front, Request(user_id=3, product_id=product_id + 1, quantity=1))
        assert (got.name, trailing["seckill-code"]) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert len(front.publisher.orders) == 3


async def test_a_failed_publish_is_pending(front: RunningFront, product_id: int) -> None:
    """Without an acknowledgement the call is UNAVAILABLE with PENDING and the order's id."""
    await front.open_sale(product_id)
    front.publisher.failing = True
    code, trailing = await refused(front, Request(user_id=1, product_id=product_id, quantity=1))
    assert (code.name, trailing["seckill-code"]) == ("UNAVAILABLE", "PENDING")
    (entry,) = await front.ledger.entries(product_id)
    assert trailing["seckill-order-id"] == entry.order.order_id


async def test_a_cancelled_call_stops_nothing(front_redis: Backend, product_address: str, product_id: int) -> None:
    """An order whose caller gives up in the middle is admitted and published all the same."""
    publisher = MemoryPublisher(released=asyncio.Event())
    async with running_front(front_redis, product_address, publisher=publisher) as front:
        await front.open_sale(product_id)
        call = stub(front).SeckillOrder(Request(user_id=1, product_id=product_id, quantity=1))
        while not await front.ledger.entries(product_id):
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.sleep(0.05)
        assert publisher.released is not None
        publisher.released.set()
        async with asyncio.timeout(5):
            while not publisher.orders:
                await asyncio.sleep(0.01)


async def test_a_stream_answers_every_order_by_its_tag(front: RunningFront, product_id: int) -> None:
    """Any number of orders on one stream, valid or not, are answered in-band, each with its tag."""
    await front.open_sale(product_id, stock=500)
    count = 2 * STREAM_ORDERS_MAX + 50

    def requests() -> Iterator[Request]:
        for tag in range(count):
            yield Request(user_id=tag + 1, product_id=product_id, quantity=1, tag=tag)
        yield Request(user_id=1, product_id=product_id, quantity=1, tag=count)
        yield Request(user_id=1, product_id=product_id, quantity=0, tag=count + 1)

    replies = {reply.tag: reply async for reply in stub(front).SeckillOrders(requests())}
    assert sorted(replies) == list(range(count + 2))
    accepted = [tag for tag in range(count) if replies[tag].status == "accepted"]
    assert len(accepted) == 500
    assert {replies[tag].code for tag in range(count) if tag not in accepted} == {"SOLD_OUT"}
    assert sorted(front.publisher.ids()) == sorted(replies[tag].order_id for tag in accepted)
    again = replies[count]
    # The first order was answered long before the last one was read: only so many are under way at once.
    assert (again.status, again.code, again.order_id) == ("refused", "ALREADY_ORDERED", replies[0].order_id)
    assert (replies[count + 1].status, replies[count + 1].code) == ("refused", "INVALID_REQUEST")


async def test_a_stream_is_bounded(front_redis: Backend, product_address: str, product_id: int) -> None:
    """A stream is not read on while as many of its orders as allowed wait for their answers."""
    publisher = MemoryPublisher(released=asyncio.Event())
    async with running_front(front_redis, product_address, publisher=publisher) as front:
        await front.open_sale(product_id, stock=1_000)
        call = stub(front).SeckillOrders(
            Request(user_id=user, product_id=product_id, quantity=1, tag=user)
            for user in range(1, STREAM_ORDERS_MAX + 101)
        )
        async with asyncio.timeout(10):
            while (await front.ledger.stats(product_id)).entries < STREAM_ORDERS_MAX:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        assert (await front.ledger.stats(product_id)).entries == STREAM_ORDERS_MAX
        assert publisher.released is not None
        publisher.released.set()
        replies = [reply async for reply in call]
        assert {reply.status for reply in replies} == {"accepted"}
        assert len(replies) == STREAM_ORDERS_MAX + 100


async def test_leaving_ends_open_streams(front_redis: Backend, product_address: str, product_id: int) -> None:
    """A front that ends answers what it has read from a stream and ends the stream, without waiting for the client."""
    running = running_front(front_redis, product_address, drain_timeout_ms=30_000)
    async with AsyncExitStack() as stack:
        front = await stack.enter_async_context(running)
        await front.open_sale(product_id)
        call = stub(front).SeckillOrders()
        await call.write(Request(user_id=1, product_id=product_id, quantity=1, tag=9))
        reply = await call.read()
        assert isinstance(reply, Response)
        assert (reply.tag, reply.status) == (9, "accepted")
        async with asyncio.timeout(5):
            await stack.aclose()


async def test_products_on_sale(front: RunningFront, product_id: int) -> None:
    """Every product with an open sale is listed, with the units that admission would still give out."""
    await front.open_sale(product_id, name="lamp", stock=5)
    closed = await front.open_sale(product_id + 1)
    await front.request("POST", f"/v1/sales/{closed['sale_id']}/close", headers=OPERATOR)
    assert (await front.order(user_id=1, product_id=product_id))[0] == 202
    reply = await stub(front).SeckillProducts(seckill_pb2.SeckillProductsRequest())
    (product,) = reply.products
    assert (product.product_id, product.name, product.stock) == (product_id, "lamp", 4)
    assert product.create_time > 0


async def test_products_without_a_product_service(front_redis: Backend) -> None:
    """When the list cannot be read, the call is UNAVAILABLE."""
    async with running_front(front_redis, "127.0.0.1:1") as front:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub(front).SeckillProducts(seckill_pb2.SeckillProductsRequest())
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_health(front: RunningFront) -> None:
    """The standard health service says SERVING."""
    reply = await health_pb2_grpc.HealthStub(front.channel).Check(
        health_pb2.HealthCheckRequest(service="seckill.Seckill")
    )
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_confirmed_repeat(front: RunningFront, product_id: int) -> None:
    """A repeat of a confirmed order says so."""
    await front.open_sale(product_id)
    request = Request(user_id=7, product_id=product_id, quantity=1, request_id="r")
    await stub(front).SeckillOrder(request)
    await front.ledger.settle([(front.publisher.orders[0], Confirmed())])
    assert (await stub(front).SeckillOrder(request)).status == "confirmed"
