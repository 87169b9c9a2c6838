"""The second article's saga through a real DTM, under our names and under its own: success and both of its failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from seckill.dtm import DtmClient, Refused, Saga
from seckill.wiring import open_dtm
from tests.servers import Servers
from tests.support.backbone import Backbone, open_backbone
from tests.support.originals import CREATED_MS, OURS, QUICK, THEIRS, SagaNames, Shop, saga_of
from tests.support.relays import Relay, relay_to
from tests.support.sides import real_side

BUYER = 42
CONFIRMED, CLOSED = 1, 2
DONE_BY_ACTION = ("action", "action")
TAKEN_BACK = [DONE_BY_ACTION, ("compensate", "compensate")]
EMPTY = [("action", "compensate"), ("compensate", "compensate")]


@pytest.fixture
async def backbone(servers: Servers, tmp_path: Path) -> AsyncIterator[Backbone]:
    """On real servers alone: our coordinator does not know sagas yet."""
    async with open_backbone(real_side(servers), tmp_path) as opened:
        yield opened


@pytest.fixture
async def client(backbone: Backbone) -> AsyncIterator[DtmClient]:
    async with open_dtm(backbone.settings) as opened:
        yield opened


@pytest.fixture
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
    """The saga's status once DTM is done with it."""
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


async def test_the_stock_is_short(backbone: Backbone, client: DtmClient, names: SagaNames) -> None:
    """The order that was made is closed; the stock is not touched, and its compensation is an empty one."""
    shop = await Shop.open(backbone, stock=1)
    saga = await saga_of(client, shop, names=names, user_id=BUYER, units=2, quantity=1)
    with pytest.raises(Refused):
        await saga.submit()
    assert await ended(client, saga.gid) == "failed"
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
    saga = await saga_of(client, shop, names=names, user_id=BUYER, units=3, quantity=1, product_address=relay.address)
    with pytest.raises(Refused):
        await saga.submit()
    assert await ended(client, saga.gid) == "failed"
    assert relay.calls == ["DecrStock", "DecrStockRevert"]
    assert await shop.stock() == 100
    assert await shop.changed_ms() > CREATED_MS
    assert await shop.orders() == [(BUYER, 1, CLOSED)]
    for service in ("order", "product"):
        assert await operations(shop, service, saga.gid) == TAKEN_BACK


async def test_an_action_whose_answer_is_lost_takes_effect_once(
    backbone: Backbone, client: DtmClient, relay: Relay, names: SagaNames
) -> None:
    """DTM repeats what it has no answer to: the units are taken once, the saga succeeds.

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
    """DTM repeats compensations too: the units come back once."""
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
    """An action that nobody can carry out is refused, so that DTM does not repeat it for ever."""
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
