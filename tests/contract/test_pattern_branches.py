"""Product's and order's branches of sagas and two-phase messages on orders of a sale, in the orders they may come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from google.protobuf.empty_pb2 import Empty
from prometheus_client import REGISTRY

from seckill.domain.order import order_id_from_key
from seckill.dtm.database import session_factory
from seckill.product.holds import Found, stale_holds
from seckill.wire import order_pb2, product_pb2
from tests.support.pattern_services import Services, called, new_gid, open_services, stock, told
from tests.support.sides import Side
from tests.support.statuses import Fails

pytestmark = pytest.mark.asyncio(loop_scope="module")

ABORTED = grpc.StatusCode.ABORTED
CONTRADICTS = grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT

FROZEN, SOLD, RELEASED, REJECTED = "FROZEN", "SOLD", "RELEASED", "REJECTED"
EMPTY_COMPENSATION = [("action", "compensate"), ("compensate", "compensate")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def services(side: Side, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Services]:
    """For all tests of a side: each has sales and gids of its own."""
    folder: Path = tmp_path_factory.mktemp("patterns")
    urls = [await side.database(name, folder) for name in ("product", "order")]
    async with open_services(*urls) as opened:
        yield opened


@pytest.fixture
def gid() -> str:
    return new_gid()


@pytest.fixture
def contradictions() -> Callable[[], float]:
    """Tells how many ConfirmHolds has told of since the test began."""
    labels = {"method": "/product.Product/ConfirmHolds"}

    def value() -> float:
        return REGISTRY.get_sample_value("dtm_branch_undecidable_total", labels) or 0

    before = value()
    return lambda: value() - before


# --- a saga takes units ------------------------------------------------------------------------------------------


async def test_an_action_freezes_once_and_the_end_of_its_saga_sells(services: Services, gid: str) -> None:
    """However often either comes; the units are frozen under the saga's gid until it has finished."""
    offer = await services.offer(stock=3)
    item = offer.item(quantity=2)
    for _ in range(2):
        await services.decr(offer, item, gid)
    assert await services.reservation(item) == (FROZEN, gid, "")
    assert await services.counters(offer) == (1, 2, 0)
    for _ in range(2):
        assert await services.confirm_holds("saga", gid) == [(SOLD, gid, "")]
    assert await services.counters(offer) == (1, 0, 2)
    assert await services.decisions("product", gid) == ["confirm"]


@pytest.mark.parametrize(("units", "limit", "reason"), [(1, 9, "SOLD_OUT"), (9, 1, "LIMIT_EXCEEDED")])
async def test_a_refusal_leaves_the_barrier_untouched_and_is_written_down(
    services: Services, gid: str, units: int, limit: int, reason: str
) -> None:
    """The action is rolled back whole, the order is rejected for good, and the compensation that follows is empty."""
    offer = await services.offer(stock=units, limit=limit)
    item = offer.item(quantity=2)
    for _ in range(2):
        with Fails(ABORTED, reason):
            await services.decr(offer, item, gid)
    assert await services.barrier("product", gid) == []
    await services.decr_revert(gid)
    assert await services.barrier("product", gid) == EMPTY_COMPENSATION
    assert await services.reservation(item) == (REJECTED, gid, reason)
    assert await services.counters(offer) == (units, 0, 0)
    other = new_gid()
    with Fails(ABORTED, reason):
        await services.decr(offer, item, other)
    assert await services.reservation(item) == (REJECTED, gid, reason)
    assert await services.barrier("product", other) == []


async def test_an_order_that_was_released_is_frozen_anew_or_refused(services: Services) -> None:
    """A released row is as good as none, for a freeze and for a refusal."""
    offer = await services.offer(stock=1)
    item, first, second, third = offer.item(), new_gid(), new_gid(), new_gid()
    await services.decr(offer, item, first)
    await services.decr_revert(first)
    await services.decr(offer, item, second)
    assert await services.reservation(item) == (FROZEN, second, "")
    await services.decr_revert(second)
    await services.decr(offer, offer.item(), new_gid())
    with Fails(ABORTED, "SOLD_OUT"):
        await services.decr(offer, item, third)
    assert await services.reservation(item) == (REJECTED, third, "SOLD_OUT")
    assert await services.counters(offer) == (0, 1, 0)


