"""Orders one by one, each a global transaction of its own, many of them at a time.

    carry each ─▶ sell what the finished ones hold, in one call ─▶ read the reservations, in one call ─▶ judge each

What saga and message have in common: their branches are fixed before a refusal is known, so that a transaction has one
order. While it is not known to be finished its reservation is frozen; `saga.py` and `message.py` say how one runs, and
what it means that nothing holds its order.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import structlog
from structlog.contextvars import bound_contextvars
from uuid_utils import uuid7

from seckill.checkout.orphans import Orphans
from seckill.checkout.plan import Outcomes, Plan, all_undecided
from seckill.checkout.reservations import Reservation, Reservations, outcome_of
from seckill.domain.errors import CoordinatorUnavailable, SeckillError
from seckill.domain.order import Order
from seckill.domain.outcomes import Failed, Outcome
from seckill.dtm.client import DtmClient

log = structlog.get_logger()

T = TypeVar("T")


# --- how a transaction can leave its order ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finished:
    """The coordinator says that every branch is done: what the gid holds is to be sold."""

    gid: str


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The rows tell what becomes of it. `cause`: why nobody said it."""

    gid: str
    cause: SeckillError | None = None


@dataclass(frozen=True, slots=True)
class Shut:
    """It holds nothing, and nothing of it will."""

    gid: str
    error: SeckillError


Left = Finished | Unfinished | Shut


class Spared:
    """When as many in a row fail as may be under way at a time, the rest is failed with them: it would wait as long.

    Only failures that trying again may mend count; what one order brings about keeps nobody from another.
    """

    def __init__(self, in_a_row_max: int) -> None:
        self._in_a_row_max = in_a_row_max
        self._in_a_row = 0
        self._last: SeckillError | None = None

    def note(self, left: Left) -> None:
        match left:
            case Shut(error=SeckillError(retryable=True) as error) | Unfinished(cause=SeckillError() as error):
                self._in_a_row, self._last = self._in_a_row + 1, error
            case _:
                self._in_a_row = 0

    @property
    def cause(self) -> SeckillError | None:
        """Why nothing more is tried; None: go on."""
        return self._last if self._in_a_row >= self._in_a_row_max else None


class SingleCheckout(ABC):
    """Carries orders through transactions of one pattern. Opens nothing."""

    trans_type: ClassVar[str]

    def __init__(self, client: DtmClient, reservations: Reservations, orphans: Orphans, plan: Plan) -> None:
        self._client = client
        self._reservations = reservations
        self._orphans = orphans
        self._plan = plan
        self._room = asyncio.Semaphore(plan.concurrency_max)  # of all batches together

    @abstractmethod
    async def _carry(self, gid: str, order: Order) -> Left:
        """One transaction from its first call to its last. Raises only what nobody foresaw."""

    @abstractmethod
    async def _unheld(self, order: Order, left: Finished | Unfinished) -> Outcome:
        """What it means that nothing holds the order now."""

    async def run(self, orders: Sequence[Order]) -> Outcomes:
        """An outcome for each order (ids are unique among them). Raises only what nobody foresaw."""
        spared = Spared(self._plan.concurrency_max)
        left = await _all_ended(self._carry_in_turn(order, spared) for order in orders)
        await self._sell([each.gid for each in left if isinstance(each, Finished)])
        try:
            rows = await self._reservations.of_orders(orders)
        except SeckillError as error:
            log.warning("rows_unread", error=str(error))
            detail = "the product service does not tell what became of it"
            return {
                order_id: outcome
                for order, each in zip(orders, left, strict=True)
                for order_id, outcome in all_undecided([order], each.gid, detail, error).items()
            }
        judged = (self._judged(order, each, rows) for order, each in zip(orders, left, strict=True))
        return dict(zip((order.order_id for order in orders), await _all_ended(judged), strict=True))

    async def _carry_in_turn(self, order: Order, spared: Spared) -> Left:
        gid = uuid7().hex
        async with self._room:
            if (cause := spared.cause) is not None:
                return Shut(gid, cause)
            with bound_contextvars(gid=gid):
                left = await self._carry(gid, order)
            spared.note(left)
            return left

    async def _sell(self, gids: Sequence[str]) -> None:
        """What stays frozen because nobody answers is sold by reconcile, once it is old."""
        if not gids:
            return
        try:
            await self._orphans.ends.confirm_holds(gids, self.trans_type)
        except SeckillError as error:
            log.warning("holds_not_confirmed", gids=len(gids), first=gids[0], error=str(error))

    async def _judged(self, order: Order, left: Left, rows: Mapping[bytes, Reservation]) -> Outcome:
        outcome = outcome_of(order, rows.get(order.key), gid=left.gid)
        if outcome is not None:
            return outcome
        if isinstance(left, Shut):
            return Failed(left.error)
        with bound_contextvars(gid=left.gid):
            return await self._unheld(order, left)

    def _coordinator_silent(self, detail: str) -> CoordinatorUnavailable:
        return CoordinatorUnavailable(self._client.address, detail)


async def _all_ended(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What each returns. When one of them raises, the others are waited for first: an order is carried by one alone."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
