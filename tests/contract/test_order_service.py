"""The order service over gRPC: the order branch, and what has been ordered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import grpc
import pytest
from asyncmy.cursors import RE_INSERT_VALUES
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr
from sqlalchemy import update
from sqlalchemy.dialects.mysql import asyncmy

from seckill.domain.order import derived_order_id, order_id_from_key
from seckill.dtm.database import create_engine
from seckill.order import tables
from seckill.order.branches import _upsert
from seckill.order.messages import REFUSED_MAX
from seckill.order.service import serve_order
from seckill.order.types import OrderState
from seckill.settings import OrderSettings
from seckill.wire import order_pb2 as pb
from seckill.wire import order_pb2_grpc
from tests.support.sides import Side
from tests.support.statuses import Fails

PRODUCT, SALE = 7, 3

INVALID = grpc.StatusCode.INVALID_ARGUMENT
ABORTED = grpc.StatusCode.ABORTED
CONTRADICTS = grpc.StatusCode.FAILED_PRECONDITION
NOT_FOUND = grpc.StatusCode.NOT_FOUND


@pytest.fixture
async def database_url(side: Side, tmp_path: Path) -> str:
    return await side.database("order", tmp_path)


@pytest.fixture
def settings(database_url: str) -> OrderSettings:
    return OrderSettings(grpc="127.0.0.1:0", database_url=SecretStr(database_url), lock_wait_s=1)


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def order_id(number: int) -> str:
    return order_id_from_key(PRODUCT, key(number))


def item(number: int, *, user_id: int = 9, quantity: int = 1) -> pb.Item:
    return pb.Item(order_id=key(number), user_id=user_id, quantity=quantity, admitted_at_ms=5)


def metadata(op: str, gid: str = "g1", branch_id: str = "02") -> tuple[tuple[str, str], ...]:
    return (("dtm-gid", gid), ("dtm-trans_type", "tcc"), ("dtm-branch_id", branch_id), ("dtm-op", op))


def group(*items: pb.Item) -> pb.CreateOrderRequest:
    return pb.CreateOrderRequest(pid=PRODUCT, sale_id=SALE, price_cents=250, items=items)


class Client:
    """The stub, and a branch's metadata in few words."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.order = order_pb2_grpc.OrderStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    async def check(self, request: pb.CreateOrderRequest, gid: str = "g1") -> pb.CreateOrderResponse:
        return await self.order.CreateOrderCheck(request, metadata=metadata("try", gid))

    async def confirm(self, request: pb.CreateOrderRequest, gid: str = "g1") -> None:
        await self.order.CreateOrder(request, metadata=metadata("confirm", gid))

    async def cancel(self, request: pb.CreateOrderRequest, gid: str = "g1") -> None:
        await self.order.RollbackOrder(request, metadata=metadata("cancel", gid))

    async def create(self, *items: pb.Item, gid: str = "g1") -> None:
        await self.check(group(*items), gid)
        await self.confirm(group(*items), gid)

    async def find(self, number: int) -> pb.OrderItem:
        return await self.order.GetOrderById(pb.GetOrderByIdRequest(id=order_id(number)))

    async def absent(self, *numbers: int) -> bool:
        for number in numbers:
            with Fails(NOT_FOUND):
                await self.find(number)
        return True


@pytest.fixture
async def client(settings: OrderSettings) -> AsyncIterator[Client]:
    async with serve_order(settings) as server, grpc.aio.insecure_channel(server.address) as channel:
        await server.check()
        yield Client(channel)


class Refuses(Fails):
    """Expects the refusal of a Try."""

    def refused(self) -> Mapping[bytes, str]:
        message = pb.CreateOrderResponse.FromString(self.trailing()["seckill-refused-bin"])
        return {refusal.order_id: refusal.reason for refusal in message.refused}


# --- Try, Confirm, Cancel --------------------------------------------------------------------------------------


async def test_confirm_writes_the_orders(client: Client) -> None:
    """Nothing is there after Try; after Confirm every order of the payload is, with its gid."""
    await client.check(group(item(1), item(2, user_id=8, quantity=3)))
    assert await client.absent(1, 2)
    await client.confirm(group(item(1), item(2, user_id=8, quantity=3)))
    found = await client.find(2)
    assert found.create_time > 0
    found.ClearField("create_time")
    assert found == pb.OrderItem(
        id=order_id(2), user_id=8, product_id=PRODUCT, quantity=3, sale_id=SALE, price_cents=250,
        status="confirmed", gid="g1",
    )  # fmt: skip


async def test_repeats_change_nothing(client: Client) -> None:
    """Try, Confirm and Cancel may come many times."""
    for _ in range(2):
        await client.check(group(item(1)))
    for _ in range(2):
        await client.confirm(group(item(1)))
    before = await client.find(1)
    await client.check(group(item(2)), "g2")
    for _ in range(2):
        await client.cancel(group(item(2)), "g2")
    assert await client.find(1) == before
    assert await client.absent(2)