@pytest.mark.parametrize("held", [FROZEN, SOLD])
async def test_two_gids_for_one_order(services: Services, gid: str, held: str) -> None:
    """What one has frozen or sold, another can neither freeze, nor refuse, nor give back."""
    offer, other = await services.offer(), new_gid()
    item = offer.item()
    await services.decr(offer, item, gid)
    if held == SOLD:
        await services.confirm_holds("saga", gid)
    counters = await services.counters(offer)
    with Fails(ABORTED, held, gid):
        await services.decr(offer, item, other)
    assert await services.barrier("product", other) == []
    await services.decr_revert(other)
    assert await services.take(offer, item, gid=other) == [(held, gid, "")]
    await services.drop(other)
    assert await services.reservation(item) == (held, gid, "")
    assert await services.counters(offer) == counters


async def test_a_compensation_keeps_its_action_out(services: Services, gid: str) -> None:
    """Before the action or after it: the action that comes then is refused, and not the order."""
    offer, earlier = await services.offer(), new_gid()
    item = offer.item()
    await services.decr_revert(earlier)
    await services.decr(offer, item, gid)
    await services.decr_revert(gid)
    for late in (earlier, gid):
        with Fails(ABORTED, "compensated before"):
            await services.decr(offer, item, late)
    assert await services.reservation(item) == (RELEASED, gid, "")
    assert await services.counters(offer) == (10, 0, 0)


async def test_nothing_is_sold_after_its_compensation(
    services: Services, gid: str, contradictions: Callable[[], float]
) -> None:
    """The row stays released, and a person is told; the other holds of the same call are sold."""
    offer, other = await services.offer(), new_gid()
    for each in (gid, other):
        await services.decr(offer, offer.item(), each)
    await services.decr_revert(gid)
    rows = await services.confirm_holds("saga", gid, other)
    assert sorted(rows) == sorted([(RELEASED, gid, ""), (SOLD, other, "")])
    assert contradictions() == 1
    assert await services.counters(offer) == (9, 0, 1)
    assert await services.decisions("product", gid) == ["cancel"]


async def test_nothing_is_given_back_after_it_was_sold(services: Services, gid: str) -> None:
    """A compensation that comes after the end of its saga contradicts, and changes nothing."""
    offer = await services.offer()
    item = offer.item()
    await services.decr(offer, item, gid)
    await services.confirm_holds("saga", gid)
    for _ in range(2):
        with Fails(CONTRADICTS, gid):
            await services.decr_revert(gid)
    assert await services.reservation(item) == (SOLD, gid, "")
    assert await services.counters(offer) == (9, 0, 1)


async def test_an_end_before_its_action_decides_nothing(
    services: Services, gid: str, contradictions: Callable[[], float]
) -> None:
    """What is not frozen is not sold: it is told, and the saga goes on as if nobody had asked."""
    offer = await services.offer()
    item = offer.item()
    assert await services.confirm_holds("saga", gid) == []
    assert contradictions() == 1
    await services.decr(offer, item, gid)
    assert await services.reservation(item) == (FROZEN, gid, "")
    await services.decr_revert(gid)
    assert await services.counters(offer) == (10, 0, 0)


async def test_only_holds_of_their_own_pattern_are_sold(services: Services, gid: str) -> None:
    """A group's Try is undecided until its own Confirm, whatever a caller takes it for."""
    offer = await services.offer()
    item = offer.item()
    await services.try_stock(offer, item, gid=gid)
    for trans_type in ("saga", "msg"):
        holds = [product_pb2.HoldId(gid=gid, branch_id="01", trans_type=trans_type)]
        reply = await services.product.ConfirmHolds(product_pb2.ConfirmHoldsRequest(holds=holds))
        assert [told(row) for row in reply.reservations] == [(FROZEN, gid, "")]
    assert await services.decisions("product", gid) == []
    assert await services.counters(offer) == (9, 1, 0)


