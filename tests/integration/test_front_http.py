"""The front's HTTP API: real HTTP, the Redis stand-in, a real product service, records kept in memory."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from seckill.admission.keys import sale_keys
from seckill.domain.order import MAX_ID, order_id_from_key
from seckill.domain.outcomes import Confirmed, Rejected
from seckill.domain.reasons import Rejection
from tests.support.fronts import OPERATOR, MemoryPublisher, RunningFront, running_front
from tests.support.redis_servers import Backend, raw_redis


@pytest.fixture
def product_id() -> int:
    return secrets.randbelow(2**60) + 1


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def stock_of(front: RunningFront, product_id: int) -> int:
    view = await front.book.read(product_id)
    assert view is not None
    assert view.stock + view.admitted == view.initial
    return view.stock


# --- placing orders ---------------------------------------------------------------------------------------------


async def test_an_order_is_accepted_once_it_is_published(front: RunningFront, product_id: int) -> None:
    """202 with the order id, after the record with everything in it was acknowledged."""
    sale = await front.open_sale(product_id, per_user_limit=5)
    status, document = await front.order(user_id=7, product_id=product_id, quantity=2)
    assert (status, document["status"]) == (202, "processing")
    (order,) = front.publisher.orders
    assert order.order_id == document["order_id"]
    assert (order.sale_id, order.user_id, order.product_id, order.quantity) == (sale["sale_id"], 7, product_id, 2)
    assert order.admission_number == 1
    assert [entry.order for entry in await front.ledger.entries(product_id)] == [order]


async def test_quantity_is_one_by_default(front: RunningFront, product_id: int) -> None:
    """An order without a quantity is for one unit."""
    await front.open_sale(product_id)
    assert (await front.order(user_id=7, product_id=product_id))[0] == 202
    assert front.publisher.orders[0].quantity == 1


async def test_a_second_order_is_told_the_first(front: RunningFront, product_id: int) -> None:
    """The buyer whose allowance is used up gets ALREADY_ORDERED with the first order's id."""
    await front.open_sale(product_id)
    _, first = await front.order(user_id=7, product_id=product_id)
    status, document = await front.order(user_id=7, product_id=product_id)
    assert (status, document["code"], document["order_id"]) == (409, "ALREADY_ORDERED", first["order_id"])
    assert len(front.publisher.orders) == 1


async def test_sold_out_and_limit_say_what_is_left(front: RunningFront, product_id: int) -> None:
    """SOLD_OUT carries the units of the stock, LIMIT_EXCEEDED those of the allowance."""
    await front.open_sale(product_id, stock=3, per_user_limit=2)
    assert (await front.order(user_id=1, product_id=product_id, quantity=2))[0] == 202
    status, document = await front.order(user_id=2, product_id=product_id, quantity=2)
    assert (status, document["code"], document["left"]) == (409, "SOLD_OUT", 1)
    status, document = await front.order(user_id=2, product_id=product_id, quantity=3)
    assert (status, document["code"], document["left"]) == (422, "LIMIT_EXCEEDED", 2)
    status, document = await front.order(user_id=2, product_id=product_id, quantity=MAX_ID)
    assert (status, document["code"]) == (422, "LIMIT_EXCEEDED")


async def test_outside_of_the_window(front: RunningFront, product_id: int) -> None:
    """Before the start NOT_STARTED with it, after the end ENDED with it; an unknown product is UNKNOWN_PRODUCT."""
    starts, ended = now_ms() + 60_000, now_ms() - 1_000
    await front.open_sale(product_id, starts_at_ms=starts)
    await front.open_sale(product_id + 1, ends_at_ms=ended)
    status, document = await front.order(user_id=1, product_id=product_id)
    assert (status, document["code"], document["starts_at_ms"]) == (409, "NOT_STARTED", starts)
    status, document = await front.order(user_id=1, product_id=product_id + 1)
    assert (status, document["code"], document["ended_at_ms"]) == (409, "ENDED", ended)
    status, document = await front.order(user_id=1, product_id=product_id + 2)
    assert (status, document["code"]) == (404, "UNKNOWN_PRODUCT")