async def test_try_after_cancel(client: Client) -> None:
    """A Try arriving after its Cancel is refused, first or repeated, and names no order."""
    await client.cancel(group(item(1)))
    with Fails(ABORTED, "cancelled") as failed:
        await client.check(group(item(1)))
    assert "seckill-refused-bin" not in failed.trailing()
    await client.check(group(item(1)), "g2")
    await client.cancel(group(item(1)), "g2")
    with Fails(ABORTED, "cancelled"):
        await client.check(group(item(1)), "g2")


async def test_confirm_without_try(client: Client) -> None:
    """What no Try has checked is not written; after the Try it goes through."""
    with Fails(CONTRADICTS, "without a try"):
        await client.confirm(group(item(1)))
    assert await client.absent(1)
    await client.create(item(1))
    assert (await client.find(1)).status == "confirmed"


# --- refusals of Try -------------------------------------------------------------------------------------------


async def test_try_takes_all_or_none(client: Client) -> None:
    """A refusal names every order that Confirm could not write, keeps nothing, and is the same when repeated."""
    await client.create(item(1), item(2))
    wanted = group(item(1), item(2, quantity=2), item(3, quantity=-1), item(4, user_id=0), item(5))
    for _ in range(2):
        with Refuses(ABORTED, "4 of 5") as failed:
            await client.check(wanted, "g2")
        assert failed.refused() == {
            key(1): "ORDER_CONFLICT", key(2): "ORDER_CONFLICT", key(3): "INVALID_ORDER", key(4): "INVALID_ORDER",
        }  # fmt: skip
    with Fails(CONTRADICTS):
        await client.confirm(wanted, "g2")
    await client.cancel(wanted, "g2")
    assert await client.absent(5)
    await client.create(item(5), gid="g3")


async def test_a_refusal_of_many_still_arrives(client: Client) -> None:
    """However many orders are refused, the answer fits into gRPC's metadata: the rest comes with the next try."""
    items = [item(number) for number in range(1, 501)]
    await client.create(*items)
    with Refuses(ABORTED, "500 of 500") as failed:
        await client.check(group(*items), "g2")
    assert len(failed.refused()) == REFUSED_MAX


async def test_the_same_gid_may_check_what_it_confirmed(client: Client) -> None:
    """Another branch of the gid that confirmed an order finds no conflict in it."""
    await client.create(item(1))
    await client.order.CreateOrderCheck(group(item(1)), metadata=metadata("try", "g1", branch_id="03"))


async def test_a_confirmed_order_is_never_overwritten(client: Client) -> None:
    """When two gids have checked the same order, the first Confirm has it; the second may not fail, nor change it."""
    for gid, quantity in (("g1", 1), ("g2", 2)):
        await client.check(group(item(1, quantity=quantity), item(int(gid[1:]) + 10)), gid)
    for gid, quantity in (("g1", 1), ("g2", 2)):
        await client.confirm(group(item(1, quantity=quantity), item(int(gid[1:]) + 10)), gid)
    assert ((await client.find(1)).gid, (await client.find(1)).quantity) == ("g1", 1)
    assert [(await client.find(number)).gid for number in (11, 12)] == ["g1", "g2"]


async def test_a_closed_order_may_be_written_again(client: Client, database_url: str) -> None:
    """A closed row is taken over by the next gid that confirms the same order."""
    await client.create(item(1))
    engine = create_engine(database_url, pool_size=1, lock_wait_s=1)
    async with engine.begin() as connection:
        await connection.execute(update(tables.orders).values(status=OrderState.CLOSED.value))
    await engine.dispose()
    with Fails(ABORTED):
        await client.check(group(item(1, quantity=2)), "g2")
    await client.create(item(1), gid="g3")
    assert ((await client.find(1)).gid, (await client.find(1)).status) == ("g3", "confirmed")


async def test_cancel_closes_only_its_own(client: Client) -> None:
    """Cancel touches no order of another gid, whatever the payload names, whether its own Try has run or not."""
    await client.create(item(1))
    await client.cancel(group(item(1)), "g2")
    await client.check(group(item(2)), "g3")
    await client.cancel(group(item(1), item(2)), "g3")
    assert (await client.find(1)).status == "confirmed"


async def test_a_group_of_five_hundred(client: Client) -> None:
    """A full group is written whole, by twenty Confirms at once as by one."""
    items = [item(number, user_id=number) for number in range(1, 501)]
    await client.check(group(*items))
    await asyncio.gather(*(client.confirm(group(*items)) for _ in range(20)))
    assert [(await client.find(number)).user_id for number in (1, 250, 500)] == [1, 250, 500]