async def test_an_articles_saga_is_no_hold(services: Services, gid: str) -> None:
    """Units that are on no sale are sold by their action; nobody decides about them but the compensation."""
    offer = await services.offer()
    await services.rows("product", "UPDATE product SET stock = 5 WHERE product_id = :id", id=offer.product_id)
    context = called(gid, "saga", "02", "action")
    await services.product.DecrStock(product_pb2.DecrStockRequest(id=offer.product_id, num=2), metadata=context)
    await services.confirm_holds("saga", gid)
    assert await services.decisions("product", gid) == []
    await services.decr_revert(gid)
    found = await services.rows("product", "SELECT stock FROM product WHERE product_id = :id", id=offer.product_id)
    assert found == [(5,)]


async def test_many_holds_of_two_sales_end_in_one_call(services: Services) -> None:
    """More than one IN list takes, of both patterns at once, some of them twice."""
    sagas, messages = [await services.offer(stock=300, limit=300) for _ in range(2)]
    of_saga, of_message = [new_gid() for _ in range(210)], [new_gid() for _ in range(20)]
    for gid in of_saga:
        await services.decr(sagas, sagas.item(), gid)
    for gid in of_message:
        await services.take(messages, messages.item(), gid=gid)
    holds = [product_pb2.HoldId(gid=gid, branch_id="02", trans_type="saga") for gid in [*of_saga, *of_saga[:5]]]
    holds += [product_pb2.HoldId(gid=gid, branch_id="00", trans_type="msg") for gid in of_message]
    reply = await services.product.ConfirmHolds(product_pb2.ConfirmHoldsRequest(holds=holds))
    assert {row.gid for row in reply.reservations if row.state == product_pb2.SOLD} == {*of_saga, *of_message}
    assert await services.counters(sagas) == (90, 0, 210)
    assert await services.counters(messages) == (280, 0, 20)


async def test_the_end_and_a_compensation_at_once(services: Services) -> None:
    """Whichever comes first decides: afterwards each order is sold or released, and the units say the same."""
    offer = await services.offer()
    gids = [new_gid() for _ in range(8)]
    items = [offer.item() for _ in gids]
    for gid, item in zip(gids, items, strict=True):
        await services.decr(offer, item, gid)
    await asyncio.gather(
        services.confirm_holds("saga", *gids),
        *(services.decr_revert(gid) for gid in gids),
        services.confirm_holds("saga", *reversed(gids)),
        return_exceptions=True,
    )
    states = [row[0] for item in items if (row := await services.reservation(item))]
    assert set(states) <= {SOLD, RELEASED}
    assert await services.counters(offer) == (10 - states.count(SOLD), 0, states.count(SOLD))
    decisions = [await services.decisions("product", gid) for gid in gids]
    assert decisions == [["confirm"] if state == SOLD else ["cancel"] for state in states]


async def test_what_cannot_be_carried_out_is_refused(services: Services, gid: str) -> None:
    """ABORTED, not a status that a coordinator would repeat for ever."""
    offer = await services.offer()
    await services.rows("product", "UPDATE sale SET pruned_at_ms = 1 WHERE sale_id = :id", id=offer.sale_id)
    with Fails(ABORTED, "pruned"):
        await services.decr(offer, offer.item(), gid)
    for problem, item in (
        ("order_id", product_pb2.Item(order_id=b"short", user_id=1, quantity=1)),
        ("user_id", product_pb2.Item(order_id=b"x" * 16, quantity=1)),
        ("quantity", product_pb2.Item(order_id=b"x" * 16, user_id=1)),
    ):
        with Fails(ABORTED, problem):
            await services.decr(offer, item, gid)
    assert await services.barrier("product", gid) == []


async def test_holds_that_are_none(services: Services) -> None:
    """Patterns that freeze nothing, names that are none, and too many of them."""
    for problem, holds in (
        ("trans_type", [product_pb2.HoldId(gid="g", branch_id="01", trans_type="tcc")]),
        ("gid", [product_pb2.HoldId(branch_id="01", trans_type="saga")]),
        ("branch_id", [product_pb2.HoldId(gid="g", trans_type="msg")]),
        ("500", [product_pb2.HoldId(gid=f"g{n}", branch_id="01", trans_type="saga") for n in range(501)]),
    ):
        with Fails(INVALID, problem):
            await services.product.ConfirmHolds(product_pb2.ConfirmHoldsRequest(holds=holds))


