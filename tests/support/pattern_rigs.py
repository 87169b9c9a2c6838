"""A checkout of any pattern between services that are real, on a network that a test tells what to lose."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from seckill.checkout.ends import PATTERNS
from seckill.checkout.orphans import Orphans
from seckill.checkout.plan import Checkout, Plan
from seckill.checkout.reservations import Reservations, items_of
from seckill.checkout.saga import order_request, product_request
from seckill.crashpoints import CrashPoint, arm
from seckill.domain.order import Order, derived_order_id
from seckill.dtm.protocol import ACTION, BranchContext
from seckill.settings import Settings
from seckill.wire import order_pb2, product_pb2
from seckill.wiring import open_channel, with_values
from seckill.wiring.checkout import checkout_of, orphans_of, plan_of
from tests.support.backbone import Backbone
from tests.support.unreliable import UnreliableChannels, UnreliableClient, open_unreliable


@dataclass(frozen=True, slots=True)
class PatternRig:
    """`order` and `product` send what a coordinator sends, under a gid that a test chooses."""

    backbone: Backbone
    client: UnreliableClient
    channels: UnreliableChannels
    checkout: Checkout
    orphans: Orphans
    plan: Plan
    trans_type: str

    async def order(self, gid: str, orders: list[Order], op: str = ACTION) -> None:
        """Of a saga or a message the first order alone."""
        method, request = "CreateOrderDTM", order_request(orders[0]).SerializeToString()
        if self.trans_type == "xa":
            first, items = orders[0], [order_request(each).item for each in orders]
            whole = order_pb2.CreateOrderRequest(pid=first.product_id, sale_id=first.sale_id, items=items)
            method, request = "CreateOrderXa", whole.SerializeToString()
        await self._call(gid, PATTERNS[self.trans_type].order_branch, op, self.plan.order(method), request)

    async def product(self, gid: str, orders: list[Order], op: str = ACTION) -> None:
        method, request = "DecrStock", product_request(orders[0]).SerializeToString()
        if self.trans_type == "xa":
            first = orders[0]
            whole = product_pb2.UpdateProductStockRequest(
                product_id=first.product_id, sale_id=first.sale_id, items=items_of(orders)
            )
            method, request = "SellStockXa", whole.SerializeToString()
        await self._call(gid, PATTERNS[self.trans_type].product_branch, op, self.plan.product(method), request)

    async def _call(self, gid: str, branch_id: str, op: str, target: str, payload: bytes) -> None:
        context = BranchContext(gid, self.trans_type, branch_id, op, self.client.address)
        await self.channels.call(target, payload, context.metadata(), timeout_ms=3_000)

    async def prepared(self) -> set[str]:
        """The gids that either database holds prepared."""
        return await self.orphans.prepared.in_product() | await self.orphans.prepared.in_order()


def of_pattern(settings: Settings, pattern: str) -> Settings:
    return with_values(settings, {"transaction": {"pattern": pattern}})


@asynccontextmanager
async def open_pattern_rig(backbone: Backbone, pattern: str, **over: dict[str, object]) -> AsyncIterator[PatternRig]:
    """`over`: settings of sections that differ from the backbone's."""
    settings = with_values(of_pattern(backbone.settings, pattern), over)
    async with (
        open_unreliable(settings.dtm.grpc, settings.dtm.http) as (client, channels),
        open_channel(settings.product.grpc) as product,
        open_channel(settings.order.grpc) as order,
    ):
        reservations = Reservations(product, address=settings.product.grpc, timeout_ms=3_000)
        checkout = checkout_of(settings, client, reservations, product=product, order=order)
        orphans = orphans_of(settings, client, product=product, order=order)
        trans_type = "msg" if pattern == "message" else pattern
        yield PatternRig(backbone, client, channels, checkout, orphans, plan_of(settings), trans_type)


async def orders_of(backbone: Backbone, users: list[int], *, stock: int, limit: int = 1) -> list[Order]:
    """Orders of a new sale that no front has admitted: only the databases know of them."""
    sale = await backbone.open_sale(stock=stock, per_user_limit=limit)
    return [
        Order(
            derived_order_id(sale.product_id, f"{number}", user, at_ms=1), sale.sale_id, user, sale.product_id, 1, 1, 1
        )
        for number, user in enumerate(users)
    ]


class Died(BaseException):
    """A worker that is not there any more."""


@contextmanager
def dying_at(point: CrashPoint) -> Iterator[None]:
    """Who reaches the point dies there. The services of this process are reached as well: choose one of a worker."""

    def die(reached: CrashPoint) -> None:
        if reached is point:
            raise Died

    arm(die)
    try:
        yield
    except Died:
        pass
    finally:
        arm(None)
