"""Product's and order's branches of XA transactions: MariaDB alone has them; on SQLite both services say so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from seckill.schema import upgrade
from seckill.wire import order_pb2, product_pb2
from tests.servers import Servers, fresh_database
from tests.support.pattern_services import Services, called, new_gid, open_services
from tests.support.statuses import Fails

pytestmark = pytest.mark.asyncio(loop_scope="module")

ABORTED = grpc.StatusCode.ABORTED
CONTRADICTS = grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED

FROZEN, SOLD, REJECTED = "FROZEN", "SOLD", "REJECTED"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(servers: Servers) -> AsyncIterator[Services]:
    urls = [fresh_database(servers, name) for name in ("product", "order")]
    for name, url in zip(("product", "order"), urls, strict=True):
        await upgrade(name, url)
    async with open_services(*urls) as services:
        yield services


@pytest_asyncio.fixture(loop_scope="module")
async def services(opened: Services) -> AsyncIterator[Services]:
    """Nothing is prepared when a test has ended."""
    yield opened
    assert await opened.prepared() == []


@pytest.fixture
def gid() -> str:
    return new_gid()


async def test_what_is_prepared_is_seen_by_nobody(services: Services, gid: str) -> None:
    """Sold and rejected rows, the counters and the order appear together with their commit, each with its decision."""
    offer = await services.offer(stock=2)
    taken, refused = offer.item(quantity=2), offer.item()
    assert await services.sell(offer, taken, refused, gid=gid) == [(SOLD, gid, ""), (REJECTED, gid, "SOLD_OUT")]
    await services.write(offer, taken, gid=gid)
    assert await services.prepared() == [(gid, "01"), (gid, "02")]
    assert (await services.reservation(taken), await services.orders(gid)) == (None, [])
    assert await services.counters(offer) == (2, 0, 0)
    for _ in range(2):
        await services.end_stock(gid, "commit")
        await services.end_order(gid, "commit")
    assert await services.reservation(taken) == (SOLD, gid, "")
    assert await services.reservation(refused) == (REJECTED, gid, "SOLD_OUT")
    assert await services.counters(offer) == (0, 0, 2)
    assert await services.orders(gid) == [("confirmed", taken.user_id, 2)]
    assert [await services.decisions(name, gid) for name in ("product", "order")] == [["confirm"], ["confirm"]]


async def test_what_is_rolled_back_was_never_there(services: Services, gid: str) -> None:
    """Neither rows nor decisions; the action that comes late finds the barrier's row and is refused."""
    offer = await services.offer()
    item = offer.item()
    await services.sell(offer, item, gid=gid)
    await services.write(offer, item, gid=gid)
    for _ in range(2):
        await services.end_order(gid, "rollback")
        await services.end_stock(gid, "rollback")
    for call in (services.sell, services.write):
        with Fails(ABORTED, "rolled back before"):
            await call(offer, item, gid=gid)
    assert (await services.reservation(item), await services.orders(gid)) == (None, [])
    assert await services.counters(offer) == (10, 0, 0)
    assert [await services.decisions(name, gid) for name in ("product", "order")] == [[], []]


async def test_a_rollback_before_its_action_keeps_it_out(services: Services, gid: str) -> None:
    """In both databases."""
    offer = await services.offer()
    item = offer.item()
    await services.end_order(gid, "rollback")
    await services.end_stock(gid, "rollback")
    for call in (services.sell, services.write):
        with Fails(ABORTED, "rolled back before"):
            await call(offer, item, gid=gid)
    for name in ("product", "order"):
        assert await services.barrier(name, gid) == [("action", "rollback")]


async def test_the_other_end_contradicts(services: Services, gid: str) -> None:
    """A commit of what is not there, and a rollback of what has been committed, change nothing."""
    offer = await services.offer()
    with Fails(CONTRADICTS, gid):
        await services.end_stock(gid, "commit")
    await services.sell(offer, offer.item(), gid=gid)
    await services.end_stock(gid, "commit")
    with Fails(CONTRADICTS, gid):
        await services.end_stock(gid, "rollback")
    assert await services.counters(offer) == (9, 0, 1)


async def test_two_gids_for_one_order(services: Services, gid: str) -> None:
    """While one is prepared the other waits in vain; afterwards it is told what stands, and takes the rest."""
    offer, other = await services.offer(), new_gid()
    item, more = offer.item(), offer.item()
    await services.sell(offer, item, gid=gid)
    with Fails(UNAVAILABLE):
        await services.sell(offer, item, gid=other)
    await services.end_stock(gid, "commit")
    assert await services.sell(offer, item, more, gid=other) == [(SOLD, gid, ""), (SOLD, other, "")]
    await services.end_stock(other, "commit")
    assert await services.counters(offer) == (8, 0, 2)


async def test_what_another_pattern_holds_stands(services: Services, gid: str) -> None:
    """Units that a saga has frozen, and an order that it has written, are not taken."""
    offer, saga = await services.offer(), new_gid()
    item, free = offer.item(), offer.item()
    await services.create(offer, item, saga)
    await services.decr(offer, item, saga)
    assert await services.sell(offer, item, gid=gid) == [(FROZEN, saga, "")]
    await services.end_stock(gid, "rollback")
    expected = Fails(ABORTED, "1 of 2")
    with expected:
        await services.write(offer, item, free, gid=gid)
    refused = order_pb2.CreateOrderResponse.FromString(expected.trailing()["seckill-refused-bin"])
    assert [(each.order_id, each.reason) for each in refused.refused] == [(item.order_id, "ORDER_CONFLICT")]
    assert await services.prepared() == []
    assert await services.barrier("order", gid) == []
    assert await services.counters(offer) == (9, 1, 0)


async def test_a_request_that_makes_no_sense_prepares_nothing(services: Services, gid: str) -> None:
    """XA serves orders of a sale, under its own pattern and operations."""
    offer = await services.offer()
    with Fails(INVALID, "sale_id"):
        await services.product.SellStockXa(
            product_pb2.UpdateProductStockRequest(product_id=offer.product_id, num=1),
            metadata=called(gid, "xa", "01", "action"),
        )
    with Fails(INVALID, "items"):
        await services.write(offer, gid=gid)
    for context in (called(gid, "tcc", "01", "action"), called(gid, "xa", "01", "compensate")):
        with Fails(INVALID, "dtm-"):
            await services.product.SellStockXa(product_pb2.UpdateProductStockRequest(), metadata=context)
        with Fails(INVALID, "dtm-"):
            await services.order.CreateOrderXa(order_pb2.CreateOrderRequest(), metadata=context)
    assert await services.barrier("product", gid) == []


async def test_on_sqlite_the_calls_say_that_there_is_no_xa(tmp_path: Path, gid: str) -> None:
    """The services start and serve all else."""
    urls = [f"sqlite+aiosqlite:///{tmp_path / name}.db" for name in ("product", "order")]
    for name, url in zip(("product", "order"), urls, strict=True):
        await upgrade(name, url)
    async with open_services(*urls) as services:
        offer = await services.offer()
        item = offer.item()
        for call in (services.sell, services.write):
            with Fails(UNIMPLEMENTED, "sqlite"):
                await call(offer, item, gid=gid)
        for end in (services.end_stock, services.end_order):
            with Fails(UNIMPLEMENTED, "sqlite"):
                await end(gid, "commit")
        with Fails(UNIMPLEMENTED, "sqlite"):
            await services.prepared()
        await services.decr(offer, item, gid)
        assert await services.counters(offer) == (9, 1, 0)
