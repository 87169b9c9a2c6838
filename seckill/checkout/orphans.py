"""Transactions that hold units and that their coordinator no longer carries: ended the way they stand.

A coordinator can lose a gid (a store that was wiped or set back), or call it finished without having called a branch
(DTM answers OK to the Submit of a gid that it has lost). The branches then stay undecided for ever. They are ended
under the same gid and branch ids, through the same barrier and decision rows that a coordinator's calls pass: whoever
comes first decides, and a stray call that comes later changes nothing.

    a confirmed order of the gid ─▶ Confirm product
    none                         ─▶ Cancel order ─▶ only after its OK: Cancel product

What confirm and cancel are in each pattern is `ends.PATTERNS`. An XA shows nothing of itself until it is committed;
`prepared.py` says how those are found and what decides them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import grpc
import structlog
from structlog.contextvars import bound_contextvars

from seckill.checkout.ends import PATTERNS, Ends
from seckill.checkout.prepared import PreparedBranches
from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import CoordinatorUnavailable, OrderUnavailable, ProductUnavailable
from seckill.domain.order import MAX_ID, OrderId
from seckill.dtm.client import DtmClient
from seckill.dtm.errors import CallFailed
from seckill.dtm.protocol import SAGA, TCC, XA, GlobalTransaction
from seckill.wire import order_pb2, order_pb2_grpc, product_pb2, product_pb2_grpc

log = structlog.get_logger()

PRODUCT_BRANCH = PATTERNS[TCC].product_branch

HOLDS_MAX = 1_000
"""Branches that StaleHolds tells at once."""

LOOKED_MARGIN_MS = 5_000
"""Ages grow while one call is answered and the next one sent."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A branch of the product service that holds units and is undecided; `age_ms` since it took them, or since it was
    first seen prepared (XA).
    """

    gid: str
    branch_id: str
    age_ms: int
    trans_type: str = TCC

    @property
    def by_checkout(self) -> bool:
        """Whether it is the product branch of a checkout's transaction."""
        pattern = PATTERNS.get(self.trans_type)
        return pattern is not None and pattern.product_branch == self.branch_id


