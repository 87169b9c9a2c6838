"""The second article's saga, under our names and under its own: success and both of its failures. Then the same of an
order of a sale. Each through a real DTM and through our coordinator.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio

from seckill.domain.order import Sale
from seckill.dtm import DtmClient, Refused, Saga, Step
from seckill.wire import order_pb2, product_pb2, product_pb2_grpc
from seckill.wiring import open_channel, open_dtm
from tests.support.backbone import Backbone, open_backbone
from tests.support.originals import CREATED_MS, OURS, QUICK, THEIRS, WAITING, SagaNames, Shop, saga_of
from tests.support.relays import Relay, relay_to
from tests.support.sides import Side

pytestmark = pytest.mark.asyncio(loop_scope="module")

BUYER = 42
CONFIRMED, CLOSED = 1, 2
SOLD, RELEASED, REJECTED = 2, 3, 4
DONE_BY_ACTION = ("action", "action")
TAKEN_BACK = [DONE_BY_ACTION, ("compensate", "compensate")]
EMPTY = [("action", "compensate"), ("compensate", "compensate")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backbone(side: Side, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Backbone]:
    """For all tests of a side: each has a product, gids and orders of its own."""
    folder: Path = tmp_path_factory.mktemp("saga")
    async with open_backbone(side, folder) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def client(backbone: Backbone) -> AsyncIterator[DtmClient]:
    async with open_dtm(backbone.settings) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def relay(backbone: Backbone) -> AsyncIterator[Relay]:
    """In front of the product service."""
    async with relay_to(backbone.settings.product.grpc) as opened:
        yield opened


@pytest.fixture(params=[OURS, THEIRS], ids=["ours", "theirs"])
def names(request: pytest.FixtureRequest) -> SagaNames:
    found: SagaNames = request.param
    return found


async def operations(shop: Shop, service: str, gid: str) -> list[tuple[object, ...]]:
    return [row[1:] for row in await shop.barrier(service, gid)]


async def ended(client: DtmClient, gid: str, *, within_s: float = 40) -> str:
    """The saga's status once its coordinator is done with it."""
    async with asyncio.timeout(within_s):
        while True:
            found = await client.query(gid)
            if found is not None and found.status in ("succeed", "failed"):
                return found.status
            await asyncio.sleep(0.2)


async def test_success(backbone: Backbone, client: DtmClient, names: SagaNames) -> None:
    """The order is made and the stock taken; both branches have one action in their barrier."""
    shop = await Shop.open(backbone, stock=5)
    saga = await saga_of(client, shop, names=names, user_id=BUYER, units=2, quantity=2, amount=1_250)
    await saga.submit()
    assert await ended(client, saga.gid) == "succeed"
    assert await shop.stock() == 3
    assert await shop.orders() == [(BUYER, 1 if names is THEIRS else 2, CONFIRMED)]
    for service in ("order", "product"):
        assert await operations(shop, service, saga.gid) == [DONE_BY_ACTION]


async def test_the_stock_is_short(backbone: Backbone, client: DtmClient, relay: Relay, names: SagaNames) -> None:
    """The order that was made is closed; the stock is not touched, and its compensation is an empty one."""
    shop = await Shop.open(backbone, stock=1)
    saga = await saga_of(client, shop, names=names, user_id=BUYER, units=2, quantity=1, product_address=relay.address)
    with pytest.raises(Refused):
        await saga.submit()
    assert await ended(client, saga.gid) == "failed"
    assert relay.failed == [("DecrStock", grpc.StatusCode.ABORTED)]
    assert relay.calls == ["DecrStock", "DecrStockRevert"]
    assert (await shop.stock(), await shop.changed_ms()) == (1, CREATED_MS)
    assert await shop.orders() == [(BUYER, 1, CLOSED)]
    assert await operations(shop, "order", saga.gid) == TAKEN_BACK
    assert await operations(shop, "product", saga.gid) == EMPTY


