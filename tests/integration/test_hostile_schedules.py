"""Schedules that once broke a rule, or that nothing else tries: each test's docstring is the schedule."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import grpc
import pytest

from consumers.seckill_rmq import SeckillCarrier
from seckill.admission.gate import AdmissionGate
from seckill.checkout.late import LateAdmission
from seckill.checkout.reservations import Reservations
from seckill.domain.errors import AdmissionUnavailable, UnreadableRecord
from seckill.domain.order import Order, Sale, order_id_from_key
from seckill.domain.outcomes import Admission, Admitted, OrderStatus, Refused
from seckill.domain.reasons import DeadLetterReason, Refusal
from seckill.front.product_client import ProductClient
from seckill.messaging.dead_letters import DeadLetters, Letter
from seckill.messaging.envelope import Record
from seckill.messaging.publisher import open_publisher
from seckill.messaging.reading import read_topic
from tests.integration.test_carrier import CONFIRMED, REJECTED, carry, free_order, letters, results, until_free
from tests.support.backbone import Backbone
from tests.support.branch_calls import branch_calls
from tests.support.redis_servers import raw_redis


@pytest.fixture
async def reservations(backbone: Backbone) -> AsyncIterator[Reservations]:
    address = backbone.settings.product.grpc
    async with grpc.aio.insecure_channel(address) as channel:
        yield Reservations(channel, address=address, timeout_ms=3_000)


class RefusedOnce:
    """A gate whose first answer was given before units came back: it refuses, though Redis would now admit."""

    def __init__(self, gate: AdmissionGate, code: Refusal) -> None:
        self._gate = gate
        self._code = code
        self._asked = 0

    async def admit_late(self, orders: list[Order]) -> list[Admission]:
        self._asked += 1
        return [Refused(self._code) for _ in orders] if self._asked == 1 else await self._gate.admit_late(orders)


def late_through(gate: object, backbone: Backbone, reservations: Reservations) -> LateAdmission:
    """Late admission whose gate is one of the above."""

    async def on_offer(*_: int) -> bool:
        return False  # Redis has lost no sale here

    return LateAdmission(gate, reservations, doubt=backbone.ledger.doubt, on_offer=on_offer)  # type: ignore[arg-type]


async def stock_in_redis(backbone: Backbone, sale: Sale) -> int:
    view = await backbone.book.read(sale.product_id)
    assert view is not None
    assert view.sale_id == sale.sale_id
    return view.stock


# --- orders past the front -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [False, True])
async def test_a_late_refusal_that_another_worker_overtook_gives_the_unit_back(
    backbone: Backbone, carrier: SeckillCarrier, reservations: Reservations, named: bool
) -> None:
    """A direct order is delivered twice: worker 1 is refused SOLD_OUT, units come back, worker 2 admits the order and
    is killed, worker 1 writes its refusal. The ledger then brings worker 2's entry back.

    The row says rejected, so that is what is told; the entry goes, and its unit returns to Redis, since SQL kept it.
    """
    sale = await backbone.open_sale(stock=1)
    order = replace(free_order(sale.product_id, 1), sale_id=sale.sale_id if named else 0)
    late = late_through(RefusedOnce(backbone.gate, Refusal.SOLD_OUT), backbone, reservations)
    (admitted,) = await backbone.gate.admit_late([order])
    assert isinstance(admitted, Admitted)
    ((told, end),) = await late.admit([order])
    await backbone.ledger.settle([(told, end)])  # type: ignore[list-item]  # the row says rejected
    entry = replace(
        order,
        sale_id=admitted.sale_id,
        admission_number=admitted.admission_number,
        admitted_at_ms=admitted.admitted_at_ms,
    )
    await carry(carrier, [entry])
    assert await results(backbone, [order]) == [(REJECTED, "SOLD_OUT")]
    assert (await backbone.ledger.stats(sale.product_id)).entries == 0
    assert await stock_in_redis(backbone, sale) == 1
    assert (await backbone.read_sale(sale)).stock == 1
    assert await letters(backbone) == []


async def test_a_late_refusal_after_another_worker_sold_the_order_tells_what_stands(
    backbone: Backbone, carrier: SeckillCarrier, reservations: Reservations
) -> None:
    """A direct order comes twice: worker 1 is refused, worker 2 admits and sells it, worker 1 writes its refusal.

    The refusal does not stay, the order is no impostor, and both workers end it as confirmed.
    """
    sale = await backbone.open_sale(stock=1)
    order = free_order(sale.product_id, 1)

    class Overtaken(RefusedOnce):
        async def admit_late(self, orders: list[Order]) -> list[Admission]:
            await carry(carrier, [order])
            return await super().admit_late(orders)

    late = late_through(Overtaken(backbone.gate, Refusal.SOLD_OUT), backbone, reservations)
    ((told, end),) = await late.admit([order])
    assert (type(end).__name__, told.sale_id) == ("Confirmed", sale.sale_id)


class AnswersLost:
    """A gate that admits, and whose answers are lost."""

    def __init__(self, gate: AdmissionGate) -> None:
        self._gate = gate

    async def admit_late(self, orders: list[Order]) -> list[Admission]:
        await self._gate.admit_late(orders)
        raise AdmissionUnavailable("redis", "no answer within 1000 ms")


@pytest.mark.parametrize("named", [False, True])
async def test_an_admission_whose_answer_was_lost_is_not_set_aside(
    backbone: Backbone, carrier: SeckillCarrier, reservations: Reservations, named: bool
) -> None:
    """A direct order's admission runs and its answer is lost, until the attempts are exhausted.

    The ledger holds the order and brings it back: a letter beside it would give the order two ends.
    """
    sale = await backbone.open_sale(stock=1)
    order = replace(free_order(sale.product_id, 1), sale_id=sale.sale_id if named else 0)
    carrier._late = late_through(AnswersLost(backbone.gate), backbone, reservations)
    await carry(carrier, [order])
    assert await letters(backbone) == []
    assert await results(backbone, [order]) == [(OrderStatus.PROCESSING, "")]
    (entry,) = await backbone.ledger.entries(sale.product_id)
    await carry(carrier, [entry.order])
    assert await results(backbone, [order]) == [(CONFIRMED, "")]


async def test_a_late_refusal_over_a_released_row_gives_the_unit_back(
    backbone: Backbone, carrier: SeckillCarrier, reservations: Reservations
) -> None:
    """A direct order comes twice: worker 1 is refused SOLD_OUT, units come back, worker 2 admits the order, its
    transaction is cancelled and it is killed; worker 1 writes its refusal over the released row.

    SQL kept the unit, whoever released it, so it returns to Redis as well.
    """
    sale = await backbone.open_sale(stock=1)
    order = replace(free_order(sale.product_id, 1), sale_id=sale.sale_id)
    (admitted,) = await backbone.gate.admit_late([order])
    assert isinstance(admitted, Admitted)
    await try_and_cancel(backbone, order)
    late = late_through(RefusedOnce(backbone.gate, Refusal.SOLD_OUT), backbone, reservations)
    ((told, end),) = await late.admit([order])
    await backbone.ledger.settle([(told, end)])  # type: ignore[list-item]  # the row says rejected
    assert await results(backbone, [order]) == [(REJECTED, "SOLD_OUT")]
    assert (await backbone.read_sale(sale)).stock == await stock_in_redis(backbone, sale) == 1


async def test_an_order_past_the_front_stays_in_the_sale_of_its_row(
    backbone: Backbone, carrier: SeckillCarrier
) -> None:
    """A direct order is admitted and tried, and its transaction is cancelled; its sale is replaced; Redis loses both
    sales, and the new one is warmed; the record comes again.

    Its row says where it belongs: it is refused there, and the new sale gives nothing.
    """
    old = await backbone.open_sale(stock=3)
    order = free_order(old.product_id, 1)
    (admitted,) = await backbone.gate.admit_late([order])
    assert isinstance(admitted, Admitted)
    await try_and_cancel(backbone, replace(order, sale_id=old.sale_id))
    new = await backbone.replace_sale(old, stock=3)
    with raw_redis(backbone.settings.redis.url.get_secret_value()) as redis:
        redis.delete(*redis.scan_iter(f"seckill:{{{old.product_id}}}:*"))
    await backbone.book.warm(await backbone.read_sale(new))
    await carry(carrier, [order])
    assert await results(backbone, [order]) == [(REJECTED, "UNKNOWN_PRODUCT")]
    assert await letters(backbone) == []
    assert await stock_in_redis(backbone, new) == 3
    assert (await backbone.ledger.stats(old.product_id)).entries == 0


async def try_and_cancel(backbone: Backbone, order: Order) -> None:
    async with branch_calls(backbone.settings, [order], uuid4().hex) as calls:
        await calls.product("try")
        await calls.product("cancel")


# --- impostors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"quantity": 2}, {"user_id": 99}])
async def test_an_impostor_of_an_ended_order_is_set_aside(
    backbone: Backbone, carrier: SeckillCarrier, changes: dict[str, int]
) -> None:
    """An order confirms and its result expires; a direct record with its id and other contents comes.

    It is dead-lettered, and told nothing: what stands belongs to the true order.
    """
    sale = await backbone.open_sale(stock=5, per_user_limit=3)
    order = await backbone.admit(sale, 1)
    await carry(carrier, [order])
    impostor = replace(order, sale_id=0, admission_number=None, **changes)  # type: ignore[arg-type]  # all are numbers
    await carry(carrier, [impostor])  # its result stands
    backbone.forget_result(order)
    await carry(carrier, [impostor])
    assert [letter["seckill-dlq-reason"] for letter in await letters(backbone)] == ["ID_REUSED"] * 2
    assert await backbone.ledger.results([order.order_id]) == {}
    assert (await backbone.read_sale(sale)).sold == 1


async def test_an_impostor_that_says_it_was_admitted_comes_first(backbone: Backbone, carrier: SeckillCarrier) -> None:
    """A record with a pending order's id, another buyer and an admission number of its own comes before the order's.

    The ledger knows whose order it is: the impostor is dead-lettered, and the true order confirms.
    """
    sale = await backbone.open_sale(stock=5)
    order = await backbone.admit(sale, 1)
    await carry(carrier, [replace(order, user_id=99)])
    await carry(carrier, [order])
    assert [letter["seckill-dlq-reason"] for letter in await letters(backbone)] == ["ID_REUSED"]
    assert await results(backbone, [order]) == [(CONFIRMED, "")]
    assert await backbone.query("product", "SELECT user_id FROM stock_reservation") == [(1,)]


async def test_the_uuid_of_a_sold_order_under_another_product_is_nobodys(
    backbone: Backbone, carrier: SeckillCarrier
) -> None:
    """An order confirms; a direct record, and then a buyer's question, name its UUID under another product.

    The record is dead-lettered, and the front knows no such order.
    """
    sale, other = await backbone.open_sale(stock=5), await backbone.open_sale(stock=5)
    order = await backbone.admit(sale, 1)
    await carry(carrier, [order])
    other_id = order_id_from_key(other.product_id, order.key)
    impostor = Order(other_id, 0, order.user_id, other.product_id, 1, 0)
    await carry(carrier, [impostor])
    assert [letter["seckill-dlq-reason"] for letter in await letters(backbone)] == ["ID_REUSED"]
    assert await backbone.ledger.results([other_id]) == {}
    address = backbone.settings.product.grpc
    async with grpc.aio.insecure_channel(address) as channel:
        client = ProductClient(channel, address=address)
        assert await client.order_result(other_id) is None
        found = await client.order_result(order.order_id)
        assert found is not None
        assert found.status is CONFIRMED


# --- waiting and setting aside ---------------------------------------------------------------------------------------


async def test_a_parked_order_that_a_transaction_holds_stays_in_hand(
    backbone: Backbone, carrier: SeckillCarrier
) -> None:
    """Worker 1 gives an order up and parks it; worker 2, which has a copy of its record, freezes it and has to wait.

    Nobody publishes a parked entry again, so worker 2 keeps the record until the transaction has ended, and settles.
    """
    sale = await backbone.open_sale(stock=5)
    order = await backbone.admit(sale, 1)
    await backbone.ledger.park([order])
    await backbone.stop("order")
    carrying = asyncio.create_task(carry(carrier, [order]))
    await asyncio.sleep(1.5)
    assert not carrying.done()
    await backbone.start("order")
    async with asyncio.timeout(30):
        await carrying
    await until_free(backbone)
    assert await results(backbone, [order]) == [(CONFIRMED, "")]
    stats = await backbone.ledger.stats(sale.product_id)
    assert (stats.entries, stats.parked) == (0, 0)


# --- records that nobody wrote for us --------------------------------------------------------------------------------


async def test_a_record_without_key_and_value_is_set_aside(backbone: Backbone, carrier: SeckillCarrier) -> None:
    """A record with neither key nor value comes: its letter is written, and the worker goes on."""
    await carrier.bury(Record("orders", 0, 7, 1, None, None), UnreadableRecord("the record has no value"))
    (letter,) = await letters(backbone)
    assert (letter["__dlq.errors.offset"], letter["seckill-dlq-reason"]) == ("7", "UNREADABLE")


async def test_a_record_of_the_greatest_size_is_set_aside_whole(backbone: Backbone, carrier: SeckillCarrier) -> None:
    """A record as large as a topic takes, with headers of its own and one of them empty: the letter adds headers to it,
    is written all the same, and the bytes are untouched.
    """
    value = b"\xff" * (backbone.settings.kafka.record_bytes_max - 200)
    record = Record("orders", 0, 7, 1, b"k", value, (("trace", b"t" * 100), ("none", None)))
    async with asyncio.timeout(15):
        await carrier.bury(record, UnreadableRecord("no JSON"))
    (letter,) = await read_topic(backbone.settings.kafka, backbone.settings.kafka.dead_letter_topic)
    assert letter.value == value


async def test_a_record_that_the_dead_letter_topic_does_not_take_stops_nobody(backbone: Backbone) -> None:
    """A record comes that is larger than any letter may be: a letter says where it is, and the worker goes on."""
    kafka = backbone.settings.kafka.model_copy(update={"record_bytes_max": 1_024})
    record = Record("orders", 3, 7, 1, b"k" * 100, b"\xff" * 40_000, (("trace", b"t"),))
    async with open_publisher(kafka) as publisher:
        letters_out = DeadLetters(publisher, topic=kafka.dead_letter_topic, group=kafka.group)
        await letters_out.bury(record, Letter(DeadLetterReason.UNREADABLE, UnreadableRecord("no JSON"), 1, 1))
    (letter,) = await letters(backbone)
    assert (letter["__dlq.errors.partition"], letter["__dlq.errors.offset"]) == ("3", "7")
    assert (letter["seckill-dlq-reason"], letter["seckill-dlq-value-left"]) == ("UNREADABLE", "40000")
