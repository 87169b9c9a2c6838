"""The saga's calls of product and order over gRPC, under both of their names: action, compensation, and the barrier."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import SecretStr
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from seckill.domain.order import derived_order_id
from seckill.dtm.database import create_engine
from seckill.dtm.protocol import BranchContext
from seckill.order.service import serve_order
from seckill.order.tables import orders
from seckill.product.service import serve_product
from seckill.product.tables import product, stock_reservation
from seckill.settings import OrderSettings, ProductSettings
from seckill.wire import (
    order_pb2,
    order_pb2_grpc,
    orderclient_pb2,
    orderclient_pb2_grpc,
    product_pb2,
    product_pb2_grpc,
    productclient_pb2,
    productclient_pb2_grpc,
)
from tests.support.sides import Side
from tests.support.statuses import Fails

PRODUCT, BUYER = 7, 42
STOCK = 5
CREATED_MS = 9_000

ABORTED = grpc.StatusCode.ABORTED
INVALID = grpc.StatusCode.INVALID_ARGUMENT

Call = Callable[[Any, BranchContext], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Service:
    """A running service under one of its names: its two calls, a request that is right, and its database."""

    act: Call
    compensate: Call
    request: Callable[..., Any]
    database: AsyncEngine

    async def barrier(self) -> list[tuple[str, str]]:
        """Operation and who wrote its row, in the order of the rows."""
        return [(str(op), str(reason)) for op, reason in await self.rows("SELECT op, reason FROM barrier ORDER BY id")]

    async def rows(self, statement: str) -> list[tuple[object, ...]]:
        async with self.database.connect() as connection:
            return [tuple(row) for row in await connection.execute(text(statement))]


def action(gid: str = "g1", branch_id: str = "01") -> BranchContext:
    return BranchContext(gid, "saga", branch_id, "action")


def compensation(gid: str = "g1", branch_id: str = "01") -> BranchContext:
    return BranchContext(gid, "saga", branch_id, "compensate")


def calling(method: Callable[..., Awaitable[Any]]) -> Call:
    return lambda request, context: method(request, metadata=context.metadata())


@asynccontextmanager
async def database(url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(url, pool_size=1, lock_wait_s=1)
    try:
        yield engine
    finally:
        await engine.dispose()


@pytest.fixture(params=["product.Product", "productclient.Product"])
async def stock(request: pytest.FixtureRequest, side: Side, tmp_path: Path) -> AsyncIterator[Service]:
    """The product service, with one product of STOCK units on no sale."""
    url = await side.database("product", tmp_path)
    settings = ProductSettings(grpc="127.0.0.1:0", database_url=SecretStr(url), lock_wait_s=1)
    async with (
        serve_product(settings) as server,
        grpc.aio.insecure_channel(server.address) as channel,
        database(url) as engine,
    ):
        async with engine.begin() as connection:
            values = {"product_id": PRODUCT, "name": "lamp", "stock": STOCK, "created_at_ms": CREATED_MS}
            await connection.execute(insert(product).values(values))
        if request.param == "product.Product":
            stub: Any = product_pb2_grpc.ProductStub(channel)
            message: Any = product_pb2.DecrStockRequest
        else:
            stub, message = productclient_pb2_grpc.ProductStub(channel), productclient_pb2.DecrStockRequest
        yield Service(calling(stub.DecrStock), calling(stub.DecrStockRevert), message, engine)


@pytest.fixture(params=["order.Order", "orderclient.Order"])
async def order(request: pytest.FixtureRequest, side: Side, tmp_path: Path) -> AsyncIterator[Service]:
    """The order service, without any order."""
    url = await side.database("order", tmp_path)
    settings = OrderSettings(grpc="127.0.0.1:0", database_url=SecretStr(url), lock_wait_s=1)

    def add(user_id: int = BUYER) -> order_pb2.AddOrderReq:
        return order_pb2.AddOrderReq(userid=user_id, productid=PRODUCT, quantity=3, postage=8, receiveAddressId=77)

    def create(user_id: int = BUYER) -> orderclient_pb2.CreateRequest:
        return orderclient_pb2.CreateRequest(Uid=user_id, Pid=PRODUCT, Amount=1_250, Status=0)

    async with (
        serve_order(settings) as server,
        grpc.aio.insecure_channel(server.address) as channel,
        database(url) as engine,
    ):
        if request.param == "order.Order":
            stub = order_pb2_grpc.OrderStub(channel)
            yield Service(calling(stub.CreateOrderDTM), calling(stub.CreateOrderDTMRevert), add, engine)
        else:
            alias = orderclient_pb2_grpc.OrderStub(channel)
            yield Service(calling(alias.Create), calling(alias.CreateRevert), create, engine)


# --- product -----------------------------------------------------------------------------------------------------


async def left(stock: Service) -> int:
    ((units,),) = await stock.rows(f"SELECT stock FROM product WHERE product_id = {PRODUCT}")
    return int(str(units))


async def states(stock: Service) -> list[tuple[str, int, int]]:
    """gid, units and state of every reservation."""
    columns = (stock_reservation.c.gid, stock_reservation.c.quantity, stock_reservation.c.state)
    async with stock.database.connect() as connection:
        return [
            (gid, units, state)
            for gid, units, state in await connection.execute(select(*columns).order_by("gid", "branch_id"))
        ]


SOLD, RELEASED = 2, 3


async def test_an_action_sells_once(stock: Service) -> None:
    """`num` units leave the product's own stock, once however often the action comes, and its row says when."""
    for _ in range(3):
        await stock.act(stock.request(id=PRODUCT, num=2), action())
    assert await left(stock) == STOCK - 2
    assert await states(stock) == [("g1", 2, SOLD)]
    ((changed_ms,),) = await stock.rows("SELECT updated_at_ms FROM product")
    assert int(str(changed_ms)) > CREATED_MS


