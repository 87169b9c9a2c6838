"""The consumer of `seckill-topic`: every order that comes ends confirmed, rejected, waiting in the ledger, or buried.

    drop what has ended ─▶ admit what came past the front ─▶ checkout ─▶ settle | wait | try again | bury

An order's record is routed only when one of these has been written down; the worker commits offsets after that. While a
dependency is down nothing is carried at all, and no attempt is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import structlog
from prometheus_client import Counter, Histogram
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from consumers.dependencies import Dependencies, blamed
from seckill.admission.ledger import Ledger
from seckill.checkout.groups import same_contents
from seckill.checkout.late import LateAdmission
from seckill.checkout.reservations import Reservations, outcome_of
from seckill.checkout.tcc import TccCheckout
from seckill.domain.errors import AdmissionClosed, InvalidOrder, OrderIdReused, SeckillError
from seckill.domain.order import Order, OrderId
from seckill.domain.outcomes import Confirmed, Failed, OrderResult, OrderStatus, Outcome, Rejected, SetAside, Undecided
from seckill.domain.reasons import DeadLetterReason
from seckill.domain.retry import Dead, Retry, RetryPolicy
from seckill.messaging.dead_letters import DeadLetters, Letter
from seckill.messaging.envelope import Record, encode
from seckill.messaging.worker import Delivered

log = structlog.get_logger()

OUTCOMES = Counter("seckill_orders_total", "Orders by how the worker routed them", ["outcome", "reason"])
CARRY_SECONDS = Histogram(
    "seckill_carry_seconds", "Time to carry one group", buckets=(0.01, 0.05, 0.1, 0.3, 1, 3, 10, 30)
)
ADMITTED_TO_CONFIRMED = Histogram(
    "seckill_admission_to_confirmed_seconds",
    "From admission to confirmed",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60),
)

HELD_PAUSE_MS = 2_000
"""Pause before an undecided order that the ledger does not hold is looked at again."""

Outcomes = dict[OrderId, Outcome]
T = TypeVar("T")


@dataclass(slots=True)
class Carried:
    """One order on its way: what came, the order as it is known now, and how often it failed.

    `unknown`: admission has numbered it, and the ledger does not know it. Redis has lost it since, and a rebuild may
    have given its units to others, so it is admitted again, like one that came past the front.
    """

    delivered: Delivered
    order: Order
    unknown: bool = False
    attempts: int = 0
    first_failed_ms: int = 0

    def failed(self, *, at_ms: int) -> None:
        self.attempts += 1
        self.first_failed_ms = self.first_failed_ms or at_ms


class SeckillCarrier:
    """Carries orders from the topic to their end. Opens nothing: everything it uses is its caller's."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        late: LateAdmission,
        checkout: TccCheckout,
        reservations: Reservations,
        dead_letters: DeadLetters,
        policy: RetryPolicy,
        dependencies: Dependencies,
        undecided_wait_ms: int,
    ) -> None:
        self._ledger = ledger
        self._late = late
        self._checkout = checkout
        self._reservations = reservations
        self._dead_letters = dead_letters
        self._policy = policy
        self._dependencies = dependencies
        self._undecided_wait_ms = undecided_wait_ms

    async def carry(self, orders: Sequence[Delivered]) -> None:
        """Returns when every record has been routed. Waits for whatever is down as long as it takes."""
        with CARRY_SECONDS.time():
            first, reused = split_reused(orders)
            for delivered in reused:
                await self._bury_impostor(delivered)
            waiting = await self._unfinished([Carried(delivered, delivered.order) for delivered in first])
            while waiting:
                await self._dependencies.until_up()
                outcomes = await self._try_once(waiting)
                down = await self._dependencies.found_down(outcomes.values())
                waiting = await self._route(waiting, outcomes, down)

    def held_back(self) -> bool:
        """Whether nothing is carried now, because something is down: then nothing need be fetched either."""
        return bool(self._dependencies.down())

    async def bury(self, record: Record, error: InvalidOrder) -> None:
        """A record that holds no order: set aside with its bytes untouched."""
        log.warning("record_buried", reason=error.dead_letter_reason, error=str(error), offset=record.offset)
        OUTCOMES.labels("buried", error.dead_letter_reason).inc()
        letter = Letter(error.dead_letter_reason, error, attempts=1, first_failed_ms=_now_ms())
        await until_done(lambda: self._dead_letters.bury(record, letter))

    # --- one attempt ---------------------------------------------------------------------------------------------

    async def _unfinished(self, orders: Sequence[Carried]) -> list[Carried]:
        """Without those that a result says have ended, and without impostors of what the ledger holds: a redelivered
        record costs one look.
        """
        seen = await until_done(lambda: self._ledger.seen([carried.order for carried in orders]))
        for carried in orders:
            carried.unknown = carried.order.order_id in seen.unknown and carried.order.admission_number is not None
        if unknown := [carried.order for carried in orders if carried.unknown]:
            log.warning("orders_unknown_to_redis", orders=len(unknown), first=unknown[0].order_id)
        for carried in orders:
            if carried.order.order_id in seen.reused:
                await self._bury_impostor(carried.delivered)
        return [carried for carried in orders if carried.order.order_id not in seen.ended | seen.reused]

    async def _try_once(self, orders: Sequence[Carried]) -> Outcomes:
        try:
            # At every attempt: while something was down, a rebuild may have given back what came past the front.
            past_front = [each for each in orders if each.delivered.order.admission_number is None or each.unknown]
            outcomes = await self._admit_late(past_front)
            ready = [carried.order for carried in orders if carried.order.order_id not in outcomes]
            return outcomes | await self._checkout.run(ready)
        except SeckillError as error:
            return {carried.order.order_id: Failed(error) for carried in orders}
        except Exception as error:  # whatever it is, these orders are set aside, not lost
            log.exception("carry_failed_unexpectedly", orders=len(orders))
            return {carried.order.order_id: Failed(error) for carried in orders}

    async def _admit_late(self, orders: Sequence[Carried]) -> Outcomes:
        """Outcomes of those that are not to be carried; the others learn their sale and number."""
        outcomes: Outcomes = {}
        if orders:
            answers = await self._late.admit([carried.order for carried in orders])
            for carried, (order, outcome) in zip(orders, answers, strict=True):
                carried.order = order
                if outcome is None:
                    carried.unknown = False
                else:
                    outcomes[order.order_id] = outcome
        return outcomes

    # --- routing -------------------------------------------------------------------------------------------------

    async def _route(self, orders: Sequence[Carried], outcomes: Outcomes, down: Collection[str]) -> list[Carried]:
        """Settles what ended, lets wait what is undecided, buries what is dead; returns what is tried again.

        What failed because of a dependency that is `down` was no attempt.
        """
        ended: list[tuple[Order, Confirmed | Rejected]] = []
        undecided: list[Carried] = []
        again: list[Carried] = []
        pause_ms, cause = 0, ""
        for carried in orders:
            match outcomes[carried.order.order_id]:
                case Confirmed() | Rejected() as end:
                    ended.append((carried.order, end))
                case Undecided(gid, detail):
                    log.info("order_undecided", order_id=carried.order.order_id, gid=gid, detail=detail)
                    undecided.append(carried)
                case SetAside():
                    log.info("order_set_aside_before", order_id=carried.order.order_id)
                case Failed(error) if blamed(error) in down:
                    again.append(carried)
                    pause_ms, cause = max(pause_ms, self._policy.base_ms), str(error)
                case Failed(AdmissionClosed() as error) if carried.unknown or error.rebuilding:  # no attempt either
                    again.append(carried)
                    pause_ms, cause = max(pause_ms, HELD_PAUSE_MS), str(error)
                case Failed(error):
                    carried.failed(at_ms=_now_ms())
                    match self._policy.decide(attempt=carried.attempts, error=error):
                        case Retry(delay_ms):
                            again.append(carried)
                            pause_ms, cause = max(pause_ms, delay_ms), str(error)
                        case Dead(reason):
                            undecided += await self._bury_order(carried, reason, error)
        await self._settle(ended)
        held = await self._postpone(undecided)
        if held:
            pause_ms = max(pause_ms, HELD_PAUSE_MS)
        if again or held:
            log.warning("orders_tried_again", failed=len(again), held=len(held), pause_ms=pause_ms, error=cause)
            await asyncio.sleep(pause_ms / 1000)
        return again + held

    async def _settle(self, ended: Sequence[tuple[Order, Confirmed | Rejected]]) -> None:
        if not ended:
            return
        await until_done(lambda: self._ledger.settle(ended))
        now_ms = _now_ms()
        for order, end in ended:
            match end:
                case Confirmed():
                    OUTCOMES.labels("confirmed", "").inc()
                    ADMITTED_TO_CONFIRMED.observe(max(0, now_ms - order.admitted_at_ms) / 1000)
                case Rejected(reason):
                    OUTCOMES.labels("rejected", reason).inc()
        log.info("orders_settled", orders=len(ended), confirmed=sum(isinstance(end, Confirmed) for _, end in ended))

    async def _postpone(self, orders: Sequence[Carried]) -> list[Carried]:
        """Waiting is no attempt: the ledger brings these back when their transactions have had time to end.

        Returns those that the ledger does not hold, or holds as parked: nothing would bring them back, so they stay in
        hand, uncommitted.
        """
        if not orders:
            return []
        OUTCOMES.labels("undecided", "").inc(len(orders))
        waiting = [carried.order for carried in orders]
        await until_done(lambda: self._ledger.postpone(waiting, delay_ms=self._undecided_wait_ms))
        known = await until_done(lambda: self._ledger.results([order.order_id for order in waiting]))
        return [carried for carried in orders if not _comes_back(known.get(carried.order.order_id))]

    async def _bury_order(self, carried: Carried, reason: DeadLetterReason, error: Exception) -> list[Carried]:
        """Sets an order aside; returns it when its reservation says, or may say, that a transaction holds it,
        or when the ledger brings it back.
        """
        if isinstance(error, OrderIdReused):
            await self._bury_impostor(carried.delivered)
            return []
        order = carried.order
        try:
            rows = await self._reservations.of_orders([order])
        except SeckillError as unread:
            log.warning("order_not_buried", order_id=order.order_id, error=str(unread))
            return [carried]
        match outcome_of(order, rows.get(order.key), gid=""):
            case Confirmed() | Rejected() as end:
                await self._settle([(order, end)])
            case Undecided():
                return [carried]
            case Failed(OrderIdReused()):
                await self._bury_impostor(carried.delivered)
            case _:
                if await self._was_admitted(carried):
                    return [carried]
                letter = Letter(reason, error, carried.attempts, carried.first_failed_ms)
                await self._write_letter(carried.delivered, letter)
                await until_done(lambda: self._ledger.park([order]))
        return []

    async def _was_admitted(self, carried: Carried) -> bool:
        """Whether the ledger holds an order past the front whose admission was not answered: it is brought back."""
        order_id = carried.order.order_id
        if carried.order.admission_number is not None:
            return False
        known = await until_done(lambda: self._ledger.results([order_id]))
        return _comes_back(known.get(order_id))

    async def _bury_impostor(self, delivered: Delivered) -> None:
        """Other contents under a known id: the letter is written, the true order's ledger entry is not touched."""
        error = OrderIdReused(delivered.order.order_id)
        await self._write_letter(
            delivered, Letter(error.dead_letter_reason, error, attempts=1, first_failed_ms=_now_ms())
        )

    async def _write_letter(self, delivered: Delivered, letter: Letter) -> None:
        log.error("order_buried", order_id=delivered.order.order_id, reason=letter.reason, error=str(letter.error))
        OUTCOMES.labels("buried", letter.reason).inc()
        await until_done(lambda: self._dead_letters.bury(_own_record(delivered), letter))


