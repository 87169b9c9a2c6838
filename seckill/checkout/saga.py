"""Each order as a saga: the order is written, then the units are frozen; what refuses has both compensated.

    submit (order 01, product 02) ─▶ OK        ─▶ every branch is done: the units are sold
                                  ─▶ otherwise ─▶ the rows tell; where none holds the order:
        the coordinator has not finished the saga ─▶ undecided
        it has lost it                            ─▶ its branches are kept out for ever
        the order stands confirmed under an older saga that nobody carries ─▶ that one is undone, and the order is free

The last one: an order is written only when the coordinator has stored its saga. So if it does not know that gid, it has
lost it, between the two actions; the order would refuse every later saga for ever.
"""

from __future__ import annotations

import structlog

from seckill.checkout.orphans import End
from seckill.checkout.plan import Plan, order_item
from seckill.checkout.reservations import items_of
from seckill.checkout.single import Finished, Left, SingleCheckout, Unfinished
from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import BranchFailed, SeckillError, TransactionCancelled
from seckill.domain.order import Order
from seckill.domain.outcomes import Failed, Outcome, Undecided
from seckill.dtm.errors import CallFailed, Refused
from seckill.dtm.protocol import SAGA
from seckill.dtm.saga import Saga, Step
from seckill.wire import order_pb2, product_pb2

log = structlog.get_logger()

FAILED = "failed"
"""The status of a saga whose compensations have all been answered."""


class SagaCheckout(SingleCheckout):
    """Carries each order through a saga of its own. Opens nothing."""

    trans_type = SAGA

    async def _carry(self, gid: str, order: Order) -> Left:
        saga = Saga(self._client, gid, options=self._plan.untimed)  # it ends by its answers, never by a time
        saga.add(order_step(self._plan), order_request(order).SerializeToString())
        saga.add(product_step(self._plan), product_request(order).SerializeToString())
        reach(CrashPoint.PREPARING)
        try:
            await saga.submit(timeout_ms=self._plan.submit_timeout_ms)
        except Refused:  # said of a saga that was compensated and of one that goes on
            return Unfinished(gid)
        except CallFailed as error:
            log.warning("submit_unanswered", code=error.code.name, detail=error.detail)
            return Unfinished(gid, self._coordinator_silent(error.detail))
        finally:
            reach(CrashPoint.SUBMITTED)
        return Finished(gid)

    async def _unheld(self, order: Order, left: Finished | Unfinished) -> Outcome:
        gid = left.gid
        cause = left.cause if isinstance(left, Unfinished) else None
        try:
            if await self._goes_on(gid):
                return Undecided(gid, "its saga goes on", cause)
            older = await self._orphans.confirmed_under(order.order_id)
            if older is not None and await self._orphans.undo_saga(older) is End.CARRIED:
                return Undecided(older, "the saga that wrote the order goes on")
        except BranchFailed as error:  # what is to be undone has been sold meanwhile
            return Undecided(gid, str(error))
        except SeckillError as error:
            return Undecided(gid, "nobody tells how its saga ended", error)
        return Failed(cause or TransactionCancelled(gid, "it was compensated"))

    async def _goes_on(self, gid: str) -> bool:
        """Whether the coordinator has not finished it. One that it does not know, or finished without its branches, may
        still be on its way to them: it is kept out.
        """
        look = await self._orphans.look(gid, SAGA)
        if look.transaction is not None and look.transaction.status == FAILED:
            return False
        return await self._orphans.undo_saga(gid) is End.CARRIED


def order_step(plan: Plan) -> Step:
    return Step(plan.told_order("CreateOrderDTM"), plan.told_order("CreateOrderDTMRevert"))


def product_step(plan: Plan) -> Step:
    return Step(plan.told_product("DecrStock"), plan.told_product("DecrStockRevert"))


def order_request(order: Order) -> order_pb2.AddOrderReq:
    item = order_item(order)
    return order_pb2.AddOrderReq(productid=order.product_id, sale_id=order.sale_id, item=item)


def product_request(order: Order) -> product_pb2.DecrStockRequest:
    (item,) = items_of([order])
    return product_pb2.DecrStockRequest(id=order.product_id, sale_id=order.sale_id, item=item)
