"""What the two articles' programs do wrong, each as a test of the pipeline: the contract first, then the original.

Every test runs the real path: a buyer's request or a record in Kafka, the worker, the coordinator, both services.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiokafka import AIOKafkaProducer
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from structlog.testing import capture_logs

from seckill.domain.order import Sale
from seckill.dtm import DtmClient, Refused, Tcc
from seckill.dtm.database import create_engine
from seckill.embedded import embedded_kafka
from seckill.messaging.lag import consumer_lag
from seckill.messaging.reading import read_topic
from seckill.product import tables
from seckill.settings import Settings
from seckill.wiring import open_dtm, with_values
from tests.servers import Servers, native
from tests.support.backbone import Backbone, open_backbone
from tests.support.originals import OURS, QUICK, TRY_TIMEOUT_MS, WAITING, Shop, buy, fields, saga_of
from tests.support.pipeline import Pipeline, open_pipeline
from tests.support.relays import relay_to
from tests.support.role_processes import RoleProcess, our_program
from tests.support.sides import Side, real_side

pytestmark = pytest.mark.slow

CONFIRMED, CLOSED = 1, 2
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

PATIENT: dict[str, dict[str, Any]] = {"dtm": {"try_timeout_ms": 10_000, "timeout_to_fail_s": 20}}
"""A Try that is kept waiting on purpose is not given up meanwhile."""


@pytest.fixture
async def pipeline(side: Side, tmp_path: Path) -> AsyncIterator[Pipeline]:
    async with open_pipeline(side, tmp_path) as opened:
        yield opened


@pytest.fixture
async def backbone(side: Side, tmp_path: Path) -> AsyncIterator[Backbone]:
    async with open_backbone(side, tmp_path) as opened:
        yield opened


@pytest.fixture
async def client(backbone: Backbone) -> AsyncIterator[DtmClient]:
    async with open_dtm(backbone.settings) as opened:
        yield opened


async def statuses(settings: Settings, gids: Sequence[str]) -> list[str]:
    """What the coordinator says of each transaction, once it has finished with all of them."""
    async with open_dtm(settings) as client, asyncio.timeout(30):
        while True:
            found = [await client.query(gid) for gid in gids]
            told = [each.status if each is not None else "unknown" for each in found]
            if not set(told) & {"prepared", "submitted", "aborting"}:
                return told
            await asyncio.sleep(0.1)


async def units(pipeline: Pipeline, sale: Sale) -> tuple[int, int, int]:
    """stock, frozen, sold"""
    row = await pipeline.backbone.read_sale(sale)
    assert row.stock + row.frozen + row.sold == row.initial
    return row.stock, row.frozen, row.sold


# --- the transaction -------------------------------------------------------------------------------------------------


async def test_a_failed_try_is_not_submitted(pipeline: Pipeline) -> None:
    """A transaction one of whose Tries has failed is aborted; the order confirms under another one.

    The original looks at a variable of the surrounding function instead of the Try's own error, takes every failed Try
    for a good one, and submits.
    """
    sale = await pipeline.backbone.open_sale(stock=5)
    pipeline.order.answers["CreateOrderCheck"] = [UNAVAILABLE]
    async with pipeline.worker():
        order_id = await pipeline.accepted(user_id=1, product_id=sale.product_id)
        assert await pipeline.end(order_id) == ("confirmed", "")
    failed, good = await pipeline.gids()
    assert await statuses(pipeline.settings, [failed, good]) == ["failed", "succeed"]
    for service in ("product", "order"):
        assert await pipeline.barrier(service, failed) == [("try", "try"), ("cancel", "cancel")]
        assert await pipeline.barrier(service, good) == [("try", "try"), ("confirm", "confirm")]
    assert await units(pipeline, sale) == (4, 0, 1)


async def test_try_reserves_and_not_only_reads(backbone: Backbone, client: DtmClient) -> None:
    """Of two Tries for the last unit the second is refused, though neither transaction has been decided.

    The original's Try reads the stock and leaves it there; both Confirms then take the same unit.
    """
    shop = await Shop.open(backbone, stock=1)
    stock, order = shop.tcc_branches()
    first = await Tcc.begin(client, await client.new_gid(), options=WAITING)
    second = await Tcc.begin(client, await client.new_gid(), options=WAITING)
    await first.call_branch(stock, fields(shop.product_id, 1), timeout_ms=TRY_TIMEOUT_MS)
    with pytest.raises(Refused):
        await second.call_branch(stock, fields(shop.product_id, 1), timeout_ms=TRY_TIMEOUT_MS)
    await second.abort()
    await first.call_branch(order, fields(7, shop.product_id), timeout_ms=TRY_TIMEOUT_MS)
    await first.submit()
    assert await shop.stock() == 0
    assert await shop.orders() == [(7, 1, CONFIRMED)]


async def test_cancel_without_try_adds_no_stock(pipeline: Pipeline) -> None:
    """A Cancel whose Try never arrived adds no unit: what a sale has to sell is never more than it was given.

    The original's Cancel adds one to the stock, whatever its Try has done.
    """
    sale = await pipeline.backbone.open_sale(stock=5)
    pipeline.product.lost["CheckProductStock"] = [UNAVAILABLE]
    async with pipeline.worker():
        order_id = await pipeline.accepted(user_id=1, product_id=sale.product_id)
        assert await pipeline.end(order_id) == ("confirmed", "")
    cancelled, good = await pipeline.gids()
    assert await pipeline.barrier("product", cancelled) == [("try", "cancel"), ("cancel", "cancel")]
    assert await pipeline.barrier("product", good) == [("try", "try"), ("confirm", "confirm")]
    assert await units(pipeline, sale) == (4, 0, 1)


async def test_a_compensation_closes_the_order_of_its_gid_not_the_users_newest(
    servers: Servers, tmp_path: Path
) -> None:
    """A saga that fails closes its own order, and leaves one that its buyer has made meanwhile alone.

    The original closes the newest order of the buyer, whichever saga made it.
    """
    async with (
        open_backbone(real_side(servers), tmp_path) as backbone,
        relay_to(backbone.settings.product.grpc) as relay,
        open_dtm(backbone.settings) as client,
    ):
        shop = await Shop.open(backbone, stock=1)
        relay.held["DecrStock"] = asyncio.Event()
        saga = await saga_of(
            client, shop, names=OURS, user_id=7, units=2, quantity=2, product_address=relay.address, options=QUICK
        )
        await saga.submit()
        await relay.until_called("DecrStock")
        await buy(client, shop, user_id=7, units=1)
        relay.held["DecrStock"].set()
        assert await statuses(backbone.settings, [saga.gid]) == ["failed"]
        assert await shop.orders() == [(7, 2, CLOSED), (7, 1, CONFIRMED)]


# --- the consumer ----------------------------------------------------------------------------------------------------


async def test_a_business_refusal_does_not_end_the_consumer(pipeline: Pipeline) -> None:
    """An order that the services refuse ends rejected, and the worker goes on with the next one.

    The original ends its process with the first transaction that fails, whatever the reason.
    """
    sale = await pipeline.backbone.open_sale(stock=2)
    await pipeline.backbone.query(
        "product", "UPDATE sale SET stock = 0, initial = 0 WHERE sale_id = :id", id=sale.sale_id
    )
    other = await pipeline.backbone.open_sale(stock=2)
    async with pipeline.worker() as worker:
        refused = await pipeline.accepted(user_id=1, product_id=sale.product_id)
        assert await pipeline.end(refused) == ("rejected", "SOLD_OUT")
        assert worker.task is not None
        assert not worker.task.done()
        good = await pipeline.accepted(user_id=1, product_id=other.product_id)
        assert await pipeline.end(good) == ("confirmed", "")


async def test_a_redelivered_record_does_not_order_twice(pipeline: Pipeline) -> None:
    """A record that is in the topic twice, and is then read again from the beginning, makes one order.

    The original has no identity for an order: every delivery makes another one and takes another unit.
    """
    settings = pipeline.settings
    sale = await pipeline.backbone.open_sale(stock=5, per_user_limit=5)
    async with pipeline.worker():
        first = await pipeline.accepted(user_id=1, product_id=sale.product_id)
        assert await pipeline.end(first) == ("confirmed", "")
        (record,) = await read_topic(settings.kafka, settings.kafka.topic)
        await publish(settings, record.key, record.value)
    again = with_values(settings, {"kafka": {"group": f"{settings.kafka.group}-again"}})
    async with pipeline.worker(again):
        last = await pipeline.accepted(user_id=2, product_id=sale.product_id)
        assert await pipeline.end(last) == ("confirmed", "")
        await until_consumed(again)
    assert len(await read_topic(settings.kafka, settings.kafka.topic)) == 3
    assert await pipeline.backbone.query("order", "SELECT user_id, status FROM orders ORDER BY 1") == [
        (1, CONFIRMED),
        (2, CONFIRMED),
    ]
    assert await units(pipeline, sale) == (3, 0, 2)


async def publish(settings: Settings, key: bytes | None, value: bytes | None) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap)
    await producer.start()
    try:
        await producer.send_and_wait(settings.kafka.topic, value, key=key)
    finally:
        await producer.stop()


async def until_consumed(settings: Settings, *, within_s: float = 30) -> None:
    async with asyncio.timeout(within_s):
        while sum([each.lag for each in await consumer_lag(settings.kafka)]):
            await asyncio.sleep(0.1)


async def test_records_in_memory_are_not_lost_in_a_crash(side: Side, tmp_path: Path) -> None:
    """Records that a worker has fetched and not finished when it is killed are carried by the next one.

    The original acknowledges a record when it puts it into a channel in memory; a crash loses the channel.
    """
    short = PATIENT | {"kafka": {"session_timeout_ms": 6_000}}
    async with open_pipeline(side, tmp_path, short) as pipeline:
        sale = await pipeline.backbone.open_sale(stock=30)
        pipeline.product.held["CheckProductStock"] = asyncio.Event()
        worker = RoleProcess(
            "worker", our_program("worker"), environment_of(pipeline.settings), tmp_path / "worker.log"
        )
        await worker.start()
        try:
            await worker.started()
            orders = [await pipeline.accepted(user_id=user, product_id=sale.product_id) for user in range(1, 31)]
            await pipeline.product.until_called("CheckProductStock")
            assert sum([each.lag for each in await consumer_lag(pipeline.settings.kafka)]) == 30
            del pipeline.product.held["CheckProductStock"]  # the calls that wait there end with their caller
            await worker.kill(0)
            ends = await asyncio.gather(*(pipeline.end(order_id) for order_id in orders))
            await until_consumed(pipeline.settings)
        finally:
            await worker.close()
        assert ends == [("confirmed", "")] * 30
        assert await units(pipeline, sale) == (0, 0, 30)
        assert await pipeline.backbone.query("order", "SELECT count(*), count(DISTINCT user_id) FROM orders") == [
            (30, 30)
        ]


def environment_of(settings: Settings) -> dict[str, str]:
    """What a worker's process needs to run on the test's servers."""
    values = {
        "REDIS__URL": settings.redis.url.get_secret_value(),
        "REDIS__RUN_ID_CHECK": str(settings.redis.run_id_check).lower(),
        "PRODUCT__GRPC": settings.product.grpc,
        "ORDER__GRPC": settings.order.grpc,
        "WORKER__OPS": "127.0.0.1:0",
    }
    for section, names in {
        "kafka": ("bootstrap", "topic", "dead_letter_topic", "group", "session_timeout_ms"),
        "dtm": ("grpc", "http", "timeout_to_fail_s", "retry_interval_s", "branch_timeout_s"),
    }.items():
        values |= {f"{section}__{name}".upper(): str(getattr(getattr(settings, section), name)) for name in names}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SECKILL")}
    return kept | {f"SECKILL__{key}": value for key, value in values.items()}


# --- the front -------------------------------------------------------------------------------------------------------


async def test_a_full_buffer_is_not_answered_with_success(side: Side, tmp_path: Path) -> None:
    """An order for which there is no room is answered 503 OVERLOADED, and every order that was answered 202 is carried.

    The original's buffer drops what does not fit, logs it, and tells the buyer that all is well.
    """
    async with open_pipeline(side, tmp_path, {"ledger": {"entries_max": 3}}) as pipeline:
        sale = await pipeline.backbone.open_sale(stock=20)
        answers = await asyncio.gather(
            *(pipeline.post(user_id=user, product_id=sale.product_id) for user in range(1, 11))
        )
        accepted = [document["order_id"] for status, document in answers if status == 202]
        assert len(accepted) == 3
        assert {(s, document["code"]) for s, document in answers if s != 202} == {(503, "OVERLOADED")}
        records = await read_topic(pipeline.settings.kafka, pipeline.settings.kafka.topic)
        assert sorted((record.key or b"").decode() for record in records) == sorted(accepted)
        async with pipeline.worker():
            assert [await pipeline.end(order_id) for order_id in accepted] == [("confirmed", "")] * 3
        assert await units(pipeline, sale) == (17, 0, 3)


async def test_a_failed_publish_is_not_answered_with_success(side: Side, tmp_path: Path) -> None:
    """With Kafka gone an order is answered 503 PENDING with its id; it stays in the ledger, which publishes it again.

    The original publishes in the background: the buyer has been told that all is well before the publish fails.
    """
    with own_kafka(side, tmp_path / "kafka") as (bootstrap, end):
        own = replace(side, kafka=bootstrap)
        over = {
            # The door would turn the repeat away, because the first publish is still waiting: not what is shown here.
            "front": {"publish_timeout_ms": 1_000, "drain_timeout_ms": 1_000, "publish_stalled_ms": 60_000},
            "kafka": {"request_timeout_ms": 2_000},
        }
        async with open_pipeline(own, tmp_path, over) as pipeline:
            sale = await pipeline.backbone.open_sale(stock=5)
            await pipeline.accepted(user_id=1, product_id=sale.product_id)
            await asyncio.to_thread(end)
            status, document = await pipeline.post(user_id=2, product_id=sale.product_id)
            assert (status, document["code"]) == (503, "PENDING")
            entries = await pipeline.backbone.ledger.entries(sale.product_id)
            assert document["order_id"] in {entry.order.order_id for entry in entries}
            again, repeated = await pipeline.post(user_id=2, product_id=sale.product_id)
            assert (again, repeated["code"]) == (409, "ALREADY_ORDERED")  # its unit stays taken, and once


@contextmanager
def own_kafka(side: Side, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """A broker of the test's own, and what ends it."""
    with ExitStack() as stack:
        if side.kind == "real":
            kafka = stack.enter_context(native.kafka_process(folder))
            yield kafka.bootstrap, kafka.kill
        else:
            yield stack.enter_context(embedded_kafka()), stack.close


