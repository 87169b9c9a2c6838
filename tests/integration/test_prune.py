"""Pruning: what nothing can need any more goes, everything undecided stays, and the stores agree at every moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
import redis.asyncio
from aiokafka import TopicPartition
from pydantic import SecretStr

from consumers.seckill_rmq import SeckillCarrier
from seckill.audit.reading import read_facts
from seckill.audit.rules import Verdict, judge
from seckill.audit.stores import open_stores
from seckill.domain.order import Order, Sale
from seckill.domain.outcomes import OrderStatus
from seckill.messaging.delivery import Arrival, Delivered
from seckill.messaging.envelope import Record, encode
from seckill.messaging.offsets import PartitionProgress
from seckill.messaging.publisher import open_publisher
from seckill.messaging.reading import read_topic
from seckill.prune import Plan, Pruned, prune
from seckill.settings import Settings
from seckill.wire import product_pb2, product_pb2_grpc
from seckill.wiring import open_carrier, open_channel, open_dtm, with_values
from tests.support.backbone import Backbone, open_backbone
from tests.support.retry_records import put_off, tiers_of
from tests.support.sides import Side
from tests.support.statuses import Fails

DAY_MS = 86_400_000
KEPT_TABLES = ("barrier", "branch_reply", "decision")


@dataclass(frozen=True)
class Shop:
    """A pipeline with a dead-letter database, and what these tests ask of it."""

    backbone: Backbone
    carrier: SeckillCarrier
    settings: Settings

    async def sold_sale(self, *, buyers: int = 6, stock: int = 6) -> tuple[Sale, list[Order]]:
        """A sale whose orders have all been carried, in two groups."""
        sale = await self.backbone.open_sale(stock=stock)
        orders = [await self.backbone.admit(sale, user) for user in range(1, buyers + 1)]
        await self.carry(orders[: buyers // 2])
        await self.carry(orders[buyers // 2 :])
        return sale, orders

    async def carry(self, orders: Sequence[Order]) -> None:
        place = TopicPartition("orders", 0)
        for_each = [
            Record("orders", 0, offset, 1, order.order_id.encode(), encode(order))
            for offset, order in enumerate(orders)
        ]
        await self.carrier.carry(
            [
                Delivered(order, record, Arrival(place, PartitionProgress(), record))
                for order, record in zip(orders, for_each, strict=True)
            ]
        )

    async def end(self, sale: Sale) -> None:
        """Closes the sale, and lets it have ended long ago."""
        request = product_pb2.SetSaleStateRequest(sale_id=sale.sale_id, state="closed")
        await self.backbone.sales.SetSaleState(request)
        await self.backbone.book.set_state(sale, "closed")
        await self.query("product", "UPDATE sale SET ends_at_ms = 2 WHERE sale_id = :id", id=sale.sale_id)

    async def query(self, service: str, statement: str, **values: object) -> list[tuple[object, ...]]:
        if service == "dead_letters":
            return await Backbone.query(self.backbone_with_letters, service, statement, **values)
        return await self.backbone.query(service, statement, **values)

    @property
    def backbone_with_letters(self) -> Backbone:
        return replace(self.backbone, settings=self.settings)

    async def count(self, service: str, table: str, where: str = "1 = 1", **values: object) -> int:
        [(count,)] = await self.query(service, f"SELECT count(*) FROM {table} WHERE {where}", **values)
        assert isinstance(count, int)
        return count

    async def everything(self) -> dict[str, list[tuple[object, ...]]]:
        tables = [("product", "stock_reservation"), ("product", "sale"), ("order", "orders")]
        tables += [(service, table) for service in ("product", "order") for table in KEPT_TABLES]
        tables += [("coordinator", "coordinator_transaction"), ("coordinator", "coordinator_branch")]
        found = {}
        for service, table in tables:
            found[f"{service}.{table}"] = sorted(await self.query(service, f"SELECT * FROM {table}"), key=repr)
        return found

    async def assert_nothing_sold_since(self, before: dict[str, list[tuple[object, ...]]]) -> None:
        after = await self.everything()
        for table in ("product.sale", "product.stock_reservation", "order.orders"):
            assert after[table] == before[table]

    async def letters(self) -> list[Record]:
        return await read_topic(self.settings.kafka, self.settings.kafka.dead_letter_topic)

    async def prune(self, *, piece: int = 2, dry_run: bool = False) -> Pruned:
        """As it would run tomorrow: everything that has happened is older than the retention."""
        now_ms = int(time.time() * 1000)
        return await prune(self.settings, Plan(now_ms + DAY_MS, now_ms, piece=piece, pause_ms=0, dry_run=dry_run))

    async def audit(self) -> Verdict:
        async with open_stores(self.settings) as stores:
            return judge(await read_facts(stores))

    async def forget(self, sale: Sale, what: str = "") -> None:
        """As if Redis had lost keys of the product, or let them expire."""
        async with redis.asyncio.from_url(self.settings.redis.url.get_secret_value()) as client:
            keys = [key async for key in client.scan_iter(match=f"*{{{sale.product_id}}}*{what}*")]
            assert keys
            await client.delete(*keys)


@pytest.fixture
async def shop(side: Side, tmp_path: Path) -> AsyncIterator[Shop]:
    async with AsyncExitStack() as stack:
        backbone = await stack.enter_async_context(open_backbone(side, tmp_path, own_coordinator=True))
        url = SecretStr(await side.database("dead_letters", tmp_path))
        settings = with_values(backbone.settings, {"dead_letters": {"database_url": url}})
        carrier, _ = await stack.enter_async_context(open_carrier(settings))
        assert isinstance(carrier, SeckillCarrier)
        yield Shop(backbone, carrier, settings)


# --- what goes -------------------------------------------------------------------------------------------------


async def test_a_closed_sale_goes_as_a_whole(shop: Shop) -> None:
    """Reservations, barriers, replies, decisions and finished transactions are gone; orders and counters stay."""
    sale, orders = await shop.sold_sale(buyers=6, stock=6)
    await shop.end(sale)
    done = await shop.prune()
    assert (done.sales, done.kept) == ([sale.sale_id], [])
    assert done.rows["product.stock_reservation"] == len(orders)
    left = await shop.everything()
    assert {name for name, rows in left.items() if rows} == {"product.sale", "order.orders"}
    assert len(left["order.orders"]) == len(orders)
    row = await shop.backbone.read_sale(sale)
    assert (row.initial, row.stock, row.sold, row.state) == (6, 0, 6, "closed")
    verdict = await shop.audit()
    assert verdict.holds, verdict.breaches
    assert verdict.pruned_sales == 1
    assert not (await shop.prune()).rows


async def test_an_order_of_a_pruned_sale_is_never_sold_again(shop: Shop) -> None:
    """Its record, come again from wherever, is refused and set aside when no store remembers how it ended."""
    sale, orders = await shop.sold_sale()
    await shop.end(sale)
    await shop.prune()
    await shop.forget(sale)
    before = await shop.everything()
    await shop.carry(orders[:3])
    await shop.assert_nothing_sold_since(before)
    assert await shop.backbone.ledger.results([order.order_id for order in orders[:3]]) == {}
    letters = await shop.letters()
    assert sorted(letter.key or b"" for letter in letters) == sorted(order.order_id.encode() for order in orders[:3])
    assert {dict(letter.headers)["seckill-dlq-reason"] for letter in letters} == {b"BRANCH_FAILED"}


async def test_an_order_of_a_pruned_sale_is_told_the_same_end_again(shop: Shop) -> None:
    """While Redis remembers the sale, an order whose result has expired is known to have been confirmed."""
    sale, orders = await shop.sold_sale()
    await shop.end(sale)
    await shop.prune()
    await shop.forget(sale, "result")
    before = await shop.everything()
    await shop.carry(orders[:3])
    await shop.assert_nothing_sold_since(before)
    told = await shop.backbone.ledger.results([order.order_id for order in orders[:3]])
    assert {result.status for result in told.values()} == {OrderStatus.CONFIRMED}
    assert len(told) == 3
    assert await shop.letters() == []


async def test_a_pruned_sale_takes_no_rejection_and_no_change(shop: Shop) -> None:
    """Neither `rejected` over what may have been sold, nor another state, nor more units."""
    sale, orders = await shop.sold_sale()
    await shop.end(sale)
    await shop.prune()
    item = product_pb2.Item(order_id=orders[0].key, user_id=1, quantity=1)
    reject = product_pb2.RejectReservationsRequest(
        product_id=sale.product_id, sale_id=sale.sale_id, reason="DISCARDED", items=[item]
    )
    async with open_channel(shop.settings.product.grpc) as channel:
        with Fails(grpc.StatusCode.FAILED_PRECONDITION, "pruned"):
            await product_pb2_grpc.ProductStub(channel).RejectReservations(reject)
    for state in ("open", "closed"):
        with Fails(grpc.StatusCode.FAILED_PRECONDITION, "pruned"):
            await shop.backbone.sales.SetSaleState(product_pb2.SetSaleStateRequest(sale_id=sale.sale_id, state=state))
    with Fails(grpc.StatusCode.FAILED_PRECONDITION, "pruned"):
        await shop.backbone.sales.UpdateSale(
            product_pb2.UpdateSaleRequest(change_id=uuid4().hex, sale_id=sale.sale_id, stock_delta=1)
        )
    assert await shop.count("product", "stock_reservation") == 0


async def test_units_of_a_products_own_stock_are_pruned_with_their_gid(shop: Shop) -> None:
    """What callers that know nothing of sales have reserved goes once it has ended, and the stock stays."""
    sale, _ = await shop.sold_sale()
    await shop.query("product", "UPDATE product SET stock = 9 WHERE product_id = :id", id=sale.product_id)
    request = product_pb2.UpdateProductStockRequest(product_id=sale.product_id, num=2)
    gid, frozen_gid = uuid4().hex, uuid4().hex
    async with open_channel(shop.settings.product.grpc) as channel:
        stub = product_pb2_grpc.ProductStub(channel)
        await stub.CheckProductStock(request, metadata=branch("try", gid))
        await stub.UpdateProductStock(request, metadata=branch("confirm", gid))
        await stub.CheckProductStock(request, metadata=branch("try", frozen_gid))
    await shop.prune()
    assert await shop.query("product", "SELECT gid FROM stock_reservation WHERE sale_id = 0") == [(frozen_gid,)]
    assert await shop.query("product", "SELECT stock FROM product WHERE product_id = :id", id=sale.product_id) == [(5,)]
    assert await shop.count("product", "decision", "gid = :gid", gid=gid) == 0


def branch(op: str, gid: str) -> tuple[tuple[str, str], ...]:
    return (("dtm-gid", gid), ("dtm-trans_type", "tcc"), ("dtm-branch_id", "01"), ("dtm-op", op))


# --- what stays ------------------------------------------------------------------------------------------------


async def test_an_open_sale_keeps_its_reservations_and_their_decisions(shop: Shop) -> None:
    """Barriers and replies of its ended transactions go, and the audit holds as before."""
    sale, orders = await shop.sold_sale()
    done = await shop.prune()
    assert (done.sales, done.kept) == ([], [])
    assert await shop.count("product", "stock_reservation") == len(orders)
    for service in ("product", "order"):
        assert [await shop.count(service, table) for table in KEPT_TABLES] == [0, 0, 2]
    await shop.carry(orders)  # and a record that comes again still changes nothing
    row = await shop.backbone.read_sale(sale)
    assert (row.frozen, row.sold) == (0, 6)
    verdict = await shop.audit()
    assert verdict.holds, verdict.breaches


async def test_what_is_frozen_keeps_everything_of_its_gid(shop: Shop) -> None:
    """Its reservations, barrier, reply, and even a decision: nothing of an undecided order goes."""
    sale, _ = await shop.sold_sale()
    new = await shop.backbone.admit(await shop.backbone.open_sale(stock=1), 1)
    gid = uuid4().hex
    request = product_pb2.UpdateProductStockRequest(
        product_id=new.product_id, sale_id=new.sale_id,
        items=[product_pb2.Item(order_id=new.key, user_id=1, quantity=1, admitted_at_ms=1)],
    )  # fmt: skip
    async with open_channel(shop.settings.product.grpc) as channel:
        await product_pb2_grpc.ProductStub(channel).CheckProductStock(request, metadata=branch("try", gid))
    for service in ("product", "order"):
        await shop.query(service, "INSERT INTO decision VALUES (:gid, '01', 'confirm', 1)", gid=gid)
    await shop.end(sale)
    await shop.end(Sale(new.sale_id, new.product_id, "", 1, 2, 1, 0, "open", 1, 1, 0, 0, 1))
    done = await shop.prune()
    assert done.sales == [sale.sale_id]
    assert [(each.sale_id, each.reason) for each in done.kept] == [(new.sale_id, "1 of its orders have not ended")]
    left = {
        name: await shop.count("product", name, "gid = :gid", gid=gid) for name in (*KEPT_TABLES, "stock_reservation")
    }
    assert left == {"barrier": 1, "branch_reply": 1, "decision": 1, "stock_reservation": 1}
    assert await shop.count("order", "decision", "gid = :gid", gid=gid) == 1


async def test_an_unfinished_transaction_keeps_what_its_branches_know(shop: Shop) -> None:
    """While the coordinator may still call a branch, the branch must know what it did."""
    gid = uuid4().hex
    async with open_dtm(shop.settings) as client:
        await client.prepare(gid)
    for service in ("product", "order"):
        await shop.query(service, "INSERT INTO decision VALUES (:gid, '01', 'cancel', 1)", gid=gid)
    done = await shop.prune()
    assert not done.rows
    assert await shop.count("coordinator", "coordinator_transaction", "gid = :gid", gid=gid) == 1
    for service in ("product", "order"):
        assert await shop.count(service, "decision") == 1


async def test_a_sale_with_records_in_the_topic_stays(shop: Shop) -> None:
    """A consumer that is set back would read its orders again, so their ends must be there to refuse them."""
    sale, orders = await shop.sold_sale()
    async with open_publisher(shop.settings.kafka) as publisher:
        await publisher.publish(orders[0])
    await shop.end(sale)
    done = await shop.prune()
    assert done.sales == []
    assert [each.sale_id for each in done.kept] == [sale.sale_id]
    assert "topic still holds records" in done.kept[0].reason
    assert await shop.count("product", "stock_reservation") == len(orders)


async def test_a_sale_with_ledger_entries_stays(shop: Shop) -> None:
    """An admitted order that was never carried is published again: its sale must be there."""
    sale, _ = await shop.sold_sale(buyers=4, stock=6)
    await shop.backbone.admit(sale, 99)
    await shop.end(sale)
    assert [each.reason for each in (await shop.prune()).kept] == ["the ledger in Redis holds 1 of its orders"]


async def test_a_sale_with_waiting_letters_stays(shop: Shop) -> None:
    """Until an operator has replayed or discarded a letter, its order has not ended."""
    sale, _ = await shop.sold_sale()
    await shop.query(
        "dead_letters",
        "INSERT INTO letter (subject, sale_id, state, reason, record_topic, record_partition, record_offset,"
        " letter_partition, letter_offset, first_failed_ms, last_failed_ms, attempts, created_ms, updated_ms)"
        " VALUES ('1-0', :sale_id, 'new', 'UNEXPECTED', 't', 0, 0, 0, 0, 1, 1, 1, 1, 1)",
        sale_id=sale.sale_id,
    )
    await shop.end(sale)
    assert [each.reason for each in (await shop.prune()).kept] == ["dead letters of it wait for an operator"]
    await shop.query("dead_letters", "UPDATE letter SET state = 'resolved'")
    assert (await shop.prune()).sales == [sale.sale_id]


async def test_rows_of_orders_with_a_letter_stay(shop: Shop) -> None:
    """A letter can be replayed for ever, and what came past the front would find another sale: its end stays."""
    sale, orders = await shop.sold_sale()
    async with open_publisher(shop.settings.kafka) as publisher:
        topic = shop.settings.kafka.dead_letter_topic
        await publisher.send(topic, key=orders[2].order_id.encode(), value=encode(orders[2]), headers=())
    await shop.end(sale)
    assert (await shop.prune()).sales == [sale.sale_id]
    assert await shop.query("product", "SELECT order_id FROM stock_reservation") == [(orders[2].key,)]
    verdict = await shop.audit()
    assert verdict.holds, verdict.breaches


async def test_rows_of_orders_in_a_retry_topic_stay(shop: Shop) -> None:
    """Retry topics keep their records for ever, and a group can be set back: the order's end stays."""
    retrying = with_values(shop.settings, {"retry": {"topic_delays_ms": (5_000,)}})
    shop = replace(shop, settings=retrying)
    sale, orders = await shop.sold_sale()
    await put_off(retrying, [orders[2]], tiers_of(retrying)[0])
    await shop.end(sale)
    assert (await shop.prune()).sales == [sale.sale_id]
    assert await shop.query("product", "SELECT order_id FROM stock_reservation") == [(orders[2].key,)]


