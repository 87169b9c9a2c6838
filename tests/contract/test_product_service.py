"""The product service over gRPC: the stock branch, what reservations say, and sales."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr
from sqlalchemy import insert, select

from seckill.domain.order import derived_order_id, order_key
from seckill.dtm.database import create_engine
from seckill.product import tables
from seckill.product.service import serve_product
from seckill.settings import ProductSettings
from seckill.wire import product_pb2 as pb
from seckill.wire import product_pb2_grpc
from tests.support.sides import Side
from tests.support.statuses import Fails

PRODUCT = 7


@pytest.fixture
async def database_url(side: Side, tmp_path: Path) -> str:
    return await side.database("product", tmp_path)


@pytest.fixture
def settings(database_url: str) -> ProductSettings:
    return ProductSettings(grpc="127.0.0.1:0", database_url=SecretStr(database_url), lock_wait_s=1)


class Client:
    """The stubs, and a branch's metadata in few words."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.product = product_pb2_grpc.ProductStub(channel)
        self.sales = product_pb2_grpc.SalesStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    async def sale(self, *, stock: int = 10, limit: int = 1, change: str = "c1", product_id: int = PRODUCT) -> pb.Sale:
        return await self.sales.CreateSale(
            pb.CreateSaleRequest(
                change_id=change, product_id=product_id, name="flash", ends_at_ms=10, per_user_limit=limit, stock=stock
            )
        )

    async def reserve(
        self, sale_id: int, items: Sequence[pb.Item], *, gid: str = "g1", product_id: int = PRODUCT
    ) -> pb.UpdateProductStockResponse:
        request = pb.UpdateProductStockRequest(product_id=product_id, sale_id=sale_id, items=items)
        return await self.product.CheckProductStock(request, metadata=metadata("try", gid))

    async def confirm(self, gid: str = "g1") -> None:
        await self.product.UpdateProductStock(pb.UpdateProductStockRequest(), metadata=metadata("confirm", gid))

    async def cancel(self, gid: str = "g1") -> None:
        await self.product.RollbackProductStock(pb.UpdateProductStockRequest(), metadata=metadata("cancel", gid))

    async def states(self, *numbers: int) -> list[str]:
        reply = await self.product.Reservations(pb.ReservationsRequest(order_ids=[key(n) for n in numbers]))
        found = {row.order_id: told(row) for row in reply.reservations}
        return [found.get(key(number), "none") for number in numbers]

    async def counters(self, sale_id: int) -> tuple[int, int, int, int]:
        """initial, stock, frozen, sold"""
        sale = await self.sales.GetSale(pb.GetSaleRequest(sale_id=sale_id))
        assert sale.stock + sale.frozen + sale.sold == sale.initial
        return sale.initial, sale.stock, sale.frozen, sale.sold


@pytest.fixture
async def client(settings: ProductSettings) -> AsyncIterator[Client]:
    async with serve_product(settings) as server, grpc.aio.insecure_channel(server.address) as channel:
        await server.check()
        yield Client(channel)


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def item(number: int, *, user_id: int = 0, quantity: int = 1) -> pb.Item:
    return pb.Item(order_id=key(number), user_id=user_id or 100 + number, quantity=quantity, admitted_at_ms=5)


def metadata(op: str, gid: str = "g1", branch_id: str = "01", trans_type: str = "tcc") -> tuple[tuple[str, str], ...]:
    return (("dtm-gid", gid), ("dtm-trans_type", trans_type), ("dtm-branch_id", branch_id), ("dtm-op", op))


def told(row: pb.Reservation) -> str:
    return f"{pb.ReservationState.Name(row.state)} {row.gid} {row.reason}".strip()


def outcomes(reply: pb.UpdateProductStockResponse) -> list[str]:
    return [told(row) for row in reply.outcomes]