# --- a message takes units ---------------------------------------------------------------------------------------


async def test_a_message_freezes_in_its_local_transaction(services: Services, gid: str) -> None:
    """A repeat gets the same answer; asked, product has it sent; once it has finished the units are sold."""
    offer = await services.offer(stock=1)
    item = offer.item()
    for _ in range(2):
        assert await services.take(offer, item, gid=gid) == [(FROZEN, gid, "")]
    await services.query(gid)
    assert await services.counters(offer) == (0, 1, 0)
    assert await services.confirm_holds("msg", gid) == [(SOLD, gid, "")]
    await services.query(gid)
    assert await services.barrier("product", gid) == [("msg", "msg")]
    assert await services.counters(offer) == (0, 0, 1)


async def test_a_refused_message_is_never_sent(services: Services, gid: str) -> None:
    """It leaves nothing in the barrier; the reply and the row say why; whoever asks keeps it out for good."""
    offer = await services.offer(stock=1)
    item = offer.item(quantity=2)
    assert await services.take(offer, item, gid=gid) == [(REJECTED, gid, "SOLD_OUT")]
    assert await services.barrier("product", gid) == []
    for _ in range(2):
        with Fails(ABORTED, gid):
            await services.query(gid)
    assert await services.barrier("product", gid) == [("msg", "rollback")]
    assert await services.reservation(item) == (REJECTED, gid, "SOLD_OUT")
    assert await services.counters(offer) == (1, 0, 0)


async def test_a_query_before_the_local_transaction_keeps_it_out(services: Services, gid: str) -> None:
    """The units that would be frozen after it would belong to nobody; and nothing is said about the order."""
    offer = await services.offer()
    item = offer.item()
    with Fails(ABORTED, gid):
        await services.query(gid)
    for _ in range(2):
        with Fails(ABORTED, gid):
            await services.take(offer, item, gid=gid)
    assert await services.reservation(item) is None
    assert await services.counters(offer) == (10, 0, 0)


async def test_a_message_that_is_dropped(services: Services, gid: str, contradictions: Callable[[], float]) -> None:
    """Its units are free again, it freezes none, is not sent, and is not sold."""
    offer = await services.offer()
    item = offer.item()
    await services.take(offer, item, gid=gid)
    for _ in range(2):
        await services.drop(gid)
    with Fails(ABORTED, gid):
        await services.query(gid)
    with Fails(ABORTED, gid):
        await services.take(offer, item, gid=gid)
    assert await services.confirm_holds("msg", gid) == [(RELEASED, gid, "")]
    assert contradictions() == 1
    assert await services.counters(offer) == (10, 0, 0)


async def test_a_message_that_is_dropped_before_it_takes(services: Services, gid: str) -> None:
    """Dropping it keeps the local transaction out, and the message with it."""
    offer = await services.offer()
    item = offer.item()
    await services.drop(gid)
    with Fails(ABORTED, gid):
        await services.take(offer, item, gid=gid)
    with Fails(ABORTED, gid):
        await services.query(gid)
    assert await services.reservation(item) is None


async def test_a_message_that_is_sold_is_not_dropped(services: Services, gid: str) -> None:
    """It contradicts, and changes nothing."""
    offer = await services.offer()
    await services.take(offer, offer.item(), gid=gid)
    await services.confirm_holds("msg", gid)
    with Fails(CONTRADICTS, gid):
        await services.drop(gid)
    await services.query(gid)
    assert await services.counters(offer) == (9, 0, 1)


async def test_a_message_carries_one_order(services: Services, gid: str) -> None:
    """Its local transaction is branch 00's, of one order, of its own pattern."""
    offer = await services.offer()
    with Fails(INVALID, "2 orders"):
        await services.take(offer, offer.item(), offer.item(), gid=gid)
    with Fails(INVALID, "0 orders"):
        await services.take(offer, gid=gid)
    for name, context in (
        ("dtm-branch_id", called(gid, "msg", "01", "msg")),
        ("dtm-trans_type", called(gid, "saga", "00", "msg")),
        ("dtm-op", called(gid, "msg", "00", "action")),
    ):
        with Fails(INVALID, name):
            await services.product.TakeStock(stock(offer, [offer.item()]), metadata=context)
        with Fails(INVALID, name):
            await services.product.QueryPrepared(Empty(), metadata=context)


