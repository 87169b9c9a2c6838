"""Putting orders off and burying them, when Kafka is down or will not take a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka import TopicPartition

from consumers.aside import Aside, GivenUp
from consumers.carried import Carried
from seckill.checkout.reservations import Reservation
from seckill.domain.errors import BranchFailed, ProductUnavailable, PublishUnknown, RecordTooLarge
from seckill.domain.order import Order, derived_order_id
from seckill.domain.reasons import DeadLetterReason
from seckill.domain.retry import Dead, Later
from seckill.messaging.dead_letters import DeadLetters, Letter
from seckill.messaging.delivery import Arrival, Delivered
from seckill.messaging.envelope import Record, encode
from seckill.messaging.offsets import PartitionProgress
from seckill.messaging.retry_topics import RetryTier

TIER = RetryTier(0, "orders-retry-0", 5_000)
DOWN = ProductUnavailable("127.0.0.1:9101", "INTERNAL")


class World:
    """The ledger, the reservations, Kafka and the dead letters, as far as they matter here; notes what is done."""

    def __init__(self, *, checks_lost: int = 0, too_large: Sequence[bytes] = (), unread: Sequence[bytes] = ()) -> None:
        self.done: list[tuple[str, bytes]] = []
        self.reasons: list[DeadLetterReason] = []
        self._checks_lost = checks_lost
        self._too_large = too_large
        self._unread = unread

    async def check(self) -> None:
        if self._checks_lost:
            self._checks_lost -= 1
            raise PublishUnknown("kafka", "no answer in time")

    async def send(self, topic: str, *, key: bytes, value: bytes, headers: Any) -> None:
        if key in self._too_large:
            raise RecordTooLarge(topic, len(value))
        self.done.append(("sent", key))

    async def put_off(self, orders: Sequence[Order], *, delay_ms: int) -> None:
        self.done += [("put off", order.order_id.encode()) for order in orders]

    async def park(self, orders: Sequence[Order]) -> None:
        self.done += [("parked", order.order_id.encode()) for order in orders]

    async def bury(self, record: Record, letter: Letter) -> None:
        assert record.key is not None
        self.done.append(("letter", record.key))
        self.reasons.append(letter.reason)

    async def readable(self, orders: Sequence[Order]) -> tuple[dict[bytes, Reservation], dict[bytes, Exception]]:
        failed = BranchFailed("Reservations", "INVALID_ARGUMENT", "no")
        return {}, {order.key: failed for order in orders if order.order_id.encode() in self._unread}

    def aside(self) -> Aside:
        world: Any = self
        return Aside(ledger=world, reservations=world, dead_letters=world, publisher=world, tiers=(TIER,))


def given_up(number: int, verdict: Later | Dead) -> GivenUp:
    order = Order(derived_order_id(7, number, at_ms=1), 4, number, 7, 1, 1_000, number)
    record = Record("orders", 0, number, 1_700_000_000_000, order.order_id.encode(), encode(order))
    arrival = Arrival(TopicPartition("orders", 0), PartitionProgress(), record)
    return GivenUp(Carried(Delivered(order, record, arrival), order), verdict, DOWN)


def key_of(each: GivenUp) -> bytes:
    return each.carried.order.order_id.encode()


LATER = Later(0, 5_000)
DEAD = Dead(DeadLetterReason.RETRIES_EXHAUSTED)


async def test_what_no_retry_topic_takes_becomes_a_letter() -> None:
    """A record that Kafka will never take ends no role, and keeps nobody from being put off."""
    large, other = given_up(1, LATER), given_up(2, LATER)
    world = World(too_large=[key_of(large)])
    left = await world.aside().take([large, other])
    assert (left.ended, left.undecided) == ([], [])
    assert [key for what, key in world.done if what == "sent"] == [key_of(other)]
    assert world.done[-2:] == [("letter", key_of(large)), ("parked", key_of(large))]
    assert world.reasons == [DeadLetterReason.RETRIES_EXHAUSTED]


async def test_while_kafka_is_down_nothing_is_given_to_it() -> None:
    """The client would keep each repetition and write all of them later: one of each is written."""
    later, world = given_up(1, LATER), World(checks_lost=2)
    await world.aside().take([later])
    assert world.done == [("put off", key_of(later)), ("sent", key_of(later))]
    world = World(checks_lost=1)
    publisher: Any = world
    letters = DeadLetters(publisher, topic="letters", group="workers")
    letter = Letter(DeadLetterReason.RETRIES_EXHAUSTED, DOWN, attempts=1, first_failed_ms=1)
    with pytest.raises(PublishUnknown):
        await letters.bury(later.carried.delivered.record, letter)
    assert world.done == []
    await letters.bury(later.carried.delivered.record, letter)
    assert world.done == [("sent", key_of(later))]


async def test_an_order_whose_reservation_cannot_be_read_waits_alone() -> None:
    """A transaction may hold it, so it is neither put off nor buried; the others are."""
    unread, later, dead = given_up(1, LATER), given_up(2, LATER), given_up(3, DEAD)
    world = World(unread=[key_of(unread)])
    left = await world.aside().take([unread, later, dead])
    assert left.undecided == [unread.carried]
    assert {what: key for what, key in world.done if what in ("sent", "letter")} == {
        "sent": key_of(later), "letter": key_of(dead)
    }  # fmt: skip
