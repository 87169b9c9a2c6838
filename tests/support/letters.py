"""A desk for dead letters beside running services; what makes letters, and what shows what became of them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio
from aiokafka import TopicPartition
from pydantic import SecretStr

from consumers.seckill_rmq import SeckillCarrier
from seckill.dlq.desk import LetterDesk
from seckill.dlq.index import Taken
from seckill.dlq.model import By, Done, Filter, Letter
from seckill.domain.errors import BranchFailed, InvalidOrder
from seckill.domain.order import Order, Sale
from seckill.domain.reasons import DeadLetterReason
from seckill.messaging.dead_letters import DeadLetters
from seckill.messaging.dead_letters import Letter as Why
from seckill.messaging.delivery import Arrival, Delivered
from seckill.messaging.envelope import Headers, Record, decode, encode
from seckill.messaging.offsets import PartitionProgress
from seckill.messaging.publisher import Publisher, open_publisher
from seckill.messaging.reading import read_topic
from seckill.product.decide import State
from seckill.settings import Settings
from seckill.wiring import open_carrier, with_values
from seckill.wiring.dead_letters import open_letter_desk
from tests.support.backbone import Backbone, open_backbone
from tests.support.sides import Side, embedded_side

FAILED_MS = 1_700_000_000_000

_offsets = itertools.count(1)

ANNA = By("anna", "the product service is mended")


@dataclass
class Letters:
    """The desk, and the worker's part in making letters and in carrying what is replayed."""

    backbone: Backbone
    settings: Settings
    desk: LetterDesk
    carrier: SeckillCarrier
    publisher: Publisher

    # --- making letters ----------------------------------------------------------------------------------------------

    async def bury(self, record: Record, *, reason: DeadLetterReason = DeadLetterReason.BRANCH_FAILED) -> None:
        """As the worker does: the letter, then the ledger entry is parked."""
        kafka = self.settings.kafka
        error: Exception = BranchFailed("product.Product/CheckProductStock", "INTERNAL", "it is broken")
        orders: list[Order] = []
        try:
            orders = decode(record)
        except InvalidOrder as invalid:
            error, reason = invalid, invalid.dead_letter_reason
        dead_letters = DeadLetters(self.publisher, topic=kafka.dead_letter_topic, group=kafka.group)
        await dead_letters.bury(record, Why(reason, error, attempts=3, first_failed_ms=FAILED_MS))
        if reason is not DeadLetterReason.ID_REUSED:
            await self.backbone.ledger.park(orders)

    async def buried(self, order: Order, *, reason: DeadLetterReason = DeadLetterReason.BRANCH_FAILED) -> Letter:
        """An order that failed, and is a dead letter that the index knows."""
        await self.bury(record_of(order), reason=reason)
        await self.index()
        return (await self.desk.find(Filter(order_id=order.order_id)))[0]

    async def unreadable(self, value: bytes = b"{") -> Letter:
        """A record without an order that is a dead letter that the index knows."""
        await self.bury(record(value))
        await self.index()
        return (await self.desk.find(Filter(limit=1)))[0]

    async def index(self) -> list[Taken]:
        """Every letter of the topic is taken in, as often as this is called."""
        return await self.desk.take(await read_topic(self.settings.kafka, self.settings.kafka.dead_letter_topic))

    async def put(self, value: bytes | None, headers: Headers = ()) -> None:
        """As somebody else may write to the topic."""
        await self.publisher.send(self.settings.kafka.dead_letter_topic, key=b"k", value=value, headers=headers)

    # --- what became of them -----------------------------------------------------------------------------------------

    async def published(self) -> list[Record]:
        return await read_topic(self.settings.kafka, self.settings.kafka.topic)

    async def carry(self, records: Sequence[Record] | None = None) -> None:
        """Everything in the main topic is carried, as often as this is called; what holds no order is buried."""
        delivered = []
        for record in await self.published() if records is None else records:
            try:
                orders = decode(record)
            except InvalidOrder as error:
                await self.carrier.bury(record, error)
                continue
            arrival = Arrival(TopicPartition(record.topic, record.partition), PartitionProgress(), record)
            delivered += [Delivered(order, record, arrival, alone=len(orders) == 1) for order in orders]
        if delivered:
            await self.carrier.carry(delivered)

    async def told(self, order: Order) -> str:
        """What the buyer reads."""
        found = (await self.backbone.ledger.results([order.order_id])).get(order.order_id)
        return " ".join(filter(None, (found.status.value, found.reason))) if found is not None else ""

    async def left(self, sale: Sale) -> tuple[int, int, int]:
        """Units left in Redis, in the database, and entries in the ledger."""
        view = await self.backbone.book.read(sale.product_id)
        assert view is not None
        stats = await self.backbone.ledger.stats(sale.product_id)
        return view.stock, (await self.backbone.read_sale(sale)).stock, stats.entries

    async def hold(self, order: Order) -> None:
        """As if a transaction that has not ended held the order."""
        values = {
            "order_id": order.key, "product_id": order.product_id, "sale_id": order.sale_id, "user_id": order.user_id,
            "quantity": order.quantity, "state": State.FROZEN.value, "reason": "", "gid": "g1", "branch_id": "01",
            "admitted_at_ms": 1, "created_at_ms": 1, "updated_at_ms": 1,
        }  # fmt: skip
        marks = ", ".join(f":{name}" for name in values)
        row = f"INSERT INTO stock_reservation ({', '.join(values)}) VALUES ({marks})"
        await self.backbone.query("product", row, **values)
        await self._move(order, "stock", "frozen")

    async def end_hold(self, order: Order, *, sold: bool) -> None:
        """The transaction that held the order has ended."""
        state = State.SOLD if sold else State.RELEASED
        row = "UPDATE stock_reservation SET state = :state WHERE order_id = :key"
        await self.backbone.query("product", row, key=order.key, state=state.value)
        await self._move(order, "frozen", "sold" if sold else "stock")

    async def _move(self, order: Order, source: str, target: str) -> None:
        units = f"UPDATE sale SET {source} = {source} - :units, {target} = {target} + :units WHERE sale_id = :id"
        await self.backbone.query("product", units, units=order.quantity, id=order.sale_id)

    async def replay(self, letter: Letter, *, edit: bytes | None = None, force: bool = False) -> Done:
        return await self.desk.replay(letter, ANNA, edit=edit, force=force)

    async def discard(self, letter: Letter, *, force: bool = False) -> Done:
        return await self.desk.discard(letter, By("bert", "the buyer has called"), force=force)