# --- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["dtm-gid", "dtm-trans_type", "dtm-branch_id", "dtm-op"])
@pytest.mark.parametrize("method", ["CreateOrderCheck", "CreateOrder", "RollbackOrder"])
async def test_missing_metadata_is_named(client: Client, method: str, missing: str) -> None:
    """A branch call without its identity is INVALID_ARGUMENT and names what is missing."""
    op = {"CreateOrderCheck": "try", "CreateOrder": "confirm", "RollbackOrder": "cancel"}[method]
    rest = tuple(pair for pair in metadata(op) if pair[0] != missing)
    with Fails(INVALID, missing):
        await getattr(client.order, method)(group(item(1)), metadata=rest)


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("pid", pb.CreateOrderRequest(sale_id=1, items=[item(1)])),
        ("uid", pb.CreateOrderRequest(pid=1)),
        ("sale_id", pb.CreateOrderRequest(pid=1, items=[item(1)])),
        ("price_cents", pb.CreateOrderRequest(pid=1, sale_id=1, price_cents=-1, items=[item(1)])),
        ("items[0].order_id", group(pb.Item(order_id=b"x", user_id=1, quantity=1))),
        ("items[1].order_id", group(item(1), item(1, quantity=2))),
        ("items", group(*(item(number) for number in range(1, 1_002)))),
    ],
)
async def test_wrong_fields_are_named(client: Client, field: str, request_: pb.CreateOrderRequest) -> None:
    """A request that makes no sense is INVALID_ARGUMENT and names the field; an id twice with other contents is one."""
    with Fails(INVALID, field):
        await client.check(request_)


async def test_an_exact_repeat_in_a_group_counts_once(client: Client) -> None:
    """The same order twice in one group is one order."""
    await client.create(item(1), item(1))
    assert (await client.find(1)).quantity == 1


async def test_original_fields_make_one_order(client: Client) -> None:
    """A caller that knows only uid and pid gets one order of one unit under an id that gid and branch give."""
    request = pb.CreateOrderRequest(uid=9, pid=PRODUCT)
    await client.check(request)
    for _ in range(2):
        await client.confirm(request)
    found = await client.order.GetOrderById(pb.GetOrderByIdRequest(id=derived_order_id(PRODUCT, "g1", "02", at_ms=0)))
    assert (found.user_id, found.quantity, found.sale_id, found.status) == (9, 1, 0, "confirmed")
    listed = await client.order.Orders(pb.OrdersRequest(user_id=9))
    assert len(listed.orders) == 1


# --- reading ---------------------------------------------------------------------------------------------------


async def test_orders_page_by_page(client: Client) -> None:
    """A buyer's orders come newest first, without gaps or repeats, and nobody else's."""
    for number, gid in enumerate(("a", "b", "c"), 1):
        await client.create(item(10 - number), item(20 - number), item(number, user_id=8), gid=gid)
        await asyncio.sleep(0.002)
    seen: list[str] = []
    while True:
        page = await client.order.Orders(pb.OrdersRequest(user_id=9, limit=4, before=seen[-1] if seen else ""))
        if not page.orders:
            break
        assert len(page.orders) <= 4
        seen += [order.id for order in page.orders]
    assert seen == [order_id(number) for number in (17, 7, 18, 8, 19, 9)]


@pytest.mark.parametrize(
    ("code", "request_"),
    [
        (INVALID, pb.OrdersRequest(user_id=0)),
        (INVALID, pb.OrdersRequest(user_id=1, limit=201)),
        (INVALID, pb.OrdersRequest(user_id=1, limit=-1)),
        (INVALID, pb.OrdersRequest(user_id=1, before="nonsense")),
        (NOT_FOUND, pb.OrdersRequest(user_id=1, before=order_id(1))),
    ],
)
async def test_wrong_pages(client: Client, code: grpc.StatusCode, request_: pb.OrdersRequest) -> None:
    """A page that cannot be meant is refused."""
    with Fails(code):
        await client.order.Orders(request_)


@pytest.mark.parametrize("text", ["", "7-", "x", "0-" + "0" * 32, "7-" + "A" * 32])
async def test_wrong_order_ids(client: Client, text: str) -> None:
    """What is no order id is INVALID_ARGUMENT, not NOT_FOUND."""
    with Fails(INVALID, "id"):
        await client.order.GetOrderById(pb.GetOrderByIdRequest(id=text))


async def test_an_order_of_another_product(client: Client) -> None:
    """The same UUID under another product is another order."""
    await client.create(item(1))
    with Fails(NOT_FOUND):
        await client.order.GetOrderById(pb.GetOrderByIdRequest(id=order_id_from_key(PRODUCT + 1, key(1))))


async def test_health(client: Client) -> None:
    """The health service answers for the server and its service."""
    for name in ("", "order.Order"):
        reply = await client.health.Check(health_pb2.HealthCheckRequest(service=name))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


def columns_of(statement: str) -> Sequence[str]:
    return [part.split(" = ")[0].strip() for part in statement.partition("UPDATE")[2].split(", ")]


def test_mysql_upsert() -> None:
    """One statement for many rows; MySQL assigns from left to right, so the column that decides comes last."""
    statement = str(_upsert("mysql").compile(dialect=asyncmy.dialect()))
    joined = RE_INSERT_VALUES.match(statement)  # how the driver finds the part that it repeats for each row
    assert joined is not None
    assert joined[2].count("%s") == len(tables.orders.columns)
    assert "%" not in joined[3]
    assert columns_of(statement)[-1] == "status"
    assert "order_id" not in columns_of(statement)
