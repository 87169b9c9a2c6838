"""How a branch is ended for its coordinator: the same calls, under the same gid and branch ids, of every pattern.

They pass the barrier and decision rows that a coordinator's calls pass: whoever comes first decides, and a stray call
that comes later changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc

from seckill.checkout.reservations import TRANSIENT, Reservation, ReservationState, reservation_from_wire
from seckill.domain.errors import BranchFailed, OrderUnavailable, ProductUnavailable
from seckill.dtm.client import DtmClient
from seckill.dtm.errors import CallFailed, Unavailable
from seckill.dtm.protocol import (
    CANCEL,
    COMMIT,
    COMPENSATE,
    CONFIRM,
    MSG,
    MSG_BRANCH,
    ROLLBACK,
    SAGA,
    TCC,
    XA,
    BranchContext,
)
from seckill.wire import product_pb2, product_pb2_grpc

HOLDS_MAX = 500
"""Branches in one ConfirmHolds."""


@dataclass(frozen=True, slots=True)
class Call:
    """A branch's method, and the operation under which a coordinator calls it."""

    op: str
    method: str


@dataclass(frozen=True, slots=True)
class Pattern:
    """The branches of a checkout's transaction. `confirm_product` None: ConfirmHolds, which no coordinator calls."""

    product_branch: str
    order_branch: str
    cancel_product: Call
    cancel_order: Call
    confirm_product: Call | None = None
    confirm_order: Call | None = None


_COMPENSATED = {
    "cancel_product": Call(COMPENSATE, "DecrStockRevert"),
    "cancel_order": Call(COMPENSATE, "CreateOrderDTMRevert"),
}
PATTERNS: Mapping[str, Pattern] = {
    TCC: Pattern(
        "01", "02", Call(CANCEL, "RollbackProductStock"), Call(CANCEL, "RollbackOrder"),
        confirm_product=Call(CONFIRM, "UpdateProductStock"),
    ),
    SAGA: Pattern("02", "01", **_COMPENSATED),
    MSG: Pattern(MSG_BRANCH, "01", **_COMPENSATED),
    XA: Pattern(
        "01", "02", Call(ROLLBACK, "SellStockXa"), Call(ROLLBACK, "CreateOrderXa"),
        confirm_product=Call(COMMIT, "SellStockXa"), confirm_order=Call(COMMIT, "CreateOrderXa"),
    ),
}  # fmt: skip
"""By DTM's name of the pattern."""


class Ends:
    """Opens nothing. Raises ProductUnavailable, OrderUnavailable, and BranchFailed when a branch contradicts."""

    def __init__(
        self,
        client: DtmClient,
        *,
        product: grpc.aio.Channel,
        product_address: str,
        order_address: str,
        timeout_ms: int,
    ) -> None:
        self._client = client
        self._product = product_pb2_grpc.ProductStub(product)
        self._product_address = product_address
        self._order_address = order_address
        self._timeout_ms = timeout_ms

    async def confirm_holds(self, gids: Sequence[str], trans_type: str) -> list[Reservation]:
        """Sells what finished sagas or messages hold; their rows as they then stand."""
        branch_id = PATTERNS[trans_type].product_branch
        rows: list[Reservation] = []
        for start in range(0, len(gids), HOLDS_MAX):
            some = gids[start : start + HOLDS_MAX]
            holds = [product_pb2.HoldId(gid=gid, branch_id=branch_id, trans_type=trans_type) for gid in some]
            request = product_pb2.ConfirmHoldsRequest(holds=holds)
            try:
                reply = await self._product.ConfirmHolds(request, timeout=self._timeout_ms / 1000)
            except grpc.aio.AioRpcError as error:
                detail = f"{error.code().name} {error.details()}"
                if error.code() in TRANSIENT:
                    raise ProductUnavailable(self._product_address, f"ConfirmHolds: {detail}") from error
                raise BranchFailed("product.Product/ConfirmHolds", error.code().name, detail) from error
            rows += map(reservation_from_wire, reply.reservations)
        return rows

    async def confirm_product(self, gid: str, trans_type: str) -> None:
        """What the branch has taken is sold."""
        if (call := PATTERNS[trans_type].confirm_product) is not None:
            await self._call_product(gid, trans_type, call)
            return
        rows = await self.confirm_holds([gid], trans_type)
        if any(row.state is not ReservationState.SOLD for row in rows):
            raise BranchFailed("product.Product/ConfirmHolds", "FAILED_PRECONDITION", f"{gid} was cancelled before")

    async def confirm_order(self, gid: str, trans_type: str) -> None:
        """Only where an order is not written before product is confirmed."""
        if (call := PATTERNS[trans_type].confirm_order) is not None:
            await self._call_order(gid, trans_type, call)

    async def cancel_order(self, gid: str, trans_type: str) -> None:
        await self._call_order(gid, trans_type, PATTERNS[trans_type].cancel_order)

    async def cancel_product(self, gid: str, trans_type: str) -> None:
        await self._call_product(gid, trans_type, PATTERNS[trans_type].cancel_product)

    async def _call_product(self, gid: str, trans_type: str, call: Call) -> None:
        context = BranchContext(gid, trans_type, PATTERNS[trans_type].product_branch, call.op, self._client.address)
        try:
            await self._call(context, f"{self._product_address}/product.Product/{call.method}")
        except Unavailable as error:
            detail = f"{call.method}: {error.code.name} {error.detail}"
            raise ProductUnavailable(self._product_address, detail) from error

    async def _call_order(self, gid: str, trans_type: str, call: Call) -> None:
        context = BranchContext(gid, trans_type, PATTERNS[trans_type].order_branch, call.op, self._client.address)
        try:
            await self._call(context, f"{self._order_address}/order.Order/{call.method}")
        except Unavailable as error:
            raise OrderUnavailable(self._order_address, f"{call.method}: {error.code.name} {error.detail}") from error

    async def _call(self, context: BranchContext, target: str) -> None:
        """As a coordinator calls it. The branches act on the rows of their gid, so the payload is empty."""
        try:
            await self._client.channels.call(target, b"", context.metadata(), timeout_ms=self._timeout_ms)
        except Unavailable:
            raise
        except CallFailed as error:
            raise BranchFailed(target, error.code.name, error.detail) from error