# --- how it goes -----------------------------------------------------------------------------------------------


async def test_a_dry_run_counts_and_changes_nothing(shop: Shop) -> None:
    """What it counts is what then goes, but for decisions whose reservations go first."""
    sale, _ = await shop.sold_sale()
    await shop.end(sale)
    before = await shop.everything()
    counted = await shop.prune(dry_run=True)
    assert await shop.everything() == before
    done = await shop.prune()
    assert counted.sales == done.sales == [sale.sale_id]
    assert done.rows.pop("product.decision") == 2
    counted.rows.pop("product.decision", None)
    assert counted.rows == done.rows


async def test_a_run_that_is_cut_off_leaves_stores_that_agree(shop: Shop) -> None:
    """Wherever it ends, the audit holds, and the next run finishes what it began."""
    sale, orders = await shop.sold_sale(buyers=8, stock=8)
    await shop.end(sale)
    for _ in range(12):
        now_ms = int(time.time() * 1000)
        running = asyncio.create_task(prune(shop.settings, Plan(now_ms + DAY_MS, now_ms, piece=1, pause_ms=60_000)))
        before = await shop.everything()
        async with asyncio.timeout(20):
            while await shop.everything() == before and not running.done():
                await asyncio.sleep(0.02)
        finished = running.done()
        running.cancel()
        await asyncio.wait({running})
        verdict = await shop.audit()
        assert verdict.holds, verdict.breaches
        if finished:
            break
    await shop.prune()
    left = await shop.everything()
    assert {name for name, rows in left.items() if rows} == {"product.sale", "order.orders"}
    assert len(left["order.orders"]) == len(orders)