async def test_a_key_makes_a_request_repeatable(front: RunningFront, product_id: int) -> None:
    """The same key gets the same order and takes nothing more; with another quantity it is KEY_REUSED."""
    await front.open_sale(product_id, per_user_limit=5)
    answers = [await front.order(key="key-1", user_id=7, product_id=product_id, quantity=2) for _ in range(3)]
    assert {status for status, _ in answers} == {202}
    assert len({document["order_id"] for _, document in answers}) == 1
    assert await stock_of(front, product_id) == 8
    assert len(front.publisher.orders) == 1
    status, document = await front.order(key="key-1", user_id=7, product_id=product_id, quantity=3)
    assert (status, document["code"]) == (422, "KEY_REUSED")


async def test_a_repeat_of_an_ended_order_gets_its_end(front: RunningFront, product_id: int) -> None:
    """Once an order has ended, its key answers 200 with the end and the reason."""
    await front.open_sale(product_id)
    for user, end in ((1, Confirmed()), (2, Rejected(Rejection.SOLD_OUT))):
        await front.order(key="key", user_id=user, product_id=product_id)
        await front.ledger.settle([(front.publisher.orders[-1], end)])
    status, document = await front.order(key="key", user_id=1, product_id=product_id)
    assert (status, document["status"], "reason" in document) == (200, "confirmed", False)
    status, document = await front.order(key="key", user_id=2, product_id=product_id)
    assert (status, document["status"], document["reason"]) == (200, "rejected", "SOLD_OUT")


async def test_a_failed_publish_is_pending_and_stays_in_the_ledger(front_redis: Backend, product_address: str) -> None:
    """Without an acknowledgement: 503 PENDING with the id, nothing undone, and an entry that will be looked at."""
    product_id = secrets.randbelow(2**60) + 1
    async with running_front(front_redis, product_address, ledger={"republish_after_ms": 200}) as front:
        await front.open_sale(product_id)
        front.publisher.failing = True
        status, document, headers = await front.request(
            "POST", "/v1/orders", json={"user_id": 1, "product_id": product_id}
        )
        assert (status, document["code"]) == (503, "PENDING")
        assert int(headers["Retry-After"]) > 0
        assert await stock_of(front, product_id) == 9
        await asyncio.sleep(0.3)
        (entry,) = await front.ledger.due(product_id, limit=10)
        assert entry.order.order_id == document["order_id"]
        await front.ledger.settle([(entry.order, Confirmed())])


async def test_a_repeat_after_a_failed_publish_publishes_again(front: RunningFront, product_id: int) -> None:
    """202 always means that Kafka has it: a repeat whose first record is unknown is published before the answer."""
    await front.open_sale(product_id)
    front.publisher.failing = True
    body = {"user_id": 1, "product_id": product_id}
    assert [(await front.order(key="key", **body))[0] for _ in range(2)] == [503, 503]
    front.publisher.failing = False
    status, document = await front.order(key="key", **body)
    assert (status, front.publisher.ids()) == (202, [document["order_id"]])


async def test_an_order_that_is_admitted_anew_is_published_anew(
    front: RunningFront, front_redis: Backend, product_id: int
) -> None:
    """A refused order's result has expired when its key comes again: its new ledger entry gets a record of its own."""
    sale = await front.open_sale(product_id)
    await front.order(key="key", user_id=1, product_id=product_id)
    (order,) = front.publisher.orders
    await front.ledger.settle([(order, Rejected(Rejection.DISCARDED))])
    with raw_redis(front_redis.url) as redis:
        redis.delete(sale_keys(product_id, sale["sale_id"]).result(order.order_id))
    assert (await front.order(key="key", user_id=1, product_id=product_id))[0] == 202
    assert front.publisher.ids() == [order.order_id] * 2


async def test_a_slow_publish_is_pending(front_redis: Backend, product_address: str) -> None:
    """When the acknowledgement takes too long the client gets PENDING, and the publish goes on behind it."""
    product_id = secrets.randbelow(2**60) + 1
    publisher = MemoryPublisher(released=asyncio.Event())
    async with running_front(front_redis, product_address, publisher=publisher, publish_timeout_ms=200) as front:
        await front.open_sale(product_id)
        status, document = await front.order(user_id=1, product_id=product_id)
        assert (status, document["code"]) == (503, "PENDING")
        assert publisher.released is not None
        publisher.released.set()
        async with asyncio.timeout(5):
            while not publisher.orders:
                await asyncio.sleep(0.01)
        assert publisher.ids() == [document["order_id"]]


