"""Transactions that hold units and that their coordinator no longer carries: ended the way they stand.

A coordinator can lose a gid (a store that was wiped or set back), or call it finished without having called a branch
(DTM answers OK to the Submit of a gid that it has lost). The branches then stay undecided for ever. They are ended
under the same gid and branch ids, through the same barrier and decision rows that a coordinator's calls pass: whoever
comes first decides, and a stray call that comes later changes nothing.

    a confirmed order of the gid ─▶ Confirm product
    none                         ─▶ Cancel order ─▶ only after its OK: Cancel product
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import grpc
import structlog
from structlog.contextvars import bound_contextvars

from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import BranchFailed, CoordinatorUnavailable, OrderUnavailable, ProductUnavailable
from seckill.domain.order import MAX_ID
from seckill.dtm.client import DtmClient
from seckill.dtm.errors import CallFailed, Unavailable
from seckill.dtm.protocol import CANCEL, CONFIRM, BranchContext, GlobalTransaction
from seckill.wire import order_pb2, order_pb2_grpc, product_pb2, product_pb2_grpc

log = structlog.get_logger()

PRODUCT_BRANCH = "01"
ORDER_BRANCH = "02"


@dataclass(frozen=True, slots=True)
class Hold:
    """A branch of the product service that holds units and is undecided; `age_ms` since its Try."""

    gid: str
    branch_id: str
    age_ms: int


class End(Enum):
    """What was done about a transaction, or would be."""

    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"
    CARRIED = "carried"  # its coordinator still carries it: nothing was done


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a gid before anything is done. `transaction`: what its coordinator says, None: unknown there."""

    gid: str
    transaction: GlobalTransaction | None
    confirmed_orders: int

    @property
    def end(self) -> End:
        if self.transaction is not None and not self.transaction.finished:
            return End.CARRIED
        return End.CONFIRMED if self.confirmed_orders else End.CANCELLED


class Orphans:
    """Finds and ends them. Opens nothing. Raises ProductUnavailable, OrderUnavailable, CoordinatorUnavailable, and
    BranchFailed when a branch contradicts.
    """

    def __init__(
        self,
        client: DtmClient,
        *,
        product: grpc.aio.Channel,
        order: grpc.aio.Channel,
        product_address: str,
        order_address: str,
        timeout_ms: int,
    ) -> None:
        self._client = client
        self._product = product_pb2_grpc.ProductStub(product)
        self._order = order_pb2_grpc.OrderStub(order)
        self._product_address = product_address
        self._order_address = order_address
        self._timeout_ms = timeout_ms

    async def holds(self, *, older_than_ms: int, newer_than_ms: int | None = None, limit: int) -> list[Hold]:
        """Undecided branches that hold units, oldest first."""
        request = product_pb2.StaleHoldsRequest(
            older_than_ms=older_than_ms, newer_than_ms=min(newer_than_ms or 0, MAX_ID), limit=limit
        )
        try:
            reply = await self._product.StaleHolds(request, timeout=self._timeout_ms / 1000)
        except grpc.aio.AioRpcError as error:
            raise ProductUnavailable(self._product_address, f"StaleHolds: {error.code().name}") from error
        return [Hold(row.gid, row.branch_id, row.age_ms) for row in reply.holds]

    async def look(self, gid: str) -> Look:
        """What the coordinator itself and the order service say of the gid."""
        try:
            transaction = await self._client.query(gid)
        except CallFailed as error:
            raise CoordinatorUnavailable(self._client.address, error.detail) from error
        try:
            orders = await self._order.OrdersOfGid(
                order_pb2.OrdersOfGidRequest(gid=gid), timeout=self._timeout_ms / 1000
            )
        except grpc.aio.AioRpcError as error:
            raise OrderUnavailable(self._order_address, f"OrdersOfGid: {error.code().name}") from error
        confirmed = sum(order.status == "confirmed" for order in orders.orders)
        return Look(gid, transaction, confirmed)

    async def end(self, look: Look) -> End:
        """Ends what nobody carries any more."""
        with bound_contextvars(gid=look.gid):
            match look.end:
                case End.CARRIED:
                    return End.CARRIED
                case End.CONFIRMED:
                    reach(CrashPoint.ORPHAN_FOUND)
                    await self._call_product(look.gid, CONFIRM, "UpdateProductStock")
                case End.CANCELLED:
                    reach(CrashPoint.ORPHAN_FOUND)
                    await self._call_order(look.gid, CANCEL, "RollbackOrder")
                    reach(CrashPoint.ORPHAN_ORDER_CANCELLED)
                    await self._call_product(look.gid, CANCEL, "RollbackProductStock")
            reach(CrashPoint.ORPHAN_ENDED)
            log.warning(
                "orphan_ended",
                end=look.end.value,
                coordinator=look.transaction.status if look.transaction else "unknown",
            )
            return look.end

    async def _call_product(self, gid: str, op: str, method: str) -> None:
        try:
            await self._call(gid, PRODUCT_BRANCH, op, f"{self._product_address}/product.Product/{method}")
        except Unavailable as error:
            raise ProductUnavailable(self._product_address, f"{method}: {error.code.name} {error.detail}") from error

    async def _call_order(self, gid: str, op: str, method: str) -> None:
        try:
            await self._call(gid, ORDER_BRANCH, op, f"{self._order_address}/order.Order/{method}")
        except Unavailable as error:
            raise OrderUnavailable(self._order_address, f"{method}: {error.code.name} {error.detail}") from error

    async def _call(self, gid: str, branch_id: str, op: str, target: str) -> None:
        """As a coordinator calls it. The branches act on the rows of their gid, so the payload is empty."""
        context = BranchContext(gid, "tcc", branch_id, op, self._client.address)
        try:
            await self._client.channels.call(target, b"", context.metadata(), timeout_ms=self._timeout_ms)
        except Unavailable:
            raise
        except CallFailed as error:
            raise BranchFailed(target, error.code.name, error.detail) from error
