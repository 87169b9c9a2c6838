"""The straight path of an order through the front: admit, publish, reply. HTTP and gRPC only translate around it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import structlog

from seckill.admission.gate import AdmissionGate, Wanted
from seckill.domain.errors import AdmissionUnavailable, PublishUnknown
from seckill.domain.order import Order, OrderId
from seckill.domain.outcomes import Admitted, AlreadyDecided, OrderResult, Refused
from seckill.domain.reasons import Refusal

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
    """Redis did not answer, or the front is ending."""

    detail: str


Reply = Accepted | Ended | Refused | Pending | Unavailable


class Intake:
    """Admission goes to its end whatever becomes of the caller, and so does a publish that has begun."""

    def __init__(self, gate: AdmissionGate, publisher: Publisher, *, publish_timeout_ms: int, orders_max: int) -> None:
        """`publish_timeout_ms`: how long a client waits for Kafka; `orders_max`: orders under way at once."""
        self._gate = gate
        self._publisher = publisher
        self._publish_timeout_s = publish_timeout_ms / 1_000
        self._orders_max = orders_max
        self._under_way = 0
        self._shielded: set[asyncio.Task[Reply]] = set()
        self._publishing: set[asyncio.Task[None]] = set()
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
            return Unavailable("this front is ending")
        if max(self._under_way, len(self._publishing)) >= self._orders_max:
            return Refused(Refusal.OVERLOADED)
        self._under_way += 1
        try:
            admission = await self._gate.admit(wanted)
            match admission:
                case Refused():
                    return admission
                case AlreadyDecided(_, result):
                    return Ended(result)
                case Admitted():
                    return await self._publish(wanted, admission)
        except AdmissionUnavailable as error:
            return Unavailable(str(error))
        finally:
            self._under_way -= 1
            self._note_idle()

    async def drain(self, *, timeout_ms: int) -> None:
        """Takes no more orders and waits for those under way; what is left then stays to the ledger."""
        self._closed = True
        self._note_idle()
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                await self._idle.wait()
        except TimeoutError:
            log.warning("intake_drain_incomplete", orders=self._under_way, publishing=len(self._publishing))

    async def _publish(self, wanted: Wanted, admitted: Admitted) -> Reply:
        """Accepted means that Kafka has the record. So a repeat is published again, unless this front knows that it was
        acknowledged; a second record of an order does nothing. A failed publish never undoes the admission.
        """
        if admitted.order_id in self._acknowledged:
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
        self._publishing.add(publishing)
        publishing.add_done_callback(self._published)
        try:
            async with asyncio.timeout(self._publish_timeout_s):
                await asyncio.shield(publishing)
        except (PublishUnknown, TimeoutError) as error:
            log.warning("publish_unknown", order_id=order.order_id, error=str(error) or "no acknowledgement in time")
            return Pending(order.order_id)
        if wanted.request_id is not None:
            self._remember(order.order_id)
        return Accepted(order.order_id)

    def _published(self, publishing: asyncio.Task[None]) -> None:
        self._publishing.discard(publishing)
        if not publishing.cancelled():
            publishing.exception()  # read here, because a caller whose time was up will not
        self._note_idle()

    def _note_idle(self) -> None:
        if self._closed and not self._under_way and not self._publishing:
            self._idle.set()

    def _remember(self, order_id: OrderId) -> None:
        self._acknowledged[order_id] = None
        if len(self._acknowledged) > ACKNOWLEDGED_MAX:
            self._acknowledged.popitem(last=False)