INVALID = grpc.StatusCode.INVALID_ARGUMENT
ABORTED = grpc.StatusCode.ABORTED
CONTRADICTS = grpc.StatusCode.FAILED_PRECONDITION
NOT_FOUND = grpc.StatusCode.NOT_FOUND


# --- Try, Confirm, Cancel --------------------------------------------------------------------------------------


async def test_try_then_confirm_sells(client: Client) -> None:
    """Frozen units become sold ones, and the outcomes come in the request's order."""
    sale = await client.sale(stock=2)
    reply = await client.reserve(sale.sale_id, [item(3), item(1), item(2)])
    assert [row.order_id for row in reply.outcomes] == [key(3), key(1), key(2)]
    assert outcomes(reply) == ["FROZEN g1", "FROZEN g1", "REJECTED g1 SOLD_OUT"]
    assert await client.counters(sale.sale_id) == (2, 0, 2, 0)
    await client.confirm()
    assert await client.counters(sale.sale_id) == (2, 0, 0, 2)
    assert await client.states(1, 2, 3) == ["SOLD g1", "REJECTED g1 SOLD_OUT", "SOLD g1"]


async def test_try_then_cancel_gives_back(client: Client) -> None:
    """Released units are there for others, and a released order may be frozen again by a new gid."""
    sale = await client.sale(stock=1)
    await client.reserve(sale.sale_id, [item(1)])
    await client.cancel()
    assert await client.counters(sale.sale_id) == (1, 1, 0, 0)
    assert await client.states(1) == ["RELEASED g1"]
    assert outcomes(await client.reserve(sale.sale_id, [item(1)], gid="g2")) == ["FROZEN g2"]
    await client.confirm("g2")
    assert await client.states(1) == ["SOLD g2"]


async def test_try_twice_gets_the_same_bytes(client: Client) -> None:
    """A repeated Try answers what the first one did, though the sale has changed since."""
    sale = await client.sale(stock=2)
    first = await client.reserve(sale.sale_id, [item(1), item(2), item(3)])
    await client.confirm()
    again = await client.reserve(sale.sale_id, [item(1), item(2), item(3)])
    assert again.SerializeToString() == first.SerializeToString()
    assert await client.counters(sale.sale_id) == (2, 0, 0, 2)


async def test_twenty_tries_at_once_take_effect_once(client: Client) -> None:
    """Repeats at the same time get the same bytes and freeze the units once."""
    sale = await client.sale()
    replies = await asyncio.gather(*(client.reserve(sale.sale_id, [item(1), item(2)]) for _ in range(20)))
    assert len({reply.SerializeToString() for reply in replies}) == 1
    assert await client.counters(sale.sale_id) == (10, 8, 2, 0)


async def test_confirm_twice_and_cancel_twice(client: Client) -> None:
    """A repeat is answered like the first call and changes nothing."""
    sale = await client.sale()
    await client.reserve(sale.sale_id, [item(1)], gid="g1")
    await client.reserve(sale.sale_id, [item(2)], gid="g2")
    for _ in range(2):
        await client.confirm("g1")
        await client.cancel("g2")
    assert await client.counters(sale.sale_id) == (10, 9, 0, 1)


async def test_try_after_cancel(client: Client) -> None:
    """A Try arriving after its Cancel changes nothing and is refused."""
    sale = await client.sale()
    await client.cancel()
    with Fails(ABORTED, "g1", "cancelled"):
        await client.reserve(sale.sale_id, [item(1)])
    assert await client.counters(sale.sale_id) == (10, 10, 0, 0)
    assert await client.states(1) == ["none"]


async def test_a_repeated_try_after_cancel(client: Client) -> None:
    """The kept reply is not told any more once Cancel has taken back what it promises."""
    sale = await client.sale()
    await client.reserve(sale.sale_id, [item(1)])
    await client.cancel()
    with Fails(ABORTED, "cancelled"):
        await client.reserve(sale.sale_id, [item(1)])
    assert await client.states(1) == ["RELEASED g1"]


