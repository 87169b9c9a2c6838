"""A group of orders as one XA transaction: both databases hold it prepared until the coordinator commits or rolls back.

Nothing of it can be seen before it is committed, so product sells at once, and no row ever says frozen. Product is
branch 01: a coordinator commits first branch first, so what can be seen in product is the decision to commit.

    an order that is published again while its first XA is still prepared
        worker A: SellStockXa, CreateOrderXa, Submit unanswered ─▶ no row can be seen ─▶ undecided, the offset passes
        reconcile: the entry is due, no row ─▶ publishes it again
        worker B: SellStockXa waits for the sale's row, which A's branch has locked
            A is committed meanwhile   ─▶ B finds the order sold by A's gid: confirmed
            A is rolled back meanwhile ─▶ B sells it
            neither                    ─▶ B's wait ends by its time-out: no attempt while anything is prepared
"""

from __future__ import annotations

from seckill.checkout.grouped import GroupCheckout
from seckill.checkout.plan import Plan
from seckill.checkout.prepared import PreparedBranches
from seckill.checkout.reservations import Reservation, Reservations, ReservationState
from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import ProductUnavailable, SeckillError
from seckill.domain.outcomes import Outcome, Undecided
from seckill.dtm.client import DtmClient
from seckill.dtm.xa import Xa
from seckill.wire import order_pb2, product_pb2


class XaCheckout(GroupCheckout[Xa]):
    """Carries groups through XA transactions. Opens nothing."""

    held = ReservationState.SOLD
    product_method = "SellStockXa"
    order_method = "CreateOrderXa"

    def __init__(self, client: DtmClient, reservations: Reservations, prepared: PreparedBranches, plan: Plan) -> None:
        super().__init__(client, reservations, plan)
        self._prepared = prepared

    async def _begin(self, gid: str) -> Xa:
        return await Xa.begin(self._client, gid, options=self._plan.options)

    async def _call_product(
        self, transaction: Xa, request: product_pb2.UpdateProductStockRequest
    ) -> product_pb2.UpdateProductStockResponse:
        plan, method = self._plan, self.product_method
        context = await transaction.register(plan.told_product(method))
        reach(CrashPoint.PRODUCT_REGISTERED)
        reply = await self._client.channels.call(
            plan.product(method), request.SerializeToString(), context.metadata(), timeout_ms=plan.try_timeout_ms
        )
        reach(CrashPoint.PRODUCT_TRIED)
        return product_pb2.UpdateProductStockResponse.FromString(reply)

    async def _call_order(self, transaction: Xa, request: order_pb2.CreateOrderRequest) -> None:
        plan, method = self._plan, self.order_method
        context = await transaction.register(plan.told_order(method))
        reach(CrashPoint.ORDER_REGISTERED)
        await self._client.channels.call(
            plan.order(method), request.SerializeToString(), context.metadata(), timeout_ms=plan.try_timeout_ms
        )
        reach(CrashPoint.ORDER_TRIED)

    def _told(self, gid: str, row: Reservation) -> bool:
        """Another's row. Its own rejections are prepared as its sales are, and stand once it is committed: a group that
        was wholly refused is submitted as well.
        """
        return row.gid != gid

    def _unseen(self, gid: str) -> Outcome:
        return Undecided(gid, "submitted, and product may still hold it prepared")

    async def _blocked_by(self, gid: str, error: SeckillError) -> str | None:
        """An order must not die of waiting for its own older XA, which may yet be committed."""
        if not isinstance(error, ProductUnavailable):
            return None
        try:
            others = await self._prepared.in_product() - {gid}
        except SeckillError:
            return None  # it is down, which is no attempt either
        return min(others, default=None)