async def test_a_compensation_gives_back_what_its_action_took(stock: Service) -> None:
    """Whatever its payload says, and once: the units of this gid and branch, and of no other."""
    for gid, branch_id, units in (("g1", "01", 2), ("g1", "02", 1), ("g2", "01", 1)):
        await stock.act(stock.request(id=PRODUCT, num=units), action(gid, branch_id))
    assert await left(stock) == STOCK - 4
    for _ in range(2):
        await stock.compensate(stock.request(id=PRODUCT + 1, num=1_000), compensation())
    assert await left(stock) == STOCK - 2
    assert await states(stock) == [("g1", 2, RELEASED), ("g1", 1, SOLD), ("g2", 1, SOLD)]


@pytest.mark.parametrize(("num", "product_id"), [(STOCK + 1, PRODUCT), (1, PRODUCT + 1)])
async def test_a_short_stock_refuses_and_keeps_nothing(stock: Service, num: int, product_id: int) -> None:
    """Too few units and an unknown product are business failures; the compensation that follows is empty."""
    with Fails(ABORTED, str(product_id)):
        await stock.act(stock.request(id=product_id, num=num), action())
    assert await stock.barrier() == []
    await stock.compensate(stock.request(id=product_id, num=num), compensation())
    assert await left(stock) == STOCK
    assert await stock.barrier() == [("action", "compensate"), ("compensate", "compensate")]


async def test_an_empty_compensation_keeps_the_action_from_running(stock: Service) -> None:
    """A compensation without its action changes no units, and the action that comes late is refused for good."""
    await stock.compensate(stock.request(id=PRODUCT, num=2), compensation())
    for _ in range(2):
        with Fails(ABORTED, "compensated before"):
            await stock.act(stock.request(id=PRODUCT, num=2), action())
    assert await left(stock) == STOCK
    assert await states(stock) == []
    assert await stock.barrier() == [("action", "compensate"), ("compensate", "compensate")]


async def test_a_repeated_action_after_its_compensation_does_nothing(stock: Service) -> None:
    """An action that ran, was taken back, and comes once more is not answered as if the units were sold."""
    request = stock.request(id=PRODUCT, num=2)
    await stock.act(request, action())
    await stock.compensate(request, compensation())
    with Fails(ABORTED, "compensated before"):
        await stock.act(request, action())
    assert await left(stock) == STOCK