# --- what holds units for long -----------------------------------------------------------------------------------


async def test_holds_of_every_pattern_are_found(services: Services) -> None:
    """Those that nobody has decided, with their pattern; no article's units, and nothing that has ended."""
    offer = await services.offer(stock=20)
    gids = {name: new_gid() for name in ("tcc", "saga", "msg", "sold", "released", "dropped", "article")}
    await services.try_stock(offer, offer.item(), offer.item(), gid=gids["tcc"])
    for name in ("saga", "sold", "released"):
        await services.decr(offer, offer.item(quantity=3), gids[name])
    for name in ("msg", "dropped"):
        await services.take(offer, offer.item(quantity=4), gid=gids[name])
    await services.rows("product", "UPDATE product SET stock = 5 WHERE product_id = :id", id=offer.product_id)
    await services.product.DecrStock(
        product_pb2.DecrStockRequest(id=offer.product_id, num=1),
        metadata=called(gids["article"], "saga", "02", "action"),
    )
    await services.confirm_holds("saga", gids["sold"])
    await services.decr_revert(gids["released"])
    await services.drop(gids["dropped"])
    reply = await services.product.StaleHolds(product_pb2.StaleHoldsRequest(limit=1_000))
    found = {
        hold.gid: (hold.trans_type, hold.branch_id, hold.orders, hold.units)
        for hold in reply.holds
        if hold.sale_id == offer.sale_id
    }
    assert found == {
        gids["tcc"]: ("tcc", "01", 2, 2),
        gids["saga"]: ("saga", "02", 1, 3),
        gids["msg"]: ("msg", "00", 1, 4),
    }
    assert not {hold.gid for hold in reply.holds} & {gids["article"]}


async def test_many_holds_are_looked_at_piece_by_piece(services: Services) -> None:
    """One call looks at the oldest barrier rows only and says how far; the next one goes on from there."""
    offer, gids = await services.offer(), [new_gid() for _ in range(6)]
    for minutes, gid in enumerate(reversed(gids), start=600):
        await services.decr(offer, offer.item(), gid)
        long_ago = datetime.now(UTC).replace(tzinfo=None, microsecond=0) - timedelta(days=400, minutes=minutes)
        await services.rows("product", "UPDATE barrier SET create_time = :at WHERE gid = :gid", at=long_ago, gid=gid)
    sessions = session_factory(services.databases["product"])
    days_ms = 86_400_000

    async def look(newer_than_ms: int | None) -> Found:
        async with sessions() as session:
            return await stale_holds(
                session, older_than_ms=399 * days_ms, newer_than_ms=newer_than_ms, limit=100, scanned_max=3
            )

    first = await look(None)
    assert [hold.gid for hold in first.holds] == gids[:4]
    assert first.looked_until_ms == first.holds[-1].age_ms
    last = await look((first.looked_until_ms or 0) + 5_000)
    assert ([hold.gid for hold in last.holds], last.looked_until_ms) == (gids[3:], None)


# --- the order ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trans_type", ["saga", "msg"])
async def test_an_action_writes_the_order_once(services: Services, gid: str, trans_type: str) -> None:
    """Under its own id, the item's buyer and units, and the gid; the branch's decision says that it took effect."""
    offer = await services.offer()
    item = offer.item(quantity=2)
    for _ in range(2):
        order_id = await services.create(offer, item, gid, trans_type=trans_type)
        assert order_id == order_id_from_key(offer.product_id, item.order_id)
    assert await services.orders(gid) == [("confirmed", item.user_id, 2)]
    found = await services.order.GetOrderById(order_pb2.GetOrderByIdRequest(id=order_id))
    assert (found.sale_id, found.price_cents) == (offer.sale_id, 250)
    assert await services.decisions("order", gid) == ["confirm"]