# --- locks -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def rival(pipeline: Pipeline, *, isolation: str = "") -> AsyncIterator[AsyncConnection]:
    """A second connection to the product's database, in a transaction that is rolled back at the end."""
    url = pipeline.settings.product.database_url.get_secret_value()
    engine = create_engine(url, pool_size=1, lock_wait_s=3)
    try:
        async with engine.connect() as connection:
            if isolation:
                await connection.execution_options(isolation_level=isolation)
            await connection.begin()
            yield connection
            await connection.rollback()
    finally:
        await engine.dispose()


async def whole_transaction(pipeline: Pipeline, sale: Sale) -> None:
    """One order, under one gid: its Try has taken effect once and completely."""
    (gid,) = await pipeline.gids()
    for service in ("product", "order"):
        assert await pipeline.barrier(service, gid) == [("try", "try"), ("confirm", "confirm")]
    assert await pipeline.backbone.query("product", "SELECT count(*) FROM stock_reservation") == [(1,)]
    stock, frozen, sold = await units(pipeline, sale)
    assert (frozen, sold) == (0, 1)
    assert stock == sale.stock - 1


async def until_retried(logs: Sequence[Any], *, within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not any(event["event"] == "transaction_retried" for event in logs):
            await asyncio.sleep(0.02)


async def test_a_lock_timeout_is_retried_as_a_whole_transaction(side: Side, tmp_path: Path) -> None:
    """A branch that gets no lock in time (1205, SQLITE_BUSY) begins anew with its barrier, and succeeds.

    The original loses the order. What 1205 undoes is one statement: to go on from there would keep a barrier row whose
    work was not done.
    """
    async with open_pipeline(side, tmp_path, PATIENT) as pipeline:
        await impatient_product(pipeline)
        sale = await pipeline.backbone.open_sale(stock=5)
        before = await innodb(pipeline, "lock_timeouts")
        async with pipeline.worker():
            with capture_logs() as logs:
                async with rival(pipeline) as other:
                    await other.execute(
                        select(tables.sale).where(tables.sale.c.sale_id == sale.sale_id).with_for_update()
                    )
                    order_id = await pipeline.accepted(user_id=1, product_id=sale.product_id)
                    await until_retried(logs)
                assert await pipeline.end(order_id) == ("confirmed", "")
        if side.kind == "real":
            assert await innodb(pipeline, "lock_timeouts") > before
        await whole_transaction(pipeline, sale)


async def impatient_product(pipeline: Pipeline) -> None:
    """The product service again, waiting for locks no longer than a second."""
    backbone = pipeline.backbone
    await backbone.stop("product")
    backbone.settings = with_values(backbone.settings, {"product": {"lock_wait_s": 1}})
    await backbone.start("product")


async def test_a_deadlock_is_retried_as_a_whole_transaction(servers: Servers, tmp_path: Path) -> None:
    """A branch that MariaDB ends to resolve a deadlock (1213) begins anew with its barrier, and succeeds.

    The original loses the order: of its orders of one product, measured, one in twelve. SQLite knows no deadlocks, as
    its transactions take their one lock at the beginning.
    """
    async with open_pipeline(real_side(servers), tmp_path, PATIENT) as pipeline:
        sale = await pipeline.backbone.open_sale(stock=5)
        before = await innodb(pipeline, "lock_deadlocks")
        async with pipeline.worker():
            with capture_logs() as logs:
                async with rival(pipeline, isolation="REPEATABLE READ") as other:
                    await keep_reservations_out(other)
                    order_id = await pipeline.accepted(user_id=1, product_id=sale.product_id)
                    await until_waiting(pipeline)  # the branch has locked the sale, and cannot write its reservation
                    await other.execute(
                        update(tables.sale).where(tables.sale.c.sale_id == sale.sale_id).values(updated_at_ms=1)
                    )
                    await until_retried(logs)
                assert await pipeline.end(order_id) == ("confirmed", "")
        assert await innodb(pipeline, "lock_deadlocks") > before
        await whole_transaction(pipeline, sale)


async def keep_reservations_out(connection: AsyncConnection) -> None:
    """Locks the gap that every new reservation would go to. Much is written besides, so that of the two it is the
    other transaction that the server ends."""
    await connection.execute(select(tables.stock_reservation).with_for_update())
    row = {"sale_id": 0, "contents": bytes(32), "created_at_ms": 0}
    rows = [row | {"change_id": f"rival-{number}"} for number in range(500)]
    await connection.execute(insert(tables.sale_change), rows)


async def until_waiting(pipeline: Pipeline, *, within_s: float = 10) -> None:
    """Until a transaction of the product's database waits for a lock."""
    waiting = (
        "SELECT count(*) FROM information_schema.innodb_trx t JOIN information_schema.processlist p"
        " ON p.id = t.trx_mysql_thread_id WHERE t.trx_state = 'LOCK WAIT' AND p.db = database()"
    )
    async with asyncio.timeout(within_s):
        while await pipeline.backbone.query("product", waiting) == [(0,)]:
            await asyncio.sleep(0.2)  # the server looks anew only if it was left alone for 0.1 s


async def innodb(pipeline: Pipeline, counter: str) -> int:
    """A counter of the real server; 0 on SQLite."""
    if pipeline.settings.product.database_url.get_secret_value().startswith("sqlite"):
        return 0
    rows = await pipeline.backbone.query(
        "product", "SELECT count FROM information_schema.innodb_metrics WHERE name = :name", name=counter
    )
    return int(str(rows[0][0]))