async def test_a_client_that_goes_away_stops_nothing(front_redis: Backend, product_address: str) -> None:
    """An order whose client hangs up in the middle is admitted and published all the same."""
    product_id = secrets.randbelow(2**60) + 1
    publisher = MemoryPublisher(released=asyncio.Event())
    async with running_front(front_redis, product_address, publisher=publisher) as front:
        await front.open_sale(product_id)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await front.order(user_id=1, product_id=product_id)
        assert publisher.released is not None
        publisher.released.set()
        async with asyncio.timeout(5):
            while not publisher.orders:
                await asyncio.sleep(0.01)
        assert await stock_of(front, product_id) == 9


async def test_a_full_ledger_answers_overloaded(front_redis: Backend, product_address: str) -> None:
    """More accepted orders than the ledger may hold: 503 OVERLOADED with Retry-After; those accepted stay."""
    product_id = secrets.randbelow(2**60) + 1
    async with running_front(front_redis, product_address, ledger={"entries_max": 3}) as front:
        await front.open_sale(product_id)
        answers = [
            await front.request("POST", "/v1/orders", json={"user_id": user, "product_id": product_id})
            for user in range(1, 6)
        ]
        assert [status for status, _, _ in answers] == [202] * 3 + [503] * 2
        _, document, headers = answers[-1]
        assert document["code"] == "OVERLOADED"
        assert int(headers["Retry-After"]) > 0
        assert len(await front.ledger.entries(product_id)) == 3
        assert len(front.publisher.orders) == 3


async def test_too_many_orders_at_once(front_redis: Backend, product_address: str) -> None:
    """Above the bound of orders under way, further ones are OVERLOADED at once."""
    product_id = secrets.randbelow(2**60) + 1
    publisher = MemoryPublisher(released=asyncio.Event())
    async with running_front(front_redis, product_address, publisher=publisher, admission_queue_max=4) as front:
        await front.open_sale(product_id)
        held = [asyncio.create_task(front.order(user_id=user, product_id=product_id)) for user in range(1, 5)]
        while len(await front.ledger.entries(product_id)) < 4:
            await asyncio.sleep(0.01)
        status, document = await front.order(user_id=9, product_id=product_id)
        assert (status, document["code"]) == (503, "OVERLOADED")
        assert publisher.released is not None
        publisher.released.set()
        assert {status for status, _ in await asyncio.gather(*held)} == {202}


async def test_no_redis(product_address: str) -> None:
    """Without Redis an order is 503 UNAVAILABLE with Retry-After, and the front is not ready."""
    async with running_front(Backend("redis://127.0.0.1:1/0", run_id_check=True), product_address) as front:
        status, document, headers = await front.request("POST", "/v1/orders", json={"user_id": 1, "product_id": 1})
        assert (status, document["code"]) == (503, "UNAVAILABLE")
        assert int(headers["Retry-After"]) > 0
        async with front.http.get("/readyz") as response:
            assert response.status == 503
            report = await response.json()
        assert report["checks"]["redis"] != "ok"
        assert report["checks"]["product"] == "ok"


async def test_many_buyers_never_get_more_than_there_is(front: RunningFront, product_id: int) -> None:
    """Of many at once, exactly as many are accepted as there are units, one for each buyer."""
    await front.open_sale(product_id, stock=50)
    answers = await asyncio.gather(*(front.order(user_id=user % 80 + 1, product_id=product_id) for user in range(200)))
    accepted = [document["order_id"] for status, document in answers if status == 202]
    assert len(accepted) == len(set(accepted)) == 50
    assert sorted(front.publisher.ids()) == sorted(accepted)
    assert len({order.user_id for order in front.publisher.orders}) == 50
    assert {document["code"] for status, document in answers if status != 202} <= {"SOLD_OUT", "ALREADY_ORDERED"}


# --- bad input ----------------------------------------------------------------------------------------------------

P = "PRODUCT"  # replaced by the test's product

