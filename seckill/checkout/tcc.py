"""A group of orders as one TCC transaction: Try freezes and checks; the coordinator confirms or cancels.

Product is branch 01 because a coordinator cancels last branch first: the order is closed before units are released.
"""

from __future__ import annotations

from seckill.checkout.grouped import GroupCheckout
from seckill.checkout.plan import Plan
from seckill.checkout.reservations import Reservation, ReservationState
from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import TransactionCancelled
from seckill.domain.outcomes import Failed, Outcome
from seckill.dtm.tcc import Branch, Tcc
from seckill.wire import order_pb2, product_pb2


def product_branch(plan: Plan) -> Branch:
    return Branch(
        plan.product("CheckProductStock"),
        plan.told_product("UpdateProductStock"),
        plan.told_product("RollbackProductStock"),
    )


def order_branch(plan: Plan) -> Branch:
    return Branch(plan.order("CreateOrderCheck"), plan.told_order("CreateOrder"), plan.told_order("RollbackOrder"))


class TccCheckout(GroupCheckout[Tcc]):
    """Carries groups through TCC transactions. Opens nothing."""

    held = ReservationState.FROZEN
    product_method = "CheckProductStock"
    order_method = "CreateOrderCheck"

    async def _begin(self, gid: str) -> Tcc:
        return await Tcc.begin(self._client, gid, options=self._plan.options)

    async def _call_product(
        self, transaction: Tcc, request: product_pb2.UpdateProductStockRequest
    ) -> product_pb2.UpdateProductStockResponse:
        # Confirm and Cancel act on the rows of their gid: they need no items, and the coordinator's log stays small.
        small = product_pb2.UpdateProductStockRequest(product_id=request.product_id, sale_id=request.sale_id)
        branch = product_branch(self._plan)
        context = await transaction.register(branch, small.SerializeToString())
        reach(CrashPoint.PRODUCT_REGISTERED)
        reply = await transaction.call_try(
            branch, context, request.SerializeToString(), timeout_ms=self._plan.try_timeout_ms
        )
        reach(CrashPoint.PRODUCT_TRIED)
        return product_pb2.UpdateProductStockResponse.FromString(reply.payload)

    async def _call_order(self, transaction: Tcc, request: order_pb2.CreateOrderRequest) -> None:
        payload = request.SerializeToString()
        branch = order_branch(self._plan)
        context = await transaction.register(branch, payload)
        reach(CrashPoint.ORDER_REGISTERED)
        await transaction.call_try(branch, context, payload, timeout_ms=self._plan.try_timeout_ms)
        reach(CrashPoint.ORDER_TRIED)

    def _told(self, gid: str, row: Reservation) -> bool:
        """A Try has committed what it answers: what is not frozen for this gid is a rejection, or another's row."""
        return not (row.gid == gid and row.state is self.held)

    def _unseen(self, gid: str) -> Outcome:
        return Failed(TransactionCancelled(gid, "its units were released"))