@pytest.mark.parametrize("trans_type", ["saga", "msg"])
async def test_a_compensation_closes_the_order_of_its_own_gid(services: Services, gid: str, trans_type: str) -> None:
    """Once and for all: the action that comes again writes nothing. Another gid may write over the closed order."""
    offer, other = await services.offer(), new_gid()
    item = offer.item()
    await services.create(offer, item, gid, trans_type=trans_type)
    for _ in range(2):
        await services.create_revert(gid, trans_type=trans_type)
    assert await services.decisions("order", gid) == ["cancel"]
    with Fails(ABORTED, "compensated before"):
        await services.create(offer, item, gid, trans_type=trans_type)
    assert await services.orders(gid) == [("closed", item.user_id, 1)]
    await services.create(offer, item, other, trans_type=trans_type)
    await services.create_revert(gid, trans_type=trans_type)
    assert await services.orders(other) == [("confirmed", item.user_id, 1)]


@pytest.mark.parametrize("trans_type", ["saga", "msg"])
async def test_a_compensation_before_its_action_keeps_it_out(services: Services, gid: str, trans_type: str) -> None:
    """Also in a message, whose action refuses nothing else: its units are free again."""
    offer = await services.offer()
    await services.create_revert(gid, trans_type=trans_type)
    assert await services.barrier("order", gid) == EMPTY_COMPENSATION
    with Fails(ABORTED, "compensated before"):
        await services.create(offer, offer.item(), gid, trans_type=trans_type)
    assert await services.orders(gid) == []
    assert await services.decisions("order", gid) == []


async def test_a_saga_does_not_take_anothers_order(services: Services, gid: str) -> None:
    """An order that another gid has confirmed, or that came with other contents, is refused; nothing is left behind."""
    offer, other = await services.offer(), new_gid()
    item = offer.item()
    await services.create(offer, item, gid)
    with Fails(ABORTED, "ORDER_CONFLICT"):
        await services.create(offer, item, other)
    assert (await services.barrier("order", other), await services.decisions("order", other)) == ([], [])
    await services.create_revert(other)
    assert await services.orders(gid) == [("confirmed", item.user_id, 1)]
    await services.create_revert(gid)
    changed = product_pb2.Item(order_id=item.order_id, user_id=item.user_id, quantity=7, admitted_at_ms=5)
    with Fails(ABORTED, "ORDER_CONFLICT"):
        await services.create(offer, changed, new_gid())
    assert await services.orders(gid) == [("closed", item.user_id, 1)]


async def test_a_message_that_was_overtaken_is_not_refused(services: Services, gid: str) -> None:
    """Its coordinator would repeat it for ever: what another gid has confirmed stays, and a person is told."""
    offer, other = await services.offer(), new_gid()
    item = offer.item()
    await services.create(offer, item, gid)
    name = "order_confirm_overtaken_total"
    before = REGISTRY.get_sample_value(name) or 0
    await services.create(offer, item, other, trans_type="msg")
    assert await services.orders(gid) == [("confirmed", item.user_id, 1)]
    assert (REGISTRY.get_sample_value(name) or 0) - before == 1


async def test_an_order_that_makes_no_sense(services: Services, gid: str) -> None:
    """A saga is refused. A message cannot be, and tells; and it serves orders of a sale alone."""
    offer = await services.offer()
    nobodys = product_pb2.Item(order_id=b"x" * 16, quantity=1)
    with Fails(ABORTED, "INVALID_ORDER"):
        await services.create(offer, nobodys, gid)
    short = product_pb2.Item(order_id=b"short", user_id=1, quantity=1)
    with Fails(ABORTED, "order_id"):
        await services.create(offer, short, gid)
    with Fails(INVALID, "order_id"):
        await services.create(offer, short, gid, trans_type="msg")
    with Fails(INVALID, "dtm-trans_type"):
        request = order_pb2.AddOrderReq(userid=1, productid=offer.product_id, quantity=1)
        await services.order.CreateOrderDTM(request, metadata=called(gid, "msg", "01", "action"))
    assert await services.orders(gid) == []