BAD_BODIES: list[tuple[str, str | bytes, int, str, str]] = [
    ("empty", "", 400, "MALFORMED_JSON", ""),
    ("no json", "user_id=1", 400, "MALFORMED_JSON", ""),
    ("cut off", '{"user_id": 1, "product_id"', 400, "MALFORMED_JSON", ""),
    ("something after it", f'{{"user_id": 1, "product_id": {P}}} x', 400, "MALFORMED_JSON", ""),
    ("not utf-8", b'{"user_id": 1, "product_id": "\xff\xfe"}', 400, "MALFORMED_JSON", ""),
    ("NaN", f'{{"user_id": NaN, "product_id": {P}}}', 400, "MALFORMED_JSON", ""),
    ("Infinity", f'{{"user_id": 1, "product_id": {P}, "quantity": Infinity}}', 400, "MALFORMED_JSON", ""),
    ("deep", "[" * 15_000, 400, "MALFORMED_JSON", ""),
    ("deep member", f'{{"user_id": 1, "product_id": {P}, "x": {"[" * 15_000}', 400, "MALFORMED_JSON", ""),
    ("array", f'[{{"user_id": 1, "product_id": {P}}}]', 422, "INVALID_REQUEST", "body"),
    ("null", "null", 422, "INVALID_REQUEST", "body"),
    ("number", "1", 422, "INVALID_REQUEST", "body"),
    ("no members", "{}", 422, "INVALID_REQUEST", "user_id product_id"),
    ("no user", f'{{"product_id": {P}}}', 422, "INVALID_REQUEST", "user_id"),
    ("no product", '{"user_id": 1}', 422, "INVALID_REQUEST", "product_id"),
    ("unknown member", f'{{"user_id": 1, "product_id": {P}, "qty": 5}}', 422, "INVALID_REQUEST", "qty"),
    ("text user", f'{{"user_id": "1", "product_id": {P}}}', 422, "INVALID_REQUEST", "user_id"),
    ("null quantity", f'{{"user_id": 1, "product_id": {P}, "quantity": null}}', 422, "INVALID_REQUEST", "quantity"),
    ("float quantity", f'{{"user_id": 1, "product_id": {P}, "quantity": 1.5}}', 422, "INVALID_REQUEST", "quantity"),
    ("whole float", f'{{"user_id": 1, "product_id": {P}, "quantity": 1.0}}', 422, "INVALID_REQUEST", "quantity"),
    ("exponent", f'{{"user_id": 1, "product_id": {P}, "quantity": 1e0}}', 422, "INVALID_REQUEST", "quantity"),
    ("true", f'{{"user_id": 1, "product_id": {P}, "quantity": true}}', 422, "INVALID_REQUEST", "quantity"),
    ("quantity 0", f'{{"user_id": 1, "product_id": {P}, "quantity": 0}}', 422, "INVALID_REQUEST", "quantity"),
    ("quantity -1", f'{{"user_id": 1, "product_id": {P}, "quantity": -1}}', 422, "INVALID_REQUEST", "quantity"),
    ("above the limit", f'{{"user_id": 1, "product_id": {P}, "quantity": 2}}', 422, "LIMIT_EXCEEDED", ""),
    ("user 0", f'{{"user_id": 0, "product_id": {P}}}', 422, "INVALID_REQUEST", "user_id"),
    ("2^63", f'{{"user_id": {2**63}, "product_id": {P}}}', 422, "INVALID_REQUEST", "user_id"),
    ("2^64", f'{{"user_id": {2**64}, "product_id": {P}}}', 422, "INVALID_REQUEST", "user_id"),
    ("400 digits", f'{{"user_id": {"9" * 400}, "product_id": {P}}}', 422, "INVALID_REQUEST", "user_id"),
    ("huge exponent", f'{{"user_id": 1e999, "product_id": {P}}}', 400, "MALFORMED_JSON", ""),
    ("object user", f'{{"user_id": {{}}, "product_id": {P}}}', 422, "INVALID_REQUEST", "user_id"),
    ("name twice", f'{{"user_id": 1, "user_id": 2, "product_id": {P}}}', 422, "INVALID_REQUEST", "body"),
    ("escaped name twice", f'{{"user_id": 1, "\\u0075ser_id": 2, "product_id": {P}}}', 422, "INVALID_REQUEST", "body"),
    ("many faults", '{"user_id": "x", "product_id": -1, "quantity": []}', 422, "INVALID_REQUEST",
     "user_id product_id quantity"),
]  # fmt: skip


