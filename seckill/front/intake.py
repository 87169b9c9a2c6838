"""The straight path of an order through the front: admit, publish, reply. HTTP and gRPC only translate around it."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog

from seckill.admission.gate import AdmissionGate, Wanted
from seckill.domain.errors import AdmissionUnavailable, PublishUnknown
from seckill.domain.order import Order, OrderId
from seckill.domain.outcomes import Admitted, AlreadyDecided, OrderResult, Refused
from seckill.draining import Drain
from seckill.front.door import Door, Down, Load

log = structlog.get_logger(__name__)

ACKNOWLEDGED_MAX = 50_000
"""Orders with an idempotency key of which the front remembers that Kafka has acknowledged them."""


class Publisher(Protocol):
    async def publish(self, order: Order) -> None:
        """Returns after Kafka has acknowledged the order's record. Raises PublishUnknown."""

    async def check(self) -> None:
        """Raises when no broker answers."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """Kafka has the order."""

    order_id: OrderId


@dataclass(frozen=True, slots=True)
class Ended:
    """A repeat of an order that has ended, or was set aside."""

    result: OrderResult


@dataclass(frozen=True, slots=True)
class Pending:
    """Admitted, and it is not known whether Kafka has it: the ledger publishes it again."""

    order_id: OrderId


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Redis did not answer."""

    detail: str


@dataclass(frozen=True, slots=True)
class Draining:
    """The front is ending, and takes no more orders."""


Reply = Accepted | Ended | Refused | Pending | Unavailable | Draining | Down


class Intake:
    """Admission goes to its end whatever becomes of the caller, and so does a publish that has begun."""

    def __init__(self, gate: AdmissionGate, publisher: Publisher, door: Door, *, publish_timeout_ms: int) -> None:
        """`publish_timeout_ms`: how long a client waits for Kafka."""
        self._gate = gate
        self._publisher = publisher
        self._door = door
        self._publish_timeout_s = publish_timeout_ms / 1_000
        self._under_way = 0
        self._shielded: set[asyncio.Task[Reply]] = set()
        self._publishing: dict[asyncio.Task[None], float] = {}  # since when, the oldest first
        self._waiting: set[asyncio.Timeout] = set()  # the limits of those who wait for Kafka
        self._acknowledged: OrderedDict[OrderId, None] = OrderedDict()
        self._closed = False
        self._idle = asyncio.Event()  # closed, and nothing is under way

    async def place_shielded(self, wanted: Wanted) -> Reply:
        """`place` for a caller that may be cancelled: the order is then carried on without it."""
        task = asyncio.create_task(self.place(wanted))
        self._shielded.add(task)
        task.add_done_callback(self._shielded.discard)
        return await asyncio.shield(task)

    async def place(self, wanted: Wanted) -> Reply:
        """The answer to a valid order request. Raises nothing that a client or a dependency can cause.

        Cancelled between admission and publishing, it leaves the order to the ledger, which publishes it later.
        """
        if self._closed:
            return Draining()
        if (turned_away := self._door.turned_away(wanted.user_id, self._load())) is not None:
            return turned_away
        self._under_way += 1
        try:
            admission = await self._gate.admit(wanted)
            self._door.redis.succeeded()
            match admission:
                case Refused():
                    return admission
                case AlreadyDecided(_, result):
                    return Ended(result)
                case Admitted():
                    return await self._publish(wanted, admission)
        except AdmissionUnavailable as error:
            self._door.redis.suspect(str(error))
            return Unavailable(str(error))
        finally:
            self._under_way -= 1
            self._note_idle()

    async def drain(self, drain: Drain) -> None:
        """Takes no more orders and waits for those under way. When the time is up, who still waits for Kafka is told
        that the order is pending; what was not acknowledged stays to the ledger.
        """
        self._closed = True
        self._note_idle()
        with suppress(TimeoutError):
            async with asyncio.timeout(drain.work_left_s()):
                await self._idle.wait()
        drain.leave("orders", self._under_way)
        drain.leave("publishes", len(self._publishing))
        for limit in self._waiting:
            limit.reschedule(asyncio.get_running_loop().time())

    async def _publish(self, wanted: Wanted, admitted: Admitted) -> Reply:
        """Accepted means that Kafka has the record. So a repeat is published again, unless this front knows that it was
        acknowledged; a second record of an order does nothing. A failed publish never undoes the admission.

        An id that is admitted anew (its result has expired) has a new ledger entry, which only a new record can end.
        """
        if admitted.repeated and admitted.order_id in self._acknowledged:
            return Accepted(admitted.order_id)
        order = Order(
            order_id=admitted.order_id,
            sale_id=admitted.sale_id,
            user_id=wanted.user_id,
            product_id=wanted.product_id,
            quantity=wanted.quantity,
            admitted_at_ms=admitted.admitted_at_ms,
            admission_number=admitted.admission_number,
        )
        publishing = asyncio.create_task(self._publisher.publish(order))
        self._publishing[publishing] = time.monotonic()
        publishing.add_done_callback(self._published)
        limit = asyncio.timeout(self._publish_timeout_s)
        self._waiting.add(limit)
        try:
            async with limit:
                await asyncio.shield(publishing)
        except (PublishUnknown, TimeoutError) as error:
            cause = str(error) or "no acknowledgement in time"
            log.warning("publish_unknown", order_id=order.order_id, error=cause)
            self._door.kafka.failed(cause)
            return Pending(order.order_id)
        finally:
            self._waiting.discard(limit)
        if wanted.request_id is not None:
            self._remember(order.order_id)
        return Accepted(order.order_id)

    def _published(self, publishing: asyncio.Task[None]) -> None:
        del self._publishing[publishing]
        # The exception is read here, because a caller whose time was up will not.
        if not publishing.cancelled() and publishing.exception() is None:
            self._door.kafka.succeeded()
        self._note_idle()

    def _load(self) -> Load:
        oldest_s = next(iter(self._publishing.values()), None)
        waits_s = 0.0 if oldest_s is None else time.monotonic() - oldest_s
        return Load(max(self._under_way, len(self._publishing)), waits_s)

    def _note_idle(self) -> None:
        if self._closed and not self._under_way and not self._publishing:
            self._idle.set()

    def _remember(self, order_id: OrderId) -> None:
        self._acknowledged[order_id] = None
        if len(self._acknowledged) > ACKNOWLEDGED_MAX:
            self._acknowledged.popitem(last=False)
