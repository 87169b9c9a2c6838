"""Each order as a two-phase message: the units are frozen here and now, and the message then has the order written.

    prepare ─▶ TakeStock ─▶ frozen  ─▶ submit ─▶ OK: the order is written, the units are sold
                         ├▶ refused ─▶ abort, the row says why
                         └▶ unknown ─▶ QueryPrepared: it has happened ─▶ submit
                                                      it never will   ─▶ abort, nothing holds the order
                                                      nobody answers  ─▶ undecided, the coordinator asks later

The refusal sits in the local part: an action is repeated for ever, so it may not refuse.
"""

from __future__ import annotations

import structlog

from seckill.checkout.plan import broken
from seckill.checkout.reservations import ReservationState, items_of, reservation_from_wire
from seckill.checkout.saga import order_request
from seckill.checkout.single import Finished, Left, Shut, SingleCheckout, Unfinished
from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import ProductUnavailable, SeckillError, TransactionCancelled
from seckill.domain.order import Order
from seckill.domain.outcomes import Failed, Outcome, Undecided
from seckill.dtm.errors import CallFailed, Refused
from seckill.dtm.message import Message
from seckill.dtm.protocol import MSG
from seckill.wire import product_pb2

log = structlog.get_logger()


class MessageCheckout(SingleCheckout):
    """Carries each order through a message of its own. Opens nothing."""

    trans_type = MSG

    async def _carry(self, gid: str, order: Order) -> Left:
        message = Message(self._client, gid, options=self._plan.options)
        message.add(self._plan.told_order("CreateOrderDTM"), order_request(order).SerializeToString())
        reach(CrashPoint.PREPARING)
        try:
            await message.prepare(self._plan.told_product("QueryPrepared"))
        except CallFailed as error:  # nothing was tried, so nothing can hold the order
            return Shut(gid, self._coordinator_silent(error.detail))
        reach(CrashPoint.PREPARED)
        try:
            taken = await self._take(message, order)
        except CallFailed as error:
            return await self._untold(message, error)
        reach(CrashPoint.PRODUCT_TRIED)
        if taken:
            return await self._submit(message)
        await self._abort(message, "product does not freeze the order")
        return Unfinished(gid)

    async def _take(self, message: Message, order: Order) -> bool:
        """Whether the order's units are frozen under this gid. Raises CallFailed."""
        request = product_pb2.UpdateProductStockRequest(
            product_id=order.product_id, sale_id=order.sale_id, items=items_of([order])
        )
        reply = await self._call_product(message, "TakeStock", request.SerializeToString())
        (row,) = map(reservation_from_wire, product_pb2.UpdateProductStockResponse.FromString(reply).outcomes)
        return row.state is ReservationState.FROZEN and row.gid == message.gid

    async def _untold(self, message: Message, error: CallFailed) -> Left:
        """A local transaction whose end nobody has heard of: the question that a coordinator asks later is asked now.

        It is answered once for all: what has not happened by then never will.
        """
        target, coordinator = self._plan.product("TakeStock"), self._client.address
        cause = broken(message.gid, error, target=target, unavailable=ProductUnavailable, coordinator=coordinator).error
        try:
            await self._call_product(message, "QueryPrepared", b"")
        except Refused:
            await self._abort(message, str(cause))
            return Shut(message.gid, cause)
        except CallFailed as silence:
            log.warning("query_unanswered", code=silence.code.name, detail=silence.detail)
            return Unfinished(message.gid, cause)
        return await self._submit(message)

    async def _call_product(self, message: Message, method: str, payload: bytes) -> bytes:
        return await self._client.channels.call(
            self._plan.product(method), payload, message.local.metadata(), timeout_ms=self._plan.try_timeout_ms
        )

    async def _submit(self, message: Message) -> Left:
        """Once. Unanswered, or refused: the coordinator has asked product before, and sends it by itself."""
        try:
            await message.submit(timeout_ms=self._plan.submit_timeout_ms)
        except Refused:
            return Unfinished(message.gid)
        except CallFailed as error:
            log.warning("submit_unanswered", code=error.code.name, detail=error.detail)
            return Unfinished(message.gid, self._coordinator_silent(error.detail))
        finally:
            reach(CrashPoint.SUBMITTED)
        return Finished(message.gid)

    async def _abort(self, message: Message, reason: str) -> None:
        """So that the coordinator need not ask; it asks when this does not reach it."""
        reach(CrashPoint.ABORTING)
        try:
            await message.abort(reason=reason)
        except CallFailed as error:
            log.warning("abort_unanswered", code=error.code.name, detail=error.detail)
        reach(CrashPoint.ABORTED)

    async def _unheld(self, order: Order, left: Finished | Unfinished) -> Outcome:
        cause: SeckillError | None = left.cause if isinstance(left, Unfinished) else None
        if cause is not None:
            return Undecided(left.gid, "nobody tells how its local transaction ended", cause)
        return Failed(TransactionCancelled(left.gid, "its units were released"))