async def test_bad_bodies(front: RunningFront, product_id: int, subtests: pytest.Subtests) -> None:
    """A body that is no valid order is a 4xx problem naming what is wrong, never a 500 and never an order."""
    await front.open_sale(product_id)
    for name, body, status, code, fields in BAD_BODIES:
        with subtests.test(name):
            raw = body.replace(P, str(product_id)).encode() if isinstance(body, str) else body
            got, document, headers = await front.request("POST", "/v1/orders", data=raw)
            assert headers["Content-Type"] == "application/problem+json"
            assert {"type", "title", "status", "detail", "code"} <= document.keys()
            assert document["status"] == got
            assert (got, document["code"]) == (status, code)
            assert [error["field"] for error in document.get("errors", [])] == fields.split()
            assert front.publisher.orders == []
    assert await stock_of(front, product_id) == 10


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_huge_body_is_not_read(front: RunningFront, product_id: int, chunked: bool) -> None:
    """10 MB are answered with 413 without being kept, whether or not their length is announced."""
    await front.open_sale(product_id)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(160):
            yield b" " * 65_536

    data: Any = pieces() if chunked else b" " * 10_485_760
    status, document, _ = await front.request("POST", "/v1/orders", data=data)
    assert (status, document["code"]) == (413, "BODY_TOO_LARGE")
    assert (await front.order(user_id=1, product_id=product_id))[0] == 202


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 129, "schlüssel"])
async def test_bad_keys(front: RunningFront, product_id: int, key: str) -> None:
    """A key that is not 1 to 128 visible ASCII characters is refused, and no order is made."""
    await front.open_sale(product_id)
    status, document = await front.order(key=key, user_id=1, product_id=product_id)
    assert (status, document["code"]) == (422, "INVALID_REQUEST")
    assert document["errors"][0]["field"] == "Idempotency-Key"
    assert front.publisher.orders == []


async def test_everything_else_is_a_problem_as_well(front: RunningFront) -> None:
    """Unknown paths, wrong methods and bad ids answer problem documents with their codes."""
    expected = [
        ("GET", "/v1/orders", 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/v1/sales", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/nowhere", 404, "NOT_FOUND"),
        ("GET", "/v1/orders/1-xyz", 400, "INVALID_ORDER_ID"),
        ("GET", f"/v1/orders/{order_id_from_key(5, bytes(16))}", 404, "UNKNOWN_ORDER"),
        ("GET", f"/v1/orders/{order_id_from_key(5, bytes(16))}?wait=soon", 422, "INVALID_REQUEST"),
        ("GET", f"/v1/orders/{order_id_from_key(5, bytes(16))}?wait=-1", 422, "INVALID_REQUEST"),
        ("GET", f"/v1/orders/{order_id_from_key(5, bytes(16))}?wait=NaN", 422, "INVALID_REQUEST"),
        ("GET", "/v1/sales/999999999", 404, "UNKNOWN_SALE"),
        ("GET", "/v1/sales/abc", 422, "INVALID_REQUEST"),
        ("GET", f"/v1/sales/{2**63}", 422, "INVALID_REQUEST"),
        ("GET", "/v1/sales?state=odd", 422, "INVALID_REQUEST"),
        ("GET", "/v1/sales?product_id=0", 422, "INVALID_REQUEST"),
    ]
    for method, path, status, code in expected:
        got, document, headers = await front.request(method, path)
        assert (path, got, document["code"]) == (path, status, code)
        assert headers["Content-Type"] == "application/problem+json"


# --- asking for orders --------------------------------------------------------------------------------------------


async def test_asking_for_an_order(front: RunningFront, product_id: int) -> None:
    """An order is processing until it is settled, and then what it was settled as."""
    await front.open_sale(product_id)
    _, accepted = await front.order(user_id=1, product_id=product_id)
    path = f"/v1/orders/{accepted['order_id']}"
    assert (await front.request("GET", path))[:2] == (200, accepted)
    await front.ledger.settle([(front.publisher.orders[0], Rejected(Rejection.ENDED))])
    status, document, _ = await front.request("GET", path)
    assert (status, document["status"], document["reason"]) == (200, "rejected", "ENDED")


async def test_waiting_for_an_order(front: RunningFront, product_id: int) -> None:
    """`wait` answers as soon as the order has ended, and with what is known when the time is up."""
    await front.open_sale(product_id)
    _, accepted = await front.order(user_id=1, product_id=product_id)
    path = f"/v1/orders/{accepted['order_id']}"
    started = time.monotonic()
    assert (await front.request("GET", f"{path}?wait=0.2"))[1]["status"] == "processing"
    assert 0.19 < time.monotonic() - started < 2
    waiting = [asyncio.create_task(front.request("GET", f"{path}?wait=10")) for _ in range(20)]
    await asyncio.sleep(0.1)
    await front.ledger.settle([(front.publisher.orders[0], Confirmed())])
    assert {document["status"] for _, document, _ in await asyncio.gather(*waiting)} == {"confirmed"}
    assert time.monotonic() - started < 5