async def test_confirm_after_an_empty_cancel(client: Client) -> None:
    """A Cancel without a Try decides as well."""
    await client.cancel()
    with Fails(CONTRADICTS):
        await client.confirm()


async def test_confirm_without_try(client: Client) -> None:
    """A Confirm that overtook its Try decides nothing; after the Try it goes through."""
    sale = await client.sale()
    with Fails(CONTRADICTS, "without a try"):
        await client.confirm()
    await client.reserve(sale.sale_id, [item(1)])
    await client.confirm()
    assert await client.states(1) == ["SOLD g1"]


async def test_a_gid_ends_only_its_own(client: Client) -> None:
    """Confirm and Cancel touch the rows of their own gid, whatever the payload names."""
    sale = await client.sale()
    await client.reserve(sale.sale_id, [item(1)], gid="g1")
    await client.reserve(sale.sale_id, [item(2)], gid="g2")
    await client.reserve(sale.sale_id, [item(1)], gid="g3")  # finds g1's row, freezes nothing
    foreign = pb.UpdateProductStockRequest(product_id=PRODUCT, sale_id=sale.sale_id, num=9, items=[item(1), item(2)])
    await client.product.RollbackProductStock(foreign, metadata=metadata("cancel", "g3"))
    assert await client.states(1, 2) == ["FROZEN g1", "FROZEN g2"]
    await client.product.UpdateProductStock(foreign, metadata=metadata("confirm", "g2"))
    assert await client.states(1, 2) == ["FROZEN g1", "SOLD g2"]
    assert await client.counters(sale.sale_id) == (10, 8, 1, 1)


async def test_rows_of_other_gids_are_answered_as_they_stand(client: Client) -> None:
    """Frozen, sold and rejected rows refuse their order alone; a rejected one stays rejected when units come."""
    sale = await client.sale(stock=2)
    await client.reserve(sale.sale_id, [item(1)], gid="g1")
    await client.confirm("g1")
    await client.reserve(sale.sale_id, [item(2), item(3)], gid="g2")
    await client.sales.UpdateSale(pb.UpdateSaleRequest(change_id="more", sale_id=sale.sale_id, stock_delta=5))
    reply = await client.reserve(sale.sale_id, [item(1), item(2), item(3), item(4)], gid="g3")
    assert outcomes(reply) == ["SOLD g1", "FROZEN g2", "REJECTED g2 SOLD_OUT", "FROZEN g3"]


async def test_an_order_id_of_another_order(client: Client) -> None:
    """An id that stands with other contents is refused alone; the row stays."""
    sale = await client.sale(limit=5)
    await client.reserve(sale.sale_id, [item(1), item(2)], gid="g1")
    await client.cancel("g1")
    reply = await client.reserve(sale.sale_id, [item(1, user_id=9), item(2, quantity=2), item(3)], gid="g2")
    assert outcomes(reply) == ["RELEASED g1 ORDER_CONFLICT", "RELEASED g1 ORDER_CONFLICT", "FROZEN g2"]
    assert await client.states(1, 2) == ["RELEASED g1", "RELEASED g1"]


async def test_the_limit_holds_across_groups(client: Client) -> None:
    """What a buyer holds, frozen or sold, counts in the next group; what was released does not."""
    sale = await client.sale(limit=2)
    await client.reserve(sale.sale_id, [item(1, user_id=5)], gid="g1")
    await client.confirm("g1")
    await client.reserve(sale.sale_id, [item(2, user_id=5)], gid="g2")
    assert outcomes(await client.reserve(sale.sale_id, [item(3, user_id=5)], gid="g3")) == [
        "REJECTED g3 LIMIT_EXCEEDED"
    ]
    await client.cancel("g2")
    assert outcomes(await client.reserve(sale.sale_id, [item(4, user_id=5)], gid="g4")) == ["FROZEN g4"]