async def test_a_failure_after_the_stock_was_taken(
    backbone: Backbone, client: DtmClient, relay: Relay, names: SagaNames
) -> None:
    """The action has done its work and fails outside the barrier: the units come back, which the row's time shows."""
    shop = await Shop.open(backbone, stock=100)
    relay.answers["DecrStock"] = [grpc.StatusCode.ABORTED]
    giving_back = relay.held["DecrStockRevert"] = asyncio.Event()
    saga = await saga_of(client, shop, names=names, user_id=BUYER, units=3, quantity=1, product_address=relay.address)
    submitting = asyncio.create_task(saga.submit())
    await relay.until_called("DecrStockRevert")
    taken_ms = await shop.changed_ms()
    assert (await shop.stock(), taken_ms > CREATED_MS) == (97, True)
    giving_back.set()
    with pytest.raises(Refused):
        await submitting
    assert await ended(client, saga.gid) == "failed"
    assert relay.failed == []
    assert relay.calls == ["DecrStock", "DecrStockRevert"]
    assert await shop.stock() == 100
    assert await shop.changed_ms() > taken_ms
    assert await shop.orders() == [(BUYER, 1, CLOSED)]
    for service in ("order", "product"):
        assert await operations(shop, service, saga.gid) == TAKEN_BACK


async def test_an_action_whose_answer_is_lost_takes_effect_once(
    backbone: Backbone, client: DtmClient, relay: Relay, names: SagaNames
) -> None:
    """A coordinator repeats what it has no answer to: the units are taken once, the saga succeeds.

    To who waits for the result it says ABORTED, though nothing is decided yet: only its query tells.
    """
    shop = await Shop.open(backbone, stock=5)
    relay.answers["DecrStock"] = [grpc.StatusCode.UNAVAILABLE]
    saga = await saga_of(client, shop, names=names, user_id=BUYER, units=2, quantity=1, product_address=relay.address)
    with pytest.raises(Refused):
        await saga.submit()
    assert await ended(client, saga.gid) == "succeed"
    assert relay.calls == ["DecrStock", "DecrStock"]
    assert await shop.stock() == 3
    assert await operations(shop, "product", saga.gid) == [DONE_BY_ACTION]


async def test_a_compensation_whose_answer_is_lost_takes_effect_once(
    backbone: Backbone, client: DtmClient, relay: Relay, names: SagaNames
) -> None:
    """Compensations are repeated too: the units come back once."""
    shop = await Shop.open(backbone, stock=5)
    relay.answers |= {"DecrStock": [grpc.StatusCode.ABORTED], "DecrStockRevert": [grpc.StatusCode.UNAVAILABLE]}
    saga = await saga_of(
        client, shop, names=names, user_id=BUYER, units=2, quantity=1, product_address=relay.address, options=QUICK
    )
    await saga.submit()
    assert await ended(client, saga.gid) == "failed"
    assert relay.calls == ["DecrStock", "DecrStockRevert", "DecrStockRevert"]
    assert await shop.stock() == 5
    assert await shop.orders() == [(BUYER, 1, CLOSED)]


async def test_a_request_that_makes_no_sense_ends_the_saga(
    backbone: Backbone, client: DtmClient, names: SagaNames
) -> None:
    """An action that nobody can carry out is refused, so that no coordinator repeats it for ever."""
    shop = await Shop.open(backbone, stock=5)
    saga = await saga_of(client, shop, names=names, user_id=BUYER, units=0, quantity=1)
    with pytest.raises(Refused):
        await saga.submit()
    assert await ended(client, saga.gid) == "failed"
    assert await shop.orders() == [(BUYER, 1, CLOSED)]


async def test_a_saga_is_submitted_once(backbone: Backbone, client: DtmClient) -> None:
    """A second submit is a mistake of the program, and so is a saga without a step."""
    shop = await Shop.open(backbone, stock=5)
    saga = await saga_of(client, shop, names=OURS, user_id=BUYER, units=1, quantity=1)
    await saga.submit()
    with pytest.raises(RuntimeError, match=saga.gid):
        await saga.submit()
    with pytest.raises(ValueError, match="step"):
        await Saga(client, await client.new_gid()).submit()
    assert await shop.stock() == 4


# --- an order of a sale --------------------------------------------------------------------------------------------


async def saga_on(client: DtmClient, backbone: Backbone, sale: Sale, *, product_address: str) -> Saga:
    """The same saga of one order of the sale, of two units. Not submitted yet."""
    wanted = product_pb2.Item(order_id=uuid4().bytes, user_id=BUYER, quantity=2, admitted_at_ms=5)
    creating = f"{backbone.settings.order.grpc}/order.Order/CreateOrderDTM"
    taking = f"{product_address}/product.Product/DecrStock"
    item = order_pb2.Item.FromString(wanted.SerializeToString())
    order = order_pb2.AddOrderReq(productid=sale.product_id, sale_id=sale.sale_id, item=item)
    units = product_pb2.DecrStockRequest(id=sale.product_id, sale_id=sale.sale_id, item=wanted)
    saga = Saga(client, await client.new_gid(), options=WAITING)
    saga.add(Step(creating, f"{creating}Revert"), order.SerializeToString())
    return saga.add(Step(taking, f"{taking}Revert"), units.SerializeToString())