async def test_a_waiting_time_is_cut(front_redis: Backend, product_address: str) -> None:
    """Nobody waits longer than the settings allow."""
    product_id = secrets.randbelow(2**60) + 1
    async with running_front(front_redis, product_address, wait_max_ms=200) as front:
        await front.open_sale(product_id)
        _, accepted = await front.order(user_id=1, product_id=product_id)
        started = time.monotonic()
        status, document, _ = await front.request("GET", f"/v1/orders/{accepted['order_id']}?wait=60")
        assert (status, document["status"]) == (200, "processing")
        assert time.monotonic() - started < 3


# --- sales -------------------------------------------------------------------------------------------------------


async def test_sales_from_opening_to_closing(front: RunningFront, product_id: int) -> None:
    """A sale is opened, listed, shown with Redis' view, paused, resumed and closed; orders follow each step."""
    sale = await front.open_sale(product_id, name="lamp", per_user_limit=2, price_cents=1990)
    assert (sale["stock"], sale["initial"], sale["state"], sale["name"]) == (10, 10, "open", "lamp")
    path = f"/v1/sales/{sale['sale_id']}"
    _, listed, _ = await front.request("GET", f"/v1/sales?product_id={product_id}&state=open")
    assert listed == {"sales": [sale]}
    assert (await front.order(user_id=1, product_id=product_id))[0] == 202
    status, shown, _ = await front.request("GET", path)
    assert status == 200
    assert shown == sale | {"redis": {"state": "open", "stock": 9, "number": 1, "vouched": True}}
    for action, state, code in (("pause", "paused", "PAUSED"), ("resume", "open", ""), ("close", "closed", "ENDED")):
        status, changed, _ = await front.request("POST", f"{path}/{action}", headers=OPERATOR)
        assert (status, changed["state"]) == (200, state)
        got, document = await front.order(user_id=2, product_id=product_id)
        assert (got, document.get("code", "")) == ({"PAUSED": 503, "": 202, "ENDED": 409}[code], code)
    status, document, _ = await front.request("POST", f"{path}/resume", headers=OPERATOR)
    assert (status, document["code"]) == (409, "SALE_CONFLICT")
    await front.open_sale(product_id)


async def test_one_open_sale_per_product(front: RunningFront, product_id: int) -> None:
    """A second sale of a product whose sale is open is refused."""
    await front.open_sale(product_id)
    status, document, _ = await front.request(
        "POST", "/v1/sales", json={"product_id": product_id, "stock": 1}, headers=OPERATOR
    )
    assert (status, document["code"]) == (409, "SALE_CONFLICT")


async def test_opening_a_sale_is_repeatable(front: RunningFront, product_id: int) -> None:
    """The same key opens one sale, though its start is left to be now."""
    headers = OPERATOR | {"Idempotency-Key": f"open-{product_id}"}
    body = {"product_id": product_id, "stock": 4}
    first = await front.request("POST", "/v1/sales", json=body, headers=headers)
    await asyncio.sleep(0.01)
    again = await front.request("POST", "/v1/sales", json=body, headers=headers)
    assert (first[0], again[0]) == (201, 201)
    assert first[1] == again[1]
    assert abs(first[1]["starts_at_ms"] - now_ms()) < 10_000
    assert first[1]["ends_at_ms"] == first[1]["starts_at_ms"] + 86_400_000


async def test_units_are_raised_and_lowered_once_per_key(front: RunningFront, product_id: int) -> None:
    """Raising and lowering change row and Redis alike, once per key; lowering takes what is there and says so."""
    sale = await front.open_sale(product_id)
    path = f"/v1/sales/{sale['sale_id']}"
    assert (await front.order(user_id=1, product_id=product_id))[0] == 202

    async def change(delta: int, key: str) -> dict[str, Any]:
        status, document, _ = await front.request(
            "PATCH", path, json={"stock_delta": delta}, headers=OPERATOR | {"Idempotency-Key": key}
        )
        assert status == 200, document
        return document

    for _ in range(2):
        changed = await change(5, "raise")
        assert (changed["initial"], changed["stock"], "taken" in changed) == (15, 15, False)
        assert await stock_of(front, product_id) == 14
    for _ in range(2):
        changed = await change(-4, "lower")
        assert (changed["initial"], changed["stock"], changed["taken"]) == (11, 11, 4)
        assert await stock_of(front, product_id) == 10
    changed = await change(-100, "lower-all")
    assert (changed["initial"], changed["stock"], changed["taken"]) == (1, 1, 10)
    assert await stock_of(front, product_id) == 0