@pytest.mark.parametrize("product_id", [PRODUCT, PRODUCT + 1])
async def test_an_unknown_sale_rejects_for_ever(client: Client, product_id: int) -> None:
    """Orders of a sale that does not exist, or is another product's, are rejected, and that is final."""
    sale = await client.sale()
    sale_id = sale.sale_id if product_id != PRODUCT else sale.sale_id + 1
    reply = await client.reserve(sale_id, [item(1)], product_id=product_id)
    assert outcomes(reply) == ["REJECTED g1 UNKNOWN_SALE"]
    assert await client.states(1) == ["REJECTED g1 UNKNOWN_SALE"]
    assert await client.counters(sale.sale_id) == (10, 10, 0, 0)


@pytest.mark.parametrize("state", ["paused", "closed"])
async def test_orders_admitted_before_go_on(client: Client, state: str) -> None:
    """A sale's window and state are judged at admission: Try takes what was admitted."""
    sale = await client.sale()
    await client.sales.SetSaleState(pb.SetSaleStateRequest(sale_id=sale.sale_id, state=state))
    assert outcomes(await client.reserve(sale.sale_id, [item(1)])) == ["FROZEN g1"]


async def test_a_group_of_five_hundred(client: Client) -> None:
    """A full group is taken whole, and its reply survives the store."""
    sale = await client.sale(stock=400)
    items = [item(number) for number in range(1, 501)]
    first = await client.reserve(sale.sale_id, items)
    assert outcomes(first) == ["FROZEN g1"] * 400 + ["REJECTED g1 SOLD_OUT"] * 100
    assert (await client.reserve(sale.sale_id, items)).SerializeToString() == first.SerializeToString()
    await client.cancel()
    again = await client.reserve(sale.sale_id, items, gid="g2")
    assert outcomes(again) == ["FROZEN g2"] * 400 + ["REJECTED g1 SOLD_OUT"] * 100
    await client.confirm("g2")
    assert await client.counters(sale.sale_id) == (400, 0, 0, 400)
    held = await client.product.ReservationsOfGid(pb.ReservationsOfGidRequest(gid="g2"))
    assert {told(row) for row in held.reservations} == {"SOLD g2"}
    assert len(held.reservations) == 400


async def test_concurrent_groups_never_oversell(client: Client) -> None:
    """Groups that fight for the last units get exactly what is there."""
    sale = await client.sale(stock=50)

    async def group(number: int) -> None:
        gid = f"g{number}"
        await client.reserve(sale.sale_id, [item(number * 100 + n) for n in range(20)], gid=gid)
        await (client.cancel(gid) if number % 3 == 0 else client.confirm(gid))

    await asyncio.gather(*(group(number) for number in range(1, 9)))
    initial, stock, frozen, sold = await client.counters(sale.sale_id)
    assert (initial, frozen) == (50, 0)
    assert stock >= 0
    rows = [await client.states(*(number * 100 + n for n in range(20))) for number in range(1, 9)]
    assert sum(state.startswith("SOLD") for states in rows for state in states) == sold