class End(Enum):
    """What was done about a transaction, or would be."""

    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"
    CARRIED = "carried"  # its coordinator still carries it: nothing was done


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a gid before anything is done. `transaction`: what its coordinator says, None: unknown there;
    `committed`: product has committed its part of an XA.
    """

    gid: str
    transaction: GlobalTransaction | None
    confirmed_orders: int
    trans_type: str = TCC
    committed: bool = False

    @property
    def end(self) -> End:
        if self.transaction is not None and not self.transaction.finished:
            return End.CARRIED
        return End.CONFIRMED if self.decided_for else End.CANCELLED

    @property
    def decided_for(self) -> bool:
        """Whether one of its branches stands confirmed."""
        return self.confirmed_orders > 0 or self.committed


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
        self.prepared = PreparedBranches(
            product, order, product_address=product_address, order_address=order_address, timeout_ms=timeout_ms
        )
        self.ends = Ends(
            client,
            product=product,
            product_address=product_address,
            order_address=order_address,
            timeout_ms=timeout_ms,
        )

    async def holds(self, *, older_than_ms: int, newer_than_ms: int | None = None, limit: int) -> list[Hold]:
        """Undecided branches that hold units, oldest first; then gids that are prepared for so long (XA)."""
        frozen = await self._frozen(older_than_ms=older_than_ms, newer_than_ms=newer_than_ms, limit=limit)
        branch_id = PATTERNS[XA].product_branch
        ages = await self.prepared.ages_ms()
        return frozen + [
            Hold(gid, branch_id, age_ms, XA) for gid, age_ms in ages.items() if age_ms >= older_than_ms
        ][:limit]  # fmt: skip

    async def _frozen(self, *, older_than_ms: int, newer_than_ms: int | None, limit: int) -> list[Hold]:
        """One call looks at a part of what is that old, if it is much; each starts where the one before has ended."""
        found: dict[tuple[str, str], Hold] = {}
        newer_ms = min(newer_than_ms or 0, MAX_ID)
        while True:
            request = product_pb2.StaleHoldsRequest(older_than_ms=older_than_ms, newer_than_ms=newer_ms, limit=limit)
            try:
                reply = await self._product.StaleHolds(request, timeout=self._timeout_ms / 1000)
            except grpc.aio.AioRpcError as error:
                raise ProductUnavailable(self._product_address, f"StaleHolds: {error.code().name}") from error
            for row in reply.holds:
                found[row.gid, row.branch_id] = Hold(row.gid, row.branch_id, row.age_ms, row.trans_type or TCC)
            next_ms = reply.looked_until_ms + LOOKED_MARGIN_MS
            if not reply.looked_until_ms or len(found) >= limit or (newer_ms and next_ms >= newer_ms):
                return list(found.values())[:limit]
            newer_ms = next_ms

    async def find(self, gid: str) -> Hold | None:
        """What the gid holds, of the HOLDS_MAX oldest; None: nothing."""
        holds = await self.holds(older_than_ms=0, limit=HOLDS_MAX)
        return next((hold for hold in holds if hold.gid == gid and hold.by_checkout), None)

    async def look(self, gid: str, trans_type: str | None = None) -> Look:
        """What the coordinator itself, the order service and, of an XA, product say of the gid. Without `trans_type` it
        is that of what the gid holds; TCC, if it holds nothing.
        """
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
        if trans_type is None:
            hold = await self.find(gid)
            trans_type = hold.trans_type if hold else TCC
        committed = trans_type == XA and await self.prepared.committed_by_product(gid)
        return Look(gid, transaction, confirmed, trans_type, committed)

    async def end(self, look: Look) -> End:
        """Ends what nobody carries any more."""
        gid, trans_type = look.gid, look.trans_type
        with bound_contextvars(gid=gid):
            match look.end:
                case End.CARRIED:
                    return End.CARRIED
                case End.CONFIRMED:
                    reach(CrashPoint.ORPHAN_FOUND)
                    await self.ends.confirm_product(gid, trans_type)
                    await self.ends.confirm_order(gid, trans_type)
                case End.CANCELLED:
                    reach(CrashPoint.ORPHAN_FOUND)
                    await self.ends.cancel_order(gid, trans_type)
                    reach(CrashPoint.ORPHAN_ORDER_CANCELLED)
                    await self.ends.cancel_product(gid, trans_type)
            reach(CrashPoint.ORPHAN_ENDED)
            log.warning(
                "orphan_ended",
                end=look.end.value,
                pattern=trans_type,
                coordinator=look.transaction.status if look.transaction else "unknown",
            )
            return look.end

    async def undo_saga(self, gid: str) -> End:
        """Takes back what a saga has left that holds nothing: CARRIED while its coordinator has not finished it.

        Nothing of it is frozen, so nothing decides for its order. Product comes first: once a compensation has kept its
        action out, no stray call can sell what order is about to close; and had it been sold, product refuses, and the
        order stays.
        """
        look = await self.look(gid, SAGA)
        if look.end is not End.CARRIED:
            await self.ends.cancel_product(gid, SAGA)
            await self.ends.cancel_order(gid, SAGA)
            log.warning("saga_undone", gid=gid, orders=look.confirmed_orders)
            return End.CANCELLED
        return End.CARRIED

    async def confirmed_under(self, order_id: OrderId) -> str | None:
        """The gid under which the order's own row stands confirmed; None: it does not."""
        request = order_pb2.GetOrderByIdRequest(id=order_id)
        try:
            row = await self._order.GetOrderById(request, timeout=self._timeout_ms / 1000)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise OrderUnavailable(self._order_address, f"GetOrderById: {error.code().name}") from error
        return row.gid if row.status == "confirmed" else None