async def test_a_lowering_that_the_row_refuses_is_undone(front: RunningFront, product_id: int) -> None:
    """When the row cannot be lowered, Redis gets its units back."""
    sale = await front.open_sale(product_id)
    path = f"/v1/sales/{sale['sale_id']}"
    status, document, _ = await front.request(
        "PATCH", path, json={"stock_delta": -4, "ends_at_ms": 500}, headers=OPERATOR
    )
    assert (status, document["code"]) == (409, "SALE_CONFLICT")
    assert await stock_of(front, product_id) == 10


async def test_terms_reach_admission(front: RunningFront, product_id: int) -> None:
    """A changed limit holds for the next order."""
    sale = await front.open_sale(product_id)
    body = {"per_user_limit": 3, "name": "renamed", "price_cents": 5}
    status, changed, _ = await front.request("PATCH", f"/v1/sales/{sale['sale_id']}", json=body, headers=OPERATOR)
    assert (status, changed) == (200, sale | body)
    assert (await front.order(user_id=1, product_id=product_id, quantity=3))[0] == 202


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}])
async def test_the_operator_token_is_needed(front: RunningFront, product_id: int, headers: dict[str, str]) -> None:
    """Without the right token nothing that changes a sale is done, and looking stays open."""
    sale = await front.open_sale(product_id)
    path = f"/v1/sales/{sale['sale_id']}"
    for method, target in (
        ("POST", "/v1/sales"), ("PATCH", path), ("POST", f"{path}/pause"), ("POST", f"{path}/resume"),
        ("POST", f"{path}/close"),
    ):  # fmt: skip
        status, document, got = await front.request(method, target, json={}, headers=headers)
        assert (target, status, document["code"]) == (target, 401, "UNAUTHORIZED")
        assert got["WWW-Authenticate"] == "Bearer"
    assert (await front.request("GET", path))[1]["state"] == "open"


async def test_without_a_token_sales_cannot_be_changed(front_redis: Backend, product_address: str) -> None:
    """A front without an operator token answers CLOSED to everything that changes a sale."""
    async with running_front(front_redis, product_address, operator_token=None) as front:
        status, document, _ = await front.request("POST", "/v1/sales", json={}, headers=OPERATOR)
        assert (status, document["code"]) == (403, "CLOSED")


BAD_SALES = ["", "{", "[]", "null", "{}", '{"product_id": 1}', '{"product_id": "1", "stock": 1}',
     '{"product_id": 1, "stock": 0}',
     '{"product_id": 1, "stock": true}', '{"product_id": 1, "stock": 1.0}', '{"product_id": 1, "stock": NaN}',
     '{"product_id": 1, "stock": 9007199254740992}', '{"product_id": 1, "stock": 1, "x": 1}',
     '{"product_id": 1, "stock": 1, "starts_at_ms": 5, "ends_at_ms": 5}', '{"product_id": 1, "stock": 1, "name": ""}',
     '{"product_id": 1, "stock": 1, "per_user_limit": 0}', '{"product_id": 1, "stock": 1, "price_cents": -1}',
]  # fmt: skip


async def test_bad_sales(front: RunningFront, subtests: pytest.Subtests) -> None:
    """A request that is no valid sale is a 4xx problem, never a 500 and never a sale."""
    headers = OPERATOR | {"Content-Type": "application/json"}
    for body in BAD_SALES:
        with subtests.test(body):
            status, document, _ = await front.request("POST", "/v1/sales", data=body, headers=headers)
            assert (status, document["code"]) in ((400, "MALFORMED_JSON"), (422, "INVALID_REQUEST"))
    assert (await front.request("GET", "/v1/sales"))[1] == {"sales": []}