# --- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["dtm-gid", "dtm-trans_type", "dtm-branch_id", "dtm-op"])
@pytest.mark.parametrize("method", ["CheckProductStock", "UpdateProductStock", "RollbackProductStock"])
async def test_missing_metadata_is_named(client: Client, method: str, missing: str) -> None:
    """A branch call without its identity is INVALID_ARGUMENT and names what is missing."""
    op = {"CheckProductStock": "try", "UpdateProductStock": "confirm", "RollbackProductStock": "cancel"}[method]
    rest = tuple(pair for pair in metadata(op) if pair[0] != missing)
    with Fails(INVALID, missing):
        await getattr(client.product, method)(pb.UpdateProductStockRequest(product_id=1, num=1), metadata=rest)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (metadata("confirm"), "dtm-op"),
        (metadata("try", trans_type="saga"), "dtm-trans_type"),
        (metadata("try", gid="g" * 129), "dtm-gid"),
    ],
)
async def test_wrong_metadata_is_named(client: Client, wrong: tuple[tuple[str, str], ...], name: str) -> None:
    """An operation that the method does not serve, and an id too long to be kept, are refused by name."""
    with Fails(INVALID, name):
        await client.product.CheckProductStock(pb.UpdateProductStockRequest(product_id=1, num=1), metadata=wrong)


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("product_id", pb.UpdateProductStockRequest(sale_id=1, items=[item(1)])),
        ("product_id", pb.UpdateProductStockRequest(num=1)),
        ("sale_id", pb.UpdateProductStockRequest(product_id=1, items=[item(1)])),
        ("num", pb.UpdateProductStockRequest(product_id=1, num=0)),
        ("num", pb.UpdateProductStockRequest(product_id=1, num=-1)),
        ("items[1].order_id", pb.UpdateProductStockRequest(
            product_id=1, sale_id=1, items=[item(1), pb.Item(order_id=b"x" * 15, user_id=1, quantity=1)])),
        ("items[0].quantity", pb.UpdateProductStockRequest(product_id=1, sale_id=1, items=[item(1, quantity=-1)])),
        ("items[0].user_id", pb.UpdateProductStockRequest(product_id=1, sale_id=1, items=[item(1, user_id=-4)])),
        ("items", pb.UpdateProductStockRequest(product_id=1, sale_id=1, items=[item(n) for n in range(1, 1_002)])),
    ],
)  # fmt: skip
async def test_wrong_fields_are_named(client: Client, field: str, request_: pb.UpdateProductStockRequest) -> None:
    """A request that makes no sense is INVALID_ARGUMENT and names the field."""
    with Fails(INVALID, field):
        await client.product.CheckProductStock(request_, metadata=metadata("try"))


async def test_an_order_id_twice_in_one_group(client: Client) -> None:
    """An exact repeat counts once; the same id with other contents makes the request invalid and freezes nothing."""
    sale = await client.sale(limit=5)
    with Fails(INVALID, "items[2].order_id", "other contents"):
        await client.reserve(sale.sale_id, [item(1), item(2), item(1, quantity=2)])
    assert await client.counters(sale.sale_id) == (10, 10, 0, 0)
    reply = await client.reserve(sale.sale_id, [item(1), item(2), item(1)])
    assert outcomes(reply) == ["FROZEN g1", "FROZEN g1"]
    assert await client.counters(sale.sale_id) == (10, 8, 2, 0)


# --- callers that know only product_id and num -----------------------------------------------------------------


@pytest.fixture
async def own_stock(client: Client, database_url: str) -> AsyncIterator[Client]:
    engine = create_engine(database_url, pool_size=1, lock_wait_s=1)
    async with engine.begin() as connection:
        values = {"product_id": PRODUCT, "name": "lamp", "stock": 5, "price_cents": 1250, "created_at_ms": 9_000}
        await connection.execute(insert(tables.product).values(values))
    yield client
    await engine.dispose()


async def in_stock(client: Client) -> int:
    return int((await client.product.Product(pb.ProductItemRequest(product_id=PRODUCT))).stock)


def original(num: int, product_id: int = PRODUCT) -> pb.UpdateProductStockRequest:
    return pb.UpdateProductStockRequest(product_id=product_id, num=num)


async def test_original_fields_sell_the_products_own_stock(own_stock: Client) -> None:
    """Without items, `num` units of the product are frozen under gid and branch, and then sold or given back."""
    for gid, ended in (("g1", own_stock.confirm), ("g2", own_stock.cancel)):
        for _ in range(2):
            reply = await own_stock.product.CheckProductStock(original(2), metadata=metadata("try", gid))
        expected = order_key(derived_order_id(PRODUCT, gid, "01", at_ms=0))
        assert [(row.order_id, row.quantity, row.sale_id) for row in reply.outcomes] == [(expected, 2, 0)]
        for _ in range(2):
            await ended(gid)
    assert await in_stock(own_stock) == 3


