"""A group of orders as one global transaction: product takes, order agrees, Submit once, then read what became of it.

    begin ─▶ product (01) ─▶ order (02, survivors only) ─▶ submit ─▶ read the gid's reservations
               │ nobody left   │ refuses some     │ broken
               └──────────────┴─▶ abort ─▶ read ─┴─▶ reject the refused, run the rest under a new gid

What TCC and XA have in common; `tcc.py` and `xa.py` say how a branch is called, and what its answers and rows mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import structlog
from structlog.contextvars import bound_contextvars
from uuid_utils import uuid7

from seckill.checkout.groups import cut, halves
from seckill.checkout.plan import Broken, Outcomes, Plan, all_failed, all_undecided, broken, order_item
from seckill.checkout.reservations import (
    Reservation,
    Reservations,
    ReservationState,
    items_of,
    outcome_of,
    reservation_from_wire,
)
from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import (
    CoordinatorUnavailable,
    OrderUnavailable,
    ProductUnavailable,
    SeckillError,
    TransactionCancelled,
)
from seckill.domain.order import Order
from seckill.domain.outcomes import Failed, Outcome, Undecided
from seckill.dtm.client import DtmClient
from seckill.dtm.errors import CallFailed, Refused
from seckill.dtm.starter import BranchedStarter
from seckill.wire import order_pb2, product_pb2

log = structlog.get_logger()

REFUSED_METADATA = "seckill-refused-bin"

S = TypeVar("S", bound=BranchedStarter)


# --- how the branches can end ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agreed:
    """Both branches have taken the survivors: submit."""


@dataclass(frozen=True, slots=True)
class NobodyLeft:
    """Product took nothing for this gid: there is nothing to submit."""


@dataclass(frozen=True, slots=True)
class OrdersRefused:
    """Order will not take these (order key to reason); it took none of the group."""

    reasons: Mapping[bytes, str]


End = Agreed | NobodyLeft | OrdersRefused | Broken


class GroupCheckout(ABC, Generic[S]):
    """Carries groups through transactions of one pattern. Opens nothing: client and channels are its caller's."""

    held: ClassVar[ReservationState]
    """How product's reply tells an order that the gid has taken."""
    product_method: ClassVar[str]
    order_method: ClassVar[str]

    def __init__(self, client: DtmClient, reservations: Reservations, plan: Plan) -> None:
        self._client = client
        self._reservations = reservations
        self._plan = plan

    # --- what the pattern says -----------------------------------------------------------------------------------

    @abstractmethod
    async def _begin(self, gid: str) -> S:
        """Prepares the transaction. Raises CallFailed."""

    @abstractmethod
    async def _call_product(
        self, transaction: S, request: product_pb2.UpdateProductStockRequest
    ) -> product_pb2.UpdateProductStockResponse:
        """Registers branch 01 and calls it. Raises CallFailed."""

    @abstractmethod
    async def _call_order(self, transaction: S, request: order_pb2.CreateOrderRequest) -> None:
        """Registers branch 02 and calls it. Raises CallFailed."""

    @abstractmethod
    def _told(self, gid: str, row: Reservation) -> bool:
        """Whether a row of product's reply stands whatever becomes of the transaction."""

    @abstractmethod
    def _unseen(self, gid: str) -> Outcome:
        """What no row of an order means once its transaction was submitted."""

    async def _blocked_by(self, gid: str, error: SeckillError) -> str | None:
        """The gid of an undecided transaction that no row tells, and that may hold what failed like this."""
        return None

    # --- the path ------------------------------------------------------------------------------------------------

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
                transaction = await self._begin(gid)
            except CallFailed as error:  # nothing was tried, so nothing can hold the orders
                return all_failed(orders, CoordinatorUnavailable(self._client.address, error.detail))
            reach(CrashPoint.PREPARED)
            others: dict[bytes, Reservation] = {}
            end = await self._call_branches(transaction, orders, others)
            match end:
                case Agreed():
                    await self._submit(transaction)
                    return await self._submitted(gid, orders, others)
                case NobodyLeft():
                    closed = await self._abort(transaction, "no order of the group is left")
                case OrdersRefused(reasons):
                    closed = await self._abort(transaction, f"order refused {len(reasons)} of {len(orders)}")
                case Broken(error=cause):
                    closed = await self._abort(transaction, str(cause))
            return await self._aborted(gid, orders, others, end, closed=closed)

    # --- the branches --------------------------------------------------------------------------------------------

    async def _call_branches(self, transaction: S, orders: Sequence[Order], others: dict[bytes, Reservation]) -> End:
        """Product first, then order with the survivors. Rows that stand anyhow are put into `others`."""
        gid, product, order = transaction.gid, self._plan.product, self._plan.order
        try:
            rows = await self._take(transaction, orders)
        except CallFailed as error:
            return self._broken(gid, error, product(self.product_method), ProductUnavailable)
        survivors = [order for order, row in rows if row.gid == gid and row.state is self.held]
        standing = {order.key: row for order, row in rows if self._told(gid, row)}
        others |= standing
        if not survivors:
            return NobodyLeft() if len(standing) == len(orders) else Agreed()
        try:
            await self._call_order(transaction, _order_request(survivors))
        except Refused as error:
            if reasons := _refused_orders(error):
                return OrdersRefused(reasons)
            return self._broken(gid, error, order(self.order_method), OrderUnavailable)
        except CallFailed as error:
            return self._broken(gid, error, order(self.order_method), OrderUnavailable)
        log.info("branches_agreed", orders=len(survivors), of=len(orders))
        return Agreed()

    async def _take(self, transaction: S, orders: Sequence[Order]) -> list[tuple[Order, Reservation]]:
        first = orders[0]
        request = product_pb2.UpdateProductStockRequest(
            product_id=first.product_id, sale_id=first.sale_id, items=items_of(orders)
        )
        reply = await self._call_product(transaction, request)
        return list(zip(orders, map(reservation_from_wire, reply.outcomes), strict=True))

    def _broken(
        self, gid: str, error: CallFailed, target: str, unavailable: type[ProductUnavailable | OrderUnavailable]
    ) -> Broken:
        return broken(gid, error, target=target, unavailable=unavailable, coordinator=self._client.address)

    # --- the end of the transaction ------------------------------------------------------------------------------

    async def _submit(self, transaction: S) -> None:
        """Once, whatever it answers: only the rows say what happened."""
        try:
            await transaction.submit(timeout_ms=self._plan.submit_timeout_ms)
        except CallFailed as error:
            log.warning("submit_unanswered", code=error.code.name, detail=error.detail)
        reach(CrashPoint.SUBMITTED)

    async def _abort(self, transaction: S, reason: str) -> bool:
        """Whether the coordinator says that every branch has been rolled back."""
        reach(CrashPoint.ABORTING)
        try:
            await transaction.abort(reason=reason)
        except CallFailed as error:
            log.warning("abort_unanswered", code=error.code.name, detail=error.detail)
            return False
        reach(CrashPoint.ABORTED)
        return True

    async def _submitted(self, gid: str, orders: Sequence[Order], others: Mapping[bytes, Reservation]) -> Outcomes:
        rows = await self._rows(gid)
        if isinstance(rows, SeckillError):
            detail = "submitted, and the product service does not tell what became of it"
            return all_undecided(orders, gid, detail, rows)
        known = {**others, **rows}
        return {
            order.order_id: outcome_of(order, known.get(order.key), gid=gid) or self._unseen(gid) for order in orders
        }

    async def _aborted(
        self, gid: str, orders: Sequence[Order], others: Mapping[bytes, Reservation], end: End, *, closed: bool
    ) -> Outcomes:
        """What stands after an abort; orders that nothing holds are rejected, run again, or failed, as `end` says."""
        rows = await self._rows(gid)
        if isinstance(rows, SeckillError):
            detail = "aborted, and the product service does not tell what became of it"
            return all_undecided(orders, gid, detail, rows)
        known = {**others, **rows}
        standing = {order.order_id: outcome_of(order, known.get(order.key), gid=gid) for order in orders}
        outcomes: Outcomes = {order_id: outcome for order_id, outcome in standing.items() if outcome is not None}
        free = [order for order in orders if standing[order.order_id] is None]
        if not free:
            return outcomes
        if not closed:  # a branch call that is still on its way could take them yet
            silent = CoordinatorUnavailable(self._client.address, "the abort was not acknowledged")
            cause = end.error if isinstance(end, Broken) else silent
            return outcomes | all_undecided(free, gid, "the abort was not acknowledged", cause)
        match end:
            case OrdersRefused(reasons):
                return outcomes | await self._reject_and_rerun(gid, free, reasons)
            case Broken(error, divisible=True) if len(free) > 1:
                return outcomes | await self._divide(free, error)
            case Broken(error):
                return outcomes | await self._failed(gid, free, error)
            case _:
                return outcomes | all_failed(free, TransactionCancelled(gid, "its units were released"))

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
            return all_failed(refused, error)
        lost = Failed(TransactionCancelled(gid, "its rejection did not stay"))
        return {order.order_id: outcome_of(order, rows.get(order.key), gid=gid) or lost for order in refused}

    async def _divide(self, orders: Sequence[Order], error: SeckillError) -> Outcomes:
        """Two halves. When a slow service fails the first half as well, the second is spared the same wait."""
        first, second = halves(orders)
        outcomes = await self._transact(first)
        if error.retryable and all(isinstance(outcome, Failed | Undecided) for outcome in outcomes.values()):
            return outcomes | all_failed(second, error)
        return outcomes | await self._transact(second)

    async def _failed(self, gid: str, orders: Sequence[Order], error: SeckillError) -> Outcomes:
        """Orders that nothing holds, so far as rows tell, and that cannot be divided further."""
        other = await self._blocked_by(gid, error)
        if other is not None:
            return all_undecided(orders, other, "a prepared transaction may hold it", error)
        return all_failed(orders, error)

    async def _rows(self, gid: str) -> dict[bytes, Reservation] | SeckillError:
        try:
            return await self._reservations.of_gid(gid)
        except SeckillError as error:
            log.warning("rows_unread", error=str(error))
            return error


def _order_request(orders: Sequence[Order]) -> order_pb2.CreateOrderRequest:
    first = orders[0]
    return order_pb2.CreateOrderRequest(pid=first.product_id, sale_id=first.sale_id, items=map(order_item, orders))


def _refused_orders(error: Refused) -> dict[bytes, str]:
    raw = error.trailing.get(REFUSED_METADATA, b"")
    if not isinstance(raw, bytes) or not raw:
        return {}
    return {row.order_id: row.reason for row in order_pb2.CreateOrderResponse.FromString(raw).refused}