async def left(backbone: Backbone, sale: Sale) -> tuple[int, int, int]:
    now = await backbone.read_sale(sale)
    return now.stock, now.frozen, now.sold


async def rows(backbone: Backbone, gid: str) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """State and reason of the reservation, status of the order."""
    reservations = "SELECT state, reason FROM stock_reservation WHERE gid = :gid"
    return (
        await backbone.query("product", reservations, gid=gid),
        await backbone.query("order", "SELECT status FROM orders WHERE gid = :gid", gid=gid),
    )


async def decisions(backbone: Backbone, gid: str) -> list[tuple[object, ...]]:
    statement = "SELECT branch_id, op FROM decision WHERE gid = :gid"
    return [row for name in ("order", "product") for row in await backbone.query(name, statement, gid=gid)]


async def test_a_sales_order_is_frozen_until_its_saga_has_finished(
    backbone: Backbone, client: DtmClient, relay: Relay
) -> None:
    """A finished saga has an order and frozen units, which ConfirmHolds sells."""
    sale = await backbone.open_sale(stock=5, per_user_limit=5)
    saga = await saga_on(client, backbone, sale, product_address=relay.address)
    await saga.submit()
    assert await ended(client, saga.gid) == "succeed"
    assert await left(backbone, sale) == (3, 2, 0)
    hold = product_pb2.HoldId(gid=saga.gid, branch_id="02", trans_type="saga")
    async with open_channel(backbone.settings.product.grpc) as channel:
        stub = product_pb2_grpc.ProductStub(channel)
        await stub.ConfirmHolds(product_pb2.ConfirmHoldsRequest(holds=[hold]))
    assert await left(backbone, sale) == (3, 0, 2)
    assert await rows(backbone, saga.gid) == ([(SOLD, "")], [(CONFIRMED,)])
    assert await decisions(backbone, saga.gid) == [("01", "confirm"), ("02", "confirm")]


async def test_a_sale_is_short(backbone: Backbone, client: DtmClient, relay: Relay) -> None:
    """The order is closed and rejected for good; the sale is not touched, and its compensation is an empty one."""
    sale = await backbone.open_sale(stock=1, per_user_limit=5)
    saga = await saga_on(client, backbone, sale, product_address=relay.address)
    with pytest.raises(Refused):
        await saga.submit()
    assert await ended(client, saga.gid) == "failed"
    assert relay.failed == [("DecrStock", grpc.StatusCode.ABORTED)]
    assert await left(backbone, sale) == (1, 0, 0)
    assert await rows(backbone, saga.gid) == ([(REJECTED, "SOLD_OUT")], [(CLOSED,)])
    barrier = "SELECT op, reason FROM barrier WHERE gid = :gid ORDER BY id"
    assert await backbone.query("order", barrier, gid=saga.gid) == TAKEN_BACK
    assert await backbone.query("product", barrier, gid=saga.gid) == EMPTY
    assert await decisions(backbone, saga.gid) == [("01", "cancel"), ("02", "cancel")]


async def test_a_failure_after_a_sales_units_were_frozen(backbone: Backbone, client: DtmClient, relay: Relay) -> None:
    """The action has frozen and fails outside the barrier: order and units are given back."""
    sale = await backbone.open_sale(stock=5, per_user_limit=5)
    relay.answers["DecrStock"] = [grpc.StatusCode.ABORTED]
    saga = await saga_on(client, backbone, sale, product_address=relay.address)
    with pytest.raises(Refused):
        await saga.submit()
    assert await ended(client, saga.gid) == "failed"
    assert relay.calls == ["DecrStock", "DecrStockRevert"]
    assert await left(backbone, sale) == (5, 0, 0)
    assert await rows(backbone, saga.gid) == ([(RELEASED, "")], [(CLOSED,)])
    assert await decisions(backbone, saga.gid) == [("01", "cancel"), ("02", "cancel")]