@pytest.mark.parametrize(("num", "product_id"), [(6, PRODUCT), (1, PRODUCT + 1)])
async def test_original_fields_never_oversell(own_stock: Client, num: int, product_id: int) -> None:
    """Too few units and a product that does not exist are business failures, and nothing is kept of the attempt."""
    for _ in range(2):
        with Fails(ABORTED, str(product_id)):
            await own_stock.product.CheckProductStock(original(num, product_id), metadata=metadata("try"))
    await own_stock.cancel()
    assert await in_stock(own_stock) == 5


async def test_branches_of_one_gid_are_apart(own_stock: Client) -> None:
    """Two branches of one gid in this service end each what they froze themselves."""
    for branch_id in ("01", "02"):
        await own_stock.product.CheckProductStock(original(1), metadata=metadata("try", branch_id=branch_id))
    await own_stock.product.UpdateProductStock(original(1), metadata=metadata("confirm", branch_id="01"))
    assert sorted(await states_of_gid(own_stock, "g1")) == ["FROZEN", "SOLD"]
    await own_stock.product.RollbackProductStock(original(1), metadata=metadata("cancel", branch_id="02"))
    assert await in_stock(own_stock) == 4


async def states_of_gid(client: Client, gid: str) -> list[str]:
    reply = await client.product.ReservationsOfGid(pb.ReservationsOfGidRequest(gid=gid))
    return [pb.ReservationState.Name(row.state) for row in reply.reservations]


async def test_product_is_told(own_stock: Client) -> None:
    """A product's fields come back; one that does not exist is NOT_FOUND."""
    found = await own_stock.product.Product(pb.ProductItemRequest(product_id=PRODUCT))
    assert (found.name, found.price, found.create_time, found.stock) == ("lamp", 12.5, 9, 5)
    with Fails(NOT_FOUND):
        await own_stock.product.Product(pb.ProductItemRequest(product_id=PRODUCT + 1))


# --- rejecting -------------------------------------------------------------------------------------------------


async def test_reject_only_over_released_or_nothing(client: Client) -> None:
    """A rejection never takes a frozen, sold or rejected row; each order is told what stands."""
    sale = await client.sale(stock=10)
    await client.reserve(sale.sale_id, [item(1)], gid="g1")
    await client.confirm("g1")
    await client.reserve(sale.sale_id, [item(2)], gid="g2")
    await client.cancel("g2")
    await client.reserve(sale.sale_id, [item(3)], gid="g3")
    request = pb.RejectReservationsRequest(
        product_id=PRODUCT, sale_id=sale.sale_id, reason="DISCARDED", items=[item(n) for n in (1, 2, 3, 4)]
    )
    for reason in ("DISCARDED", "ENDED"):  # the second changes nothing any more
        request.reason = reason
        reply = await client.product.RejectReservations(request)
        assert [told(row) for row in reply.reservations] == [
            "SOLD g1", "REJECTED  DISCARDED", "FROZEN g3", "REJECTED  DISCARDED",
        ]  # fmt: skip
    assert outcomes(await client.reserve(sale.sale_id, [item(2), item(4)], gid="g4")) == [
        "REJECTED  DISCARDED", "REJECTED  DISCARDED",
    ]  # fmt: skip
    assert await client.counters(sale.sale_id) == (10, 8, 1, 1)
    with Fails(INVALID, "reason"):
        await client.product.RejectReservations(pb.RejectReservationsRequest(product_id=1, reason="no code"))


# --- sales -----------------------------------------------------------------------------------------------------


async def test_a_repeated_change_makes_one_sale(client: Client) -> None:
    """The same change id answers the same sale; with other contents it is refused."""
    first = await client.sale(stock=3)
    again = await client.sale(stock=3)
    assert (again.sale_id, first.created, again.created) == (first.sale_id, True, False)
    with Fails(CONTRADICTS, "other contents") as failed:
        await client.sale(stock=4)
    assert failed.trailing()["seckill-code"] == "SALE_CONFLICT"


