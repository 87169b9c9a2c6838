"""A group of orders as one TCC global transaction: Try product, Try order, Submit once, then read what became of it.

    begin ─▶ Try product (01) ─▶ Try order (02, survivors only) ─▶ submit ─▶ read the gid's reservations
               │ nobody left       │ refuses some     │ broken
               └──────────────────┴─▶ abort ─▶ read ─┴─▶ reject the refused, run the rest under a new gid

Product is branch 01 because a coordinator cancels last branch first: the order is closed before units are released.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc
import structlog
from structlog.contextvars import bound_contextvars
from uuid_utils import uuid7

from seckill.checkout.groups import cut, halves
from seckill.checkout.reservations import (
    TRANSIENT,
    Reservation,
    Reservations,
    ReservationState,
    items_of,
    outcome_of,
    reservation_from_wire,
)
from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import (
    BranchFailed,
    CoordinatorUnavailable,
    OrderUnavailable,
    ProductUnavailable,
    SeckillError,
    TransactionCancelled,
)
from seckill.domain.order import Order, OrderId
from seckill.domain.outcomes import Failed, Outcome, Undecided
from seckill.dtm.client import DtmClient
from seckill.dtm.errors import CallFailed, Refused
from seckill.dtm.protocol import TransOptions
from seckill.dtm.tcc import Branch, Tcc
from seckill.wire import order_pb2, product_pb2

log = structlog.get_logger()

REFUSED_METADATA = "seckill-refused-bin"

Outcomes = dict[OrderId, Outcome]


@dataclass(frozen=True, slots=True)
class TccPlan:
    """Where the branches are and how long things may take.

    Tries go to `…_address`; `…_branch_address` is where the coordinator finds the same branch, if that is another port.
    """

    product_address: str
    order_address: str
    try_timeout_ms: int
    submit_timeout_ms: int
    batch_max: int
    batch_bytes_max: int
    options: TransOptions
    product_branch_address: str | None = None
    order_branch_address: str | None = None

    @property
    def product(self) -> Branch:
        ours = f"{self.product_address}/product.Product"
        told = f"{self.product_branch_address or self.product_address}/product.Product"
        return Branch(f"{ours}/CheckProductStock", f"{told}/UpdateProductStock", f"{told}/RollbackProductStock")

    @property
    def order(self) -> Branch:
        ours = f"{self.order_address}/order.Order"
        told = f"{self.order_branch_address or self.order_address}/order.Order"
        return Branch(f"{ours}/CreateOrderCheck", f"{told}/CreateOrder", f"{told}/RollbackOrder")


# --- how the Try phase can end ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tried:
    """Both Tries took effect: submit."""


@dataclass(frozen=True, slots=True)
class NobodyLeft:
    """Product froze nothing for this gid: there is nothing to submit."""


@dataclass(frozen=True, slots=True)
class OrdersRefused:
    """Order will not take these (order key to reason); it took none of the group."""

    reasons: Mapping[bytes, str]


@dataclass(frozen=True, slots=True)
class Broken:
    """A call failed. `divisible`: the group itself may be the cause, so smaller ones may pass."""

    error: SeckillError
    divisible: bool = False


TryEnd = Tried | NobodyLeft | OrdersRefused | Broken


class TccCheckout:
    """Carries orders through TCC transactions. Opens nothing: the client and the channels are its caller's."""

    def __init__(self, client: DtmClient, reservations: Reservations, plan: TccPlan) -> None:
        self._client = client
        self._reservations = reservations
        self._plan = plan

    async def run(self, orders: Sequence[Order]) -> Outcomes:
        """An outcome for each order (ids are unique among them). Raises only what nobody foresaw."""
        outcomes: Outcomes = {}
        for group in cut(orders, count_max=self._plan.batch_max, bytes_max=self._plan.batch_bytes_max):
            outcomes |= await self._transact(group)
        return outcomes

    async def _transact(self, orders: Sequence[Order]) -> Outcomes:
        """One global transaction under a new gid, and what follows from its end."""
        gid = uuid7().hex
        with bound_contextvars(gid=gid):
            reach(CrashPoint.PREPARING)
            try:
                tcc = await Tcc.begin(self._client, gid, options=self._plan.options)
            except CallFailed as error:  # nothing was tried, so nothing can hold the orders
                return _all_failed(orders, CoordinatorUnavailable(self._client.address, error.detail))
            reach(CrashPoint.PREPARED)
            others: dict[bytes, Reservation] = {}
            end = await self._try_branches(tcc, orders, others)
            match end:
                case Tried():
                    await self._submit(tcc)
                    return await self._submitted(gid, orders, others)
                case NobodyLeft():
                    closed = await self._abort(tcc, "no order of the group is left")
                case OrdersRefused(reasons):
                    closed = await self._abort(tcc, f"order refused {len(reasons)} of {len(orders)}")
                case Broken(error=cause):
                    closed = await self._abort(tcc, str(cause))
            return await self._aborted(gid, orders, others, end, closed=closed)

    # --- Try -----------------------------------------------------------------------------------------------------

    async def _try_branches(self, tcc: Tcc, orders: Sequence[Order], others: dict[bytes, Reservation]) -> TryEnd:
        """Product first, then order with the survivors. Rows of other gids are put into `others`."""
        try:
            survivors = await self._try_product(tcc, orders, others)
        except CallFailed as error:
            return self._broken(tcc.gid, error, self._plan.product, ProductUnavailable)
        if not survivors:
            return NobodyLeft()
        try:
            await self._try_order(tcc, survivors)
        except Refused as error:
            if reasons := _refused_orders(error):
                return OrdersRefused(reasons)
            return self._broken(tcc.gid, error, self._plan.order, OrderUnavailable)
        except CallFailed as error:
            return self._broken(tcc.gid, error, self._plan.order, OrderUnavailable)
        log.info("tries_succeeded", orders=len(survivors), of=len(orders))
        return Tried()

    async def _try_product(
        self, tcc: Tcc, orders: Sequence[Order], others: dict[bytes, Reservation]
    ) -> Sequence[Order]:
        first = orders[0]
        small = product_pb2.UpdateProductStockRequest(product_id=first.product_id, sale_id=first.sale_id)
        request = product_pb2.UpdateProductStockRequest(
            product_id=first.product_id, sale_id=first.sale_id, items=items_of(orders)
        )
        # Confirm and Cancel act on the rows of their gid: they need no items, and the coordinator's log stays small.
        context = await tcc.register(self._plan.product, small.SerializeToString())
        reach(CrashPoint.PRODUCT_REGISTERED)
        reply = await tcc.call_try(
            self._plan.product, context, request.SerializeToString(), timeout_ms=self._plan.try_timeout_ms
        )
        reach(CrashPoint.PRODUCT_TRIED)
        rows = product_pb2.UpdateProductStockResponse.FromString(reply.payload).outcomes
        survivors = []
        for order, row in zip(orders, map(reservation_from_wire, rows), strict=True):
            if row.state is ReservationState.FROZEN and row.gid == tcc.gid:
                survivors.append(order)
            else:
                others[order.key] = row
        return survivors

    async def _try_order(self, tcc: Tcc, survivors: Sequence[Order]) -> None:
        first = survivors[0]
        request = order_pb2.CreateOrderRequest(
            pid=first.product_id,
            sale_id=first.sale_id,
            items=[
                order_pb2.Item(
                    order_id=order.key,
                    user_id=order.user_id,
                    quantity=order.quantity,
                    admitted_at_ms=order.admitted_at_ms,
                )
                for order in survivors
            ],
        )
        payload = request.SerializeToString()
        context = await tcc.register(self._plan.order, payload)
        reach(CrashPoint.ORDER_REGISTERED)
        await tcc.call_try(self._plan.order, context, payload, timeout_ms=self._plan.try_timeout_ms)
        reach(CrashPoint.ORDER_TRIED)

    def _broken(
        self, gid: str, error: CallFailed, branch: Branch, unavailable: type[ProductUnavailable | OrderUnavailable]
    ) -> Broken:
        """What a failed call means; pure. A branch that could not even be reached says nothing about the group."""
        log.warning("try_failed", target=error.target, code=error.code.name, detail=error.detail)
        if error.target != branch.try_:  # the registration, not the Try
            return Broken(CoordinatorUnavailable(self._client.address, error.detail))
        if isinstance(error, Refused):
            return Broken(TransactionCancelled(gid, error.detail))
        divisible = error.code is not grpc.StatusCode.UNAVAILABLE
        if error.code in TRANSIENT:
            return Broken(unavailable(branch.try_, f"{error.code.name} {error.detail}"), divisible)
        return Broken(BranchFailed(branch.try_, error.code.name, error.detail), divisible)

    # --- the end of the transaction ------------------------------------------------------------------------------

    async def _submit(self, tcc: Tcc) -> None:
        """Once, whatever it answers: only the rows say what happened."""
        try:
            await tcc.submit(timeout_ms=self._plan.submit_timeout_ms)
        except CallFailed as error:
            log.warning("submit_unanswered", code=error.code.name, detail=error.detail)
        reach(CrashPoint.SUBMITTED)

    async def _abort(self, tcc: Tcc, reason: str) -> bool:
        """Whether the coordinator says that every branch has been cancelled."""
        reach(CrashPoint.ABORTING)
        try:
            await tcc.abort(reason=reason)
        except CallFailed as error:
            log.warning("abort_unanswered", code=error.code.name, detail=error.detail)
            return False
        reach(CrashPoint.ABORTED)
        return True

    async def _submitted(self, gid: str, orders: Sequence[Order], others: Mapping[bytes, Reservation]) -> Outcomes:
        rows = await self._rows(gid)
        if isinstance(rows, SeckillError):
            detail = "submitted, and the product service does not tell what became of it"
            return _all_undecided(orders, gid, detail, rows)
        known = {**others, **rows}
        return {
            order.order_id: outcome_of(order, known.get(order.key), gid=gid)
            or Failed(TransactionCancelled(gid, "its units were released"))
            for order in orders
        }

    async def _aborted(
        self, gid: str, orders: Sequence[Order], others: Mapping[bytes, Reservation], end: TryEnd, *, closed: bool
    ) -> Outcomes:
        """What stands after an abort; orders that nothing holds are rejected, run again, or failed, as `end` says."""
        rows = await self._rows(gid)
        if isinstance(rows, SeckillError):
            detail = "aborted, and the product service does not tell what became of it"
            return _all_undecided(orders, gid, detail, rows)
        known = {**others, **rows}
        standing = {order.order_id: outcome_of(order, known.get(order.key), gid=gid) for order in orders}
        outcomes: Outcomes = {order_id: outcome for order_id, outcome in standing.items() if outcome is not None}
        free = [order for order in orders if standing[order.order_id] is None]
        if not free:
            return outcomes
        if not closed:  # a Try that is still on its way could take them yet
            silent = CoordinatorUnavailable(self._client.address, "the abort was not acknowledged")
            cause = end.error if isinstance(end, Broken) else silent
            return outcomes | _all_undecided(free, gid, "the abort was not acknowledged", cause)
        match end:
            case OrdersRefused(reasons):
                return outcomes | await self._reject_and_rerun(gid, free, reasons)
            case Broken(error, divisible=True) if len(free) > 1:
                return outcomes | await self._divide(free, error)
            case Broken(error):
                return outcomes | _all_failed(free, error)
            case _:
                return outcomes | _all_failed(free, TransactionCancelled(gid, "its units were released"))

    async def _reject_and_rerun(self, gid: str, free: Sequence[Order], reasons: Mapping[bytes, str]) -> Outcomes:
        """The refused end as rejected, and only as what then stands says; the rest runs under a new gid."""
        refused = [order for order in free if order.key in reasons]
        rest = [order for order in free if order.key not in reasons]
        outcomes = await self._reject(gid, refused, reasons)
        return outcomes | (await self._transact(rest) if rest else {})

    async def _reject(self, gid: str, refused: Sequence[Order], reasons: Mapping[bytes, str]) -> Outcomes:
        try:
            rows = await self._reservations.reject(refused, reasons)
        except SeckillError as error:
            return _all_failed(refused, error)
        lost = Failed(TransactionCancelled(gid, "its rejection did not stay"))
        return {order.order_id: outcome_of(order, rows.get(order.key), gid=gid) or lost for order in refused}

    async def _divide(self, orders: Sequence[Order], error: SeckillError) -> Outcomes:
        """Two halves. When a slow service fails the first half as well, the second is spared the same wait."""
        first, second = halves(orders)
        outcomes = await self._transact(first)
        if error.retryable and all(isinstance(outcome, Failed | Undecided) for outcome in outcomes.values()):
            return outcomes | _all_failed(second, error)
        return outcomes | await self._transact(second)

    async def _rows(self, gid: str) -> dict[bytes, Reservation] | SeckillError:
        try:
            return await self._reservations.of_gid(gid)
        except SeckillError as error:
            log.warning("rows_unread", error=str(error))
            return error


def _refused_orders(error: Refused) -> dict[bytes, str]:
    raw = error.trailing.get(REFUSED_METADATA, b"")
    if not isinstance(raw, bytes) or not raw:
        return {}
    return {row.order_id: row.reason for row in order_pb2.CreateOrderResponse.FromString(raw).refused}


def _all_failed(orders: Sequence[Order], error: Exception) -> Outcomes:
    return {order.order_id: Failed(error) for order in orders}


def _all_undecided(orders: Sequence[Order], gid: str, detail: str, cause: Exception | None) -> Outcomes:
    return {order.order_id: Undecided(gid, detail, cause) for order in orders}