async def test_a_huge_sale_is_not_read(front: RunningFront) -> None:
    """Every endpoint bounds what it reads."""
    status, document, _ = await front.request("POST", "/v1/sales", data=b" " * 10_485_760, headers=OPERATOR)
    assert (status, document["code"]) == (413, "BODY_TOO_LARGE")


async def test_no_product_service(front_redis: Backend) -> None:
    """Without the product service orders are still taken, so the front stays ready; sales answer UNAVAILABLE."""
    async with running_front(front_redis, "127.0.0.1:1") as front:
        status, document, _ = await front.request("GET", "/v1/sales")
        assert (status, document["code"]) == (503, "UNAVAILABLE")
        status, document = await front.order(user_id=1, product_id=secrets.randbelow(2**60) + 1)
        assert (status, document["code"]) == (404, "UNKNOWN_PRODUCT")
        async with front.http.get("/readyz") as response:
            report = await response.json()
        assert (response.status, report["ready"]) == (200, True)
        assert report["checks"]["product"] != "ok"


# --- the role itself -------------------------------------------------------------------------------------------


async def test_status_health_and_metrics(front: RunningFront, product_id: int) -> None:
    """The role says that it lives, whether it is ready, what its ledger holds, and what it has counted."""
    sale = await front.open_sale(product_id)
    await front.order(user_id=1, product_id=product_id)
    status, document, _ = await front.request("GET", "/v1/status")
    assert status == 200
    assert document["role"] == "front"
    assert document["ready"] is True
    assert document["checks"] == {"redis": "ok", "kafka": "ok", "product": "ok", "circuits": "ok"}
    (mine,) = [entry for entry in document["ledger"] if entry["product_id"] == product_id]
    assert (mine["sale_id"], mine["entries"], mine["parked"]) == (sale["sale_id"], 1, 0)
    async with front.http.get("/healthz") as response:
        assert response.status == 200
    async with front.http.get("/metrics") as response:
        text = await response.text()
    assert 'seckill_front_orders_total{api="http",code="ACCEPTED"}' in text
    assert "seckill_front_admission_batch_orders_count" in text


async def test_the_description_names_orders_and_problems(front: RunningFront) -> None:
    """The OpenAPI document has the order endpoint with its request, replies and problems, and every $ref resolves."""
    _, document, _ = await front.request("GET", "/openapi.json")
    operation = document["paths"]["/v1/orders"]["post"]
    assert {"200", "202", "400", "404", "409", "413", "422", "503"} <= operation["responses"].keys()
    assert document["components"]["securitySchemes"]["operatorToken"]["scheme"] == "bearer"
    assert document["paths"]["/v1/sales"]["post"]["security"] == [{"operatorToken": []}]
    assert "security" not in document["paths"]["/v1/sales"]["get"]
    schemas = document["components"]["schemas"]
    assert schemas["OrderRequest"]["required"] == ["user_id", "product_id"]
    assert "SOLD_OUT" in schemas["Problem"]["properties"]["code"]["enum"]
    text = json.dumps(document)
    assert "HTTPValidationError" not in text
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= schemas.keys()


async def test_leaving_finishes_what_is_under_way(front_redis: Backend, product_address: str) -> None:
    """While it ends, a front answers the orders that it holds; new ones are not taken."""
    product_id = secrets.randbelow(2**60) + 1
    publisher = MemoryPublisher(released=asyncio.Event())
    leave = asyncio.Event()
    answers: list[tuple[int, dict[str, Any]]] = []
    async with aiohttp.ClientSession() as http:
        async with running_front(front_redis, product_address, publisher=publisher) as front:
            await front.open_sale(product_id)
            url = f"http://{front.served.http_address}/v1/orders"

            async def place(user_id: int) -> None:
                async with http.post(url, json={"user_id": user_id, "product_id": product_id}) as response:
                    answers.append((response.status, await response.json(content_type=None)))
                leave.set()

            held = [asyncio.create_task(place(user)) for user in range(1, 4)]
            while len(await front.ledger.entries(product_id)) < 3:
                await asyncio.sleep(0.01)
            assert publisher.released is not None
            asyncio.get_running_loop().call_later(0.2, publisher.released.set)
        await asyncio.gather(*held)
        with pytest.raises(aiohttp.ClientConnectorError):
            await place(9)
    assert [status for status, _ in answers] == [202] * 3
    assert sorted(document["order_id"] for _, document in answers) == sorted(publisher.ids())