async def test_one_open_sale_per_product(client: Client) -> None:
    """A second sale of a product waits until the first is closed; other products do not."""
    first = await client.sale()
    with Fails(CONTRADICTS, f"sale {first.sale_id}"):
        await client.sale(change="c2")
    await client.sale(change="c3", product_id=PRODUCT + 1)
    await client.sales.SetSaleState(pb.SetSaleStateRequest(sale_id=first.sale_id, state="paused"))
    with Fails(CONTRADICTS, "paused"):
        await client.sale(change="c4")
    await client.sales.SetSaleState(pb.SetSaleStateRequest(sale_id=first.sale_id, state="closed"))
    second = await client.sale(change="c5")
    assert second.sale_id != first.sale_id
    listed = await client.sales.ListSales(pb.ListSalesRequest(product_id=PRODUCT))
    assert [sale.sale_id for sale in listed.sales] == [second.sale_id, first.sale_id]
    closed = await client.sales.ListSales(pb.ListSalesRequest(state="closed"))
    assert [sale.sale_id for sale in closed.sales] == [first.sale_id]


async def test_units_are_raised_and_lowered_once(client: Client) -> None:
    """A change counts once; lowering takes nothing that is frozen or sold, and says what is there."""
    sale = await client.sale(stock=3)
    await client.reserve(sale.sale_id, [item(1)])
    more = pb.UpdateSaleRequest(change_id="more", sale_id=sale.sale_id, stock_delta=4)
    for _ in range(2):
        await client.sales.UpdateSale(more)
    assert await client.counters(sale.sale_id) == (7, 6, 1, 0)
    with Fails(CONTRADICTS, "6 units available", "7 were to be taken"):
        await client.sales.UpdateSale(pb.UpdateSaleRequest(change_id="less", sale_id=sale.sale_id, stock_delta=-7))
    less = pb.UpdateSaleRequest(change_id="less", sale_id=sale.sale_id, stock_delta=-6)
    for _ in range(2):
        await client.sales.UpdateSale(less)
    assert await client.counters(sale.sale_id) == (1, 0, 1, 0)


async def test_terms_change_and_the_rest_stays(client: Client) -> None:
    """Fields that a change does not carry stay as they are."""
    sale = await client.sale()
    after = await client.sales.UpdateSale(
        pb.UpdateSaleRequest(change_id="u", sale_id=sale.sale_id, name="夜场", per_user_limit=3, ends_at_ms=99)
    )
    assert (after.name, after.per_user_limit, after.ends_at_ms) == ("夜场", 3, 99)
    assert (after.starts_at_ms, after.stock, after.state) == (sale.starts_at_ms, 10, "open")
    assert await client.sales.GetSale(pb.GetSaleRequest(sale_id=sale.sale_id)) == after
    with Fails(CONTRADICTS, "would end"):
        await client.sales.UpdateSale(pb.UpdateSaleRequest(change_id="v", sale_id=sale.sale_id, starts_at_ms=99))


async def test_states(client: Client) -> None:
    """open and paused follow each other, closed is the end, and a state set twice is no error."""
    sale = await client.sale()
    for state in ("paused", "paused", "open", "closed", "closed"):
        set_to = await client.sales.SetSaleState(pb.SetSaleStateRequest(sale_id=sale.sale_id, state=state))
        assert set_to.state == state
    with Fails(CONTRADICTS, "closed"):
        await client.sales.SetSaleState(pb.SetSaleStateRequest(sale_id=sale.sale_id, state="open"))
    with Fails(CONTRADICTS, "closed"):
        await client.sales.UpdateSale(pb.UpdateSaleRequest(change_id="u", sale_id=sale.sale_id, stock_delta=1))


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("change_id", {"change_id": ""}),
        ("change_id", {"change_id": "c" * 129}),
        ("product_id", {"product_id": 0}),
        ("name", {"name": "n" * 201}),
        ("ends_at_ms", {"starts_at_ms": 10}),
        ("per_user_limit", {"per_user_limit": 0}),
        ("price_cents", {"price_cents": -1}),
        ("stock", {"stock": -1}),
    ],
)
async def test_wrong_sales_are_refused(client: Client, field: str, changes: dict[str, int | str]) -> None:
    """A sale that makes no sense is INVALID_ARGUMENT and names the field."""
    good: dict[str, int | str] = {
        "change_id": "c", "product_id": 1, "name": "", "ends_at_ms": 10, "per_user_limit": 1, "stock": 1,
    }  # fmt: skip
    with Fails(INVALID, field):
        await client.sales.CreateSale(pb.CreateSaleRequest(**{**good, **changes}))  # type: ignore[arg-type]


