"""The reservation rows as the checkout reads them: the only place where an order's fate is decided."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import grpc

from seckill.checkout.groups import halves
from seckill.domain.errors import BranchFailed, OrderIdReused, ProductUnavailable, SeckillError
from seckill.domain.order import Order
from seckill.domain.outcomes import Confirmed, Failed, Outcome, Rejected, Undecided
from seckill.wire import product_pb2, product_pb2_grpc

LOOKUP_MAX = 500
"""Order ids in one look-up."""

PAGE = 1_000
"""Reservations of a sale that come at once."""

TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)


class ReservationState(Enum):
    FROZEN = product_pb2.FROZEN
    SOLD = product_pb2.SOLD
    RELEASED = product_pb2.RELEASED
    REJECTED = product_pb2.REJECTED


@dataclass(frozen=True, slots=True)
class Reservation:
    """What stands about one order: `gid` holds or ended it, `reason` belongs to REJECTED (or names a conflict).

    `sale_id` 0: rejected before a sale was known; `gid` empty: rejected outside a transaction.
    """

    key: bytes
    state: ReservationState
    gid: str
    reason: str
    sale_id: int
    product_id: int
    user_id: int
    quantity: int

    def is_of(self, order: Order) -> bool:
        """Whether the row was written for this order. An order past the front may not name its sale yet."""
        contents = (self.product_id, self.user_id, self.quantity)
        same_sale = self.sale_id == order.sale_id or 0 in (self.sale_id, order.sale_id)
        return same_sale and contents == (order.product_id, order.user_id, order.quantity)


def outcome_of(order: Order, row: Reservation | None, *, gid: str) -> Outcome | None:
    """What a row means for its order; None when nothing holds it and a new gid may try. Pure.

    `gid` is the transaction that asks: frozen under it is as undecided as under any other, once it was submitted.
    """
    if row is None:
        return None
    if not row.is_of(order):
        return Failed(OrderIdReused(order.order_id))
    match row.state:
        case ReservationState.RELEASED:
            return None
        case ReservationState.SOLD:
            return Confirmed()
        case ReservationState.REJECTED:
            return Rejected(row.reason, by_admission=not row.gid)
        case ReservationState.FROZEN:
            return Undecided(row.gid, "its own transaction" if row.gid == gid else "another transaction holds it")


def reservation_from_wire(row: product_pb2.Reservation) -> Reservation:
    return Reservation(
        row.order_id, ReservationState(row.state), row.gid, row.reason, row.sale_id,
        row.product_id, row.user_id, row.quantity,
    )  # fmt: skip


def items_of(orders: Iterable[Order]) -> list[product_pb2.Item]:
    return [
        product_pb2.Item(
            order_id=order.key, user_id=order.user_id, quantity=order.quantity, admitted_at_ms=order.admitted_at_ms
        )
        for order in orders
    ]


class Reservations:
    """Read and reject reservations over gRPC. Every method raises ProductUnavailable, or BranchFailed."""

    def __init__(self, channel: grpc.aio.Channel, *, address: str, timeout_ms: int) -> None:
        self._stub = product_pb2_grpc.ProductStub(channel)
        self._address = address
        self._timeout_s = timeout_ms / 1000

    async def of_gid(self, gid: str) -> dict[bytes, Reservation]:
        """Rows that the gid holds or ended, by order key."""
        request = product_pb2.ReservationsOfGidRequest(gid=gid)
        try:
            reply = await self._stub.ReservationsOfGid(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._problem("ReservationsOfGid", error) from error
        return _by_key(reply.reservations)

    async def of_orders(self, orders: Sequence[Order]) -> dict[bytes, Reservation]:
        """Rows of these orders, by order key; an order without a row is absent."""
        found: dict[bytes, Reservation] = {}
        for start in range(0, len(orders), LOOKUP_MAX):
            keys = [order.key for order in orders[start : start + LOOKUP_MAX]]
            request = product_pb2.ReservationsRequest(order_ids=keys)
            try:
                reply = await self._stub.Reservations(request, timeout=self._timeout_s)
            except grpc.aio.AioRpcError as error:
                raise self._problem("Reservations", error) from error
            found |= _by_key(reply.reservations)
        return found

    async def readable(self, orders: Sequence[Order]) -> tuple[dict[bytes, Reservation], dict[bytes, Exception]]:
        """As `of_orders`, and by order key why a row cannot be read: it keeps nobody from the rows of the others.

        Raises ProductUnavailable alone.
        """
        try:
            return await self.of_orders(orders), {}
        except (BranchFailed, ValueError) as error:  # the latter: a state that is not known here
            if len(orders) == 1:
                return {}, {orders[0].key: error}
        rows: dict[bytes, Reservation] = {}
        unread: dict[bytes, Exception] = {}
        for half in halves(orders):
            found, failed = await self.readable(half)
            rows |= found
            unread |= failed
        return rows, unread

    async def pages_of_sale(self, sale_id: int) -> AsyncIterator[list[Reservation]]:
        """Every row of the sale, by buyer and order id. Each page is read for itself: rows may change in between."""
        user_id, key = 0, b""
        while True:
            page = await self._of_sale(sale_id, after=(user_id, key), limit=PAGE)
            if page:
                yield page
                user_id, key = page[-1].user_id, page[-1].key
            if len(page) < PAGE:
                return

    async def any_open(self, sale_id: int) -> bool:
        """Whether an order of the sale has a row and has not ended."""
        return bool(await self._of_sale(sale_id, after=(0, b""), limit=1, open_only=True))

    async def _of_sale(
        self, sale_id: int, *, after: tuple[int, bytes], limit: int, open_only: bool = False
    ) -> list[Reservation]:
        request = product_pb2.ReservationsOfSaleRequest(
            sale_id=sale_id, after_user_id=after[0], after_order_id=after[1], limit=limit, open_only=open_only
        )
        try:
            reply = await self._stub.ReservationsOfSale(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._problem("ReservationsOfSale", error) from error
        return [reservation_from_wire(row) for row in reply.reservations]

    async def reject(self, orders: Sequence[Order], reasons: Mapping[bytes, str]) -> dict[bytes, Reservation]:
        """Writes `rejected(reason)` over `released` or no row; answers what then stands, which may be another end."""
        standing: dict[bytes, Reservation] = {}
        for reason in sorted(set(reasons.values())):
            for sale_id, product_id in sorted({(o.sale_id, o.product_id) for o in orders}):
                chosen = [
                    o for o in orders
                    if reasons.get(o.key) == reason and (o.sale_id, o.product_id) == (sale_id, product_id)
                ]  # fmt: skip
                if chosen:
                    standing |= await self._reject(chosen, reason, sale_id=sale_id, product_id=product_id)
        return standing

    async def _reject(
        self, orders: Sequence[Order], reason: str, *, sale_id: int, product_id: int
    ) -> dict[bytes, Reservation]:
        request = product_pb2.RejectReservationsRequest(
            product_id=product_id, sale_id=sale_id, reason=reason, items=items_of(orders)
        )
        try:
            reply = await self._stub.RejectReservations(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._problem("RejectReservations", error) from error
        return _by_key(reply.reservations)

    def _problem(self, method: str, error: grpc.aio.AioRpcError) -> SeckillError:
        detail = f"{error.code().name} {error.details()}"
        if error.code() in TRANSIENT:
            return ProductUnavailable(self._address, f"{method}: {detail}")
        return BranchFailed(f"product.Product/{method}", error.code().name, error.details() or "")


def _by_key(rows: Iterable[product_pb2.Reservation]) -> dict[bytes, Reservation]:
    return {row.order_id: reservation_from_wire(row) for row in rows}