def split_reused(orders: Sequence[Delivered]) -> tuple[list[Delivered], list[Delivered]]:
    """Each order id once, and those that reuse an id with other contents. Pure.

    Of an id's orders one that was admitted goes before one that came past the front, then the first before the next. An
    exact repeat is in neither list: it is routed with the first.
    """
    first: dict[OrderId, Delivered] = {}
    reused: list[Delivered] = []
    for delivered in sorted(orders, key=lambda delivered: delivered.order.admission_number is None):  # stable
        known = first.setdefault(delivered.order.order_id, delivered)
        if not same_contents(known.order, delivered.order):
            reused.append(delivered)
    return list(first.values()), reused


def _comes_back(result: OrderResult | None) -> bool:
    """Whether the ledger publishes the order again, or it has ended."""
    return result is not None and result.status is not OrderStatus.DELAYED


def _own_record(delivered: Delivered) -> Record:
    """The record as it came, or, when it held several orders, one with this order alone."""
    if delivered.alone:
        return delivered.record
    order = delivered.order
    return replace(delivered.record, key=order.order_id.encode(), value=encode(order))


async def until_done(step: Callable[[], Awaitable[T]]) -> T:
    """Repeats an idempotent step until Redis or Kafka takes it: routing is never given up, only cut off by a stop."""
    retrying = AsyncRetrying(
        wait=wait_random_exponential(multiplier=0.1, max=5),
        retry=retry_if_exception(lambda error: isinstance(error, SeckillError) and error.retryable),
        before_sleep=_log_wait,
    )
    async for attempt in retrying:
        with attempt:
            return await step()
    raise AssertionError("unreachable: the retrying above has no end")


def _log_wait(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("routing_waits", attempt=state.attempt_number, error=str(error))


def _now_ms() -> int:
    return int(time.time() * 1000)