async def test_unknown_sales(client: Client) -> None:
    """A sale that does not exist is NOT_FOUND, with the code that the front tells."""
    for call in (
        client.sales.GetSale(pb.GetSaleRequest(sale_id=99)),
        client.sales.UpdateSale(pb.UpdateSaleRequest(change_id="u", sale_id=99)),
        client.sales.SetSaleState(pb.SetSaleStateRequest(sale_id=99, state="open")),
    ):
        with Fails(NOT_FOUND, "99") as failed:
            await call
        assert failed.trailing()["seckill-code"] == "UNKNOWN_SALE"


# --- the server ------------------------------------------------------------------------------------------------


async def test_health(client: Client) -> None:
    """The health service answers for the server and for each of its services."""
    for name in ("", "product.Product", "product.Sales"):
        reply = await client.health.Check(health_pb2.HealthCheckRequest(service=name))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_what_was_frozen_survives_a_restart(settings: ProductSettings) -> None:
    """A new server on the same database confirms what the old one froze, and repeats its replies."""
    async with serve_product(settings) as server, grpc.aio.insecure_channel(server.address) as channel:
        sale = await Client(channel).sale()
        first = await Client(channel).reserve(sale.sale_id, [item(1)])
    async with serve_product(settings) as server, grpc.aio.insecure_channel(server.address) as channel:
        client = Client(channel)
        assert await client.reserve(sale.sale_id, [item(1)]) == first
        await client.confirm()
        assert await client.counters(sale.sale_id) == (10, 9, 0, 1)


async def test_a_running_call_is_finished_at_the_end(settings: ProductSettings, database_url: str) -> None:
    """A drained server finishes the calls that it has taken."""
    holder = create_engine(database_url, pool_size=1, lock_wait_s=1)
    running = AsyncExitStack()
    server = await running.enter_async_context(serve_product(settings))
    async with grpc.aio.insecure_channel(server.address) as channel:
        client = Client(channel)
        sale = await client.sale()
        async with holder.begin() as connection:
            await connection.execute(select(tables.sale).with_for_update())  # the Try has to wait for this lock
            waiting = asyncio.ensure_future(client.reserve(sale.sale_id, [item(1)]))
            await asyncio.sleep(0.2)
            ending = asyncio.create_task(running.aclose())
            await asyncio.sleep(0.2)
            assert not waiting.done()
            assert not ending.done()
        assert outcomes(await waiting) == ["FROZEN g1"]
        await ending
        with Fails(grpc.StatusCode.UNAVAILABLE):
            await client.confirm()
    await holder.dispose()


async def test_a_locked_database_is_unavailable(client: Client, database_url: str) -> None:
    """A lock that does not go away is a transient failure, not a refusal."""
    sale = await client.sale()
    holder = create_engine(database_url, pool_size=1, lock_wait_s=1)
    async with holder.begin() as connection:
        await connection.execute(select(tables.sale).with_for_update())
        with Fails(grpc.StatusCode.UNAVAILABLE):
            await client.reserve(sale.sale_id, [item(1)])
    await holder.dispose()
    assert outcomes(await client.reserve(sale.sale_id, [item(1)])) == ["FROZEN g1"]