async def test_the_last_units_go_to_one(stock: Service) -> None:
    """Many actions at once never sell more than there is."""
    answers = await asyncio.gather(
        *(stock.act(stock.request(id=PRODUCT, num=2), action(f"g{n}")) for n in range(8)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert [error.code() for error in refused] == [ABORTED] * 6
    assert await left(stock) == STOCK - 4


async def test_action_and_compensation_at_once_leave_nothing_behind(stock: Service) -> None:
    """Whichever comes first: afterwards the units are all there."""
    request = stock.request(id=PRODUCT, num=1)
    for n in range(10):
        gid = f"g{n}"
        await asyncio.gather(
            stock.act(request, action(gid)), stock.compensate(request, compensation(gid)), return_exceptions=True
        )
    assert await left(stock) == STOCK
    assert all(state == RELEASED for _, _, state in await states(stock))


@pytest.mark.parametrize(("product_id", "num"), [(0, 1), (-1, 1), (PRODUCT, 0), (PRODUCT, -2)])
async def test_an_action_that_is_invalid_is_refused(stock: Service, product_id: int, num: int) -> None:
    """ABORTED, not INVALID_ARGUMENT, which a coordinator would repeat for ever."""
    with Fails(ABORTED, "id" if product_id < 1 else "num"):
        await stock.act(stock.request(id=product_id, num=num), action())
    assert await left(stock) == STOCK


# --- order -------------------------------------------------------------------------------------------------------


async def statuses(order: Service) -> list[tuple[str, int]]:
    """gid and status of every order."""
    async with order.database.connect() as connection:
        found = await connection.execute(select(orders.c.gid, orders.c.status).order_by(orders.c.gid))
        return [(gid, status) for gid, status in found]


CONFIRMED, CLOSED = 1, 2


async def test_an_action_makes_one_order(order: Service) -> None:
    """One order under the key of gid and branch, however often the action comes."""
    for _ in range(3):
        await order.act(order.request(), action())
    (row,) = await order.rows("SELECT product_id, user_id, sale_id, status, gid, branch_id FROM orders")
    assert row == (PRODUCT, BUYER, 0, CONFIRMED, "g1", "01")
    ((key,),) = await order.rows("SELECT hex(order_id) FROM orders")
    assert derived_order_id(PRODUCT, "g1", "01", at_ms=0) == f"{PRODUCT}-{str(key).lower()}"


async def test_the_callers_fields_are_kept(order: Service) -> None:
    """Quantity, postage and address of `CreateOrderDTM`; one unit and its price of `Create`."""
    await order.act(order.request(), action())
    rows = await order.rows("SELECT quantity, price_cents, postage, receive_address_id FROM orders")
    assert rows in ([(3, 0, 8, 77)], [(1, 1_250, None, None)])
    assert (rows == [(3, 0, 8, 77)]) == isinstance(order.request(), order_pb2.AddOrderReq)


async def test_a_compensation_closes_the_order_of_its_own_gid(order: Service) -> None:
    """Of a buyer's three orders the first is compensated, not the newest."""
    for gid in ("g1", "g2", "g3"):
        await order.act(order.request(), action(gid))
    for _ in range(2):
        await order.compensate(order.request(), compensation("g1"))
    assert await statuses(order) == [("g1", CLOSED), ("g2", CONFIRMED), ("g3", CONFIRMED)]


async def test_an_empty_compensation_closes_nothing(order: Service) -> None:
    """It changes no order of the buyer's, is seen in the barrier's table, and keeps its action from running."""
    await order.act(order.request(), action("earlier"))
    await order.compensate(order.request(), compensation())
    with Fails(ABORTED, "compensated before"):
        await order.act(order.request(), action())
    assert await statuses(order) == [("earlier", CONFIRMED)]
    assert await order.barrier() == [("action", "action"), ("action", "compensate"), ("compensate", "compensate")]


async def test_an_order_of_nobody_is_refused(order: Service) -> None:
    """A field out of its range is a business failure; a coordinator would repeat anything else for ever."""
    with Fails(ABORTED):
        await order.act(order.request(user_id=0), action())
    assert await statuses(order) == []


# --- who may call ------------------------------------------------------------------------------------------------


async def test_another_patterns_call_is_not_served(stock: Service, order: Service) -> None:
    """A saga's methods serve a saga's operations: what is none is refused and changes nothing."""
    for service in (stock, order):
        request = service.request(id=PRODUCT, num=1) if service is stock else service.request()
        for context in (BranchContext("g1", "tcc", "01", "try"), BranchContext("g1", "tcc", "01", "action")):
            with Fails(INVALID, "dtm-trans_type"):
                await service.act(request, context)
        with Fails(INVALID, "dtm-op"):
            await service.act(request, compensation())
        with Fails(INVALID, "dtm-op"):
            await service.compensate(request, action())
        with Fails(INVALID, "dtm-gid"):
            await service.act(request, BranchContext("", "saga", "01", "action"))
        assert await service.barrier() == []


async def test_a_gid_of_another_pattern_is_refused(stock: Service) -> None:
    """Units that a TCC branch has frozen under the same gid and branch stay as they are."""
    values = {
        "order_id": bytes.fromhex(derived_order_id(PRODUCT, "g1", "01", at_ms=0).rpartition("-")[2]),
        "product_id": PRODUCT, "sale_id": 0, "user_id": 0, "quantity": 1, "state": 1, "reason": "", "gid": "g1",
        "branch_id": "01", "admitted_at_ms": 0, "created_at_ms": 1, "updated_at_ms": 1,
    }  # fmt: skip
    async with stock.database.begin() as connection:
        await connection.execute(insert(stock_reservation).values(values))
    with Fails(ABORTED, "another pattern"):
        await stock.act(stock.request(id=PRODUCT, num=1), action())
    await stock.compensate(stock.request(id=PRODUCT, num=1), compensation())
    assert await left(stock) == STOCK
    assert await states(stock) == [("g1", 1, 1)]
