"""What stands around Redis when a history of the ledger is played: the product's rows, and the topic. All in memory.

They keep to what the real ones promise: a row's fate is decided once; a record that was published may be in the topic
or not, when nothing was answered.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from seckill.checkout.orphans import PRODUCT_BRANCH, End, Hold, Look, Orphans
from seckill.checkout.reservations import Reservation, Reservations, ReservationState, outcome_of
from seckill.domain.errors import BranchFailed, ProductUnavailable, PublishUnknown
from seckill.domain.order import Order, OrderId
from seckill.domain.outcomes import Failed, Outcome
from seckill.messaging.dead_letters import DeadLetters, Letter
from seckill.messaging.envelope import Headers, Record, decode
from seckill.messaging.publisher import Publisher
from tests.support.actors import Actor, Complaints, Publishing, stop_before
from tests.support.ledger_model import LedgerModel

PUBLISH_WITHIN_MS = 2
"""From an entry's time of publishing to its record's own time. Histories last a second, so it has to be short."""


# --- the product's rows ----------------------------------------------------------------------------------------------


class Rows:
    """`stock_reservation` by order key. `lost`: gids that their coordinator lost, and whether order confirmed them."""

    def __init__(self) -> None:
        self.by_key: dict[bytes, Reservation] = {}
        self.lost: dict[str, bool] = {}
        self._gids = itertools.count(1)

    def outcome(self, order: Order) -> Outcome | None:
        return outcome_of(order, self.by_key.get(order.key), gid="")

    def write(self, order: Order, state: ReservationState, reason: str = "", *, in_transaction: bool = True) -> None:
        before = self.by_key.get(order.key)
        gid = f"g{next(self._gids)}" if in_transaction else before.gid if before else ""
        self.by_key[order.key] = Reservation(
            order.key, state, gid, reason, order.sale_id, order.product_id, order.user_id, order.quantity
        )

    def checkout(self, order: Order, fate: str) -> Outcome:
        """One transaction: takes what is free, and says what then stands."""
        if self.outcome(order) is None:
            match fate:
                case "failed":
                    return Failed(BranchFailed("product.Product/CheckProductStock", "INTERNAL", "as the history wants"))
                case "unreachable":
                    return Failed(ProductUnavailable("product.Product/CheckProductStock", "as the history wants"))
                case "frozen" | "sold":
                    self.write(order, ReservationState[fate.upper()])
                case reason:
                    self.write(order, ReservationState.REJECTED, reason)
        outcome = self.outcome(order)
        assert outcome is not None
        return outcome

    def frozen(self) -> list[Reservation]:
        return [row for row in self.by_key.values() if row.state is ReservationState.FROZEN]

    def end(self, gid: str, *, sold: bool) -> None:
        """The coordinator, or whoever ends an orphan, confirms or cancels what the transaction holds."""
        state = ReservationState.SOLD if sold else ReservationState.RELEASED
        for row in self.frozen():
            if row.gid == gid:
                self.by_key[row.key] = replace(row, state=state)


class MemoryReservations(Reservations):
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def of_orders(self, orders: Sequence[Order]) -> dict[bytes, Reservation]:
        await stop_before("of_orders")
        return {order.key: self._rows.by_key[order.key] for order in orders if order.key in self._rows.by_key}

    async def reject(self, orders: Sequence[Order], reasons: Mapping[bytes, str]) -> dict[bytes, Reservation]:
        await stop_before("reject")
        for order in orders:
            if self._rows.outcome(order) is None:
                self._rows.write(order, ReservationState.REJECTED, reasons[order.key], in_transaction=False)
        return {order.key: self._rows.by_key[order.key] for order in orders}


class MemoryCheckout:
    """Transactions that end as the actor's `fate` says. One that is asked for again by the same worker is sold."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def run(self, orders: Sequence[Order]) -> dict[OrderId, Outcome]:
        actor = await stop_before("run")
        outcomes: dict[OrderId, Outcome] = {}
        for order in orders:
            row = self._rows.by_key.get(order.key)
            if order.order_id in actor.frozen and row is not None:
                self._rows.end(row.gid, sold=True)
            outcomes[order.order_id] = self._rows.checkout(order, actor.fate)
            actor.frozen.add(order.order_id)
        await stop_before("route")  # between the database's word and Redis
        return outcomes


class MemoryOrphans(Orphans):
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def holds(self, *, older_than_ms: int, newer_than_ms: int | None = None, limit: int) -> list[Hold]:
        await stop_before("holds")
        return [
            Hold(row.gid, PRODUCT_BRANCH, older_than_ms) for row in self._rows.frozen() if row.gid in self._rows.lost
        ]

    async def look(self, gid: str, trans_type: str | None = None) -> Look:
        await stop_before("look")
        return Look(gid, None, int(self._rows.lost[gid]))

    async def end(self, look: Look) -> End:
        await stop_before("end")
        self._rows.end(look.gid, sold=look.end is End.CONFIRMED)
        return look.end


# --- the topic -------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Message:
    """A record of the topic. `late`: written after more than PUBLISH_WITHIN_MS, so it may be taken for a lost one."""

    order: Order
    at_ms: int
    late: bool
    passed: bool = False
    topic: str = "orders"


class Topic(Publisher):
    """Publisher, watermark and dead letters in one: a partition per record, so that each is passed by itself."""

    def __init__(self, model: LedgerModel, complaints: Complaints) -> None:
        self.messages: list[Message] = []
        self.letters: dict[OrderId, Order] = {}
        self._model, self._complaints = model, complaints

    async def publish(self, order: Order) -> None:
        actor = await stop_before("publish")
        waits = order.order_id in actor.waiting_records
        claimed = actor.claimed is None or order.order_id in actor.claimed
        self._complaints.require(not waits, f"{order.order_id} was published again while its record waited")
        self._complaints.require(claimed, f"{order.order_id} was published again by one who has not claimed it")
        if actor.publishing is not Publishing.LOST:
            self._write(order, actor)
        if actor.publishing is not Publishing.ACKNOWLEDGED:
            raise PublishUnknown("the topic", "no answer")

    async def check(self) -> None:
        """It is up: who finds it down does nothing."""

    async def send(self, topic: str, *, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        """A retry record."""
        actor = await stop_before("send")
        (order,) = decode(Record(topic, 0, 0, 0, key, value, headers))
        self._write(order, actor, topic=topic)

    def _write(self, order: Order, actor: Actor, **where: str) -> None:
        entry = self._model.entry(order)
        began_ms = entry.published_at_ms if entry else time.time_ns() // 1_000_000
        late = actor.lateness_ms > PUBLISH_WITHIN_MS
        self.messages.append(Message(order, began_ms + actor.lateness_ms, late, **where))

    def unpassed(self) -> list[Message]:
        return [message for message in self.messages if not message.passed]

    async def watermark(self) -> int | None:
        actor = await stop_before("watermark")
        actor.waiting_records = {message.order.order_id for message in self.unpassed() if not message.late}
        return min((message.at_ms for message in self.unpassed()), default=None)


class Drawer(DeadLetters):
    """Where letters are put."""

    def __init__(self, topic: Topic) -> None:
        self._orders = topic.letters

    async def bury(self, record: Record, letter: Letter) -> None:
        await stop_before("bury")
        for order in decode(record):
            self._orders[order.order_id] = order