def record_of(order: Order, *, offset: int = 0) -> Record:
    """As the main topic held it."""
    return record(encode(order), key=order.order_id.encode(), offset=offset)


def record(value: bytes | None, *, key: bytes | None = None, offset: int = 0) -> Record:
    """One that was read from the main topic and failed. Each arrived at an offset of its own."""
    return Record("orders", 0, offset or next(_offsets), FAILED_MS, key, value)


@asynccontextmanager
async def open_letters(backbone: Backbone, side: Side, folder: Path) -> AsyncIterator[Letters]:
    """With topics and an index of its own, beside services that others may use as well."""
    run = uuid4().hex[:8]
    names = {"topic": f"orders-{run}", "dead_letter_topic": f"orders-{run}-dlt", "group": f"group-{run}"}
    quick = {"session_timeout_ms": 3_000}  # what a stopped member of a group is waited for
    index = {"database_url": SecretStr(await side.database("dead_letters", folder)), "replays_max": 2}
    settings = with_values(backbone.settings, {"kafka": names | quick, "dead_letters": index})
    await side.create_topics(names["topic"], names["dead_letter_topic"])
    async with AsyncExitStack() as stack:
        desk = await stack.enter_async_context(open_letter_desk(settings))
        carrier, _ = await stack.enter_async_context(open_carrier(settings))
        assert isinstance(carrier, SeckillCarrier)
        publisher = await stack.enter_async_context(open_publisher(settings.kafka))
        yield Letters(replace(backbone, settings=settings), settings, desk, carrier, publisher)


# --- fixtures: beside stand-ins, unless a module says otherwise by a fixture `letters_side` of its own ----------------


@pytest.fixture(scope="module")
def letters_side(kafka_server: str, redis_server: str) -> Side:
    return embedded_side(kafka_server, redis_server)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def letter_services(letters_side: Side, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Backbone]:
    async with open_backbone(letters_side, tmp_path_factory.mktemp("services")) as backbone:
        yield backbone


@pytest_asyncio.fixture(loop_scope="module")
async def letters(letter_services: Backbone, letters_side: Side, tmp_path: Path) -> AsyncIterator[Letters]:
    async with open_letters(letter_services, letters_side, tmp_path) as opened:
        yield opened
