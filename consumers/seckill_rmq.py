"""The consumer of `seckill-topic` and its retry topics: every order that comes ends confirmed, rejected, waiting in the
ledger or in a retry topic, or buried.

    drop what has ended ─▶ admit what came past the front ─▶ checkout ─▶ settle | wait | try again | put off | bury

An order's record is routed only when one of these has been written down; the worker commits offsets after that. While a
dependency is down nothing is carried at all, and no attempt is counted. Orders that fail together are tried again in
ever smaller pieces, so that none is set aside for what its neighbour did.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from functools import partial

import structlog
from prometheus_client import Histogram

from consumers.aside import OUTCOMES, Aside, GivenUp, comes_back
from consumers.carried import Carried, Hanging, pieces, split_reused
from consumers.dependencies import Dependencies, blamed, blamed_by_all
from consumers.persistence import until_done
from seckill.admission.ledger import Ledger
from seckill.admission.parked import ParkedOrders
from seckill.checkout.groups import halves
from seckill.checkout.late import LateAdmission
from seckill.checkout.plan import Checkout, Outcomes
from seckill.checkout.reservations import Reservations
from seckill.domain.errors import AdmissionClosed, InvalidOrder, SeckillError
from seckill.domain.order import Order
from seckill.domain.outcomes import Confirmed, Failed, Rejected, SetAside, Undecided
from seckill.domain.retry import Dead, Later, Retry, RetryPolicy
from seckill.messaging.dead_letters import DeadLetters, Letter, replays_of
from seckill.messaging.delivery import Delivered
from seckill.messaging.envelope import Record
from seckill.messaging.publisher import Publisher
from seckill.messaging.retry_topics import RetryTier, retry_story, tier_of

log = structlog.get_logger()

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


class SeckillCarrier:
    """Carries orders from the topic to their end. Opens nothing: everything it uses is its caller's."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        parked: ParkedOrders,
        late: LateAdmission,
        checkout: Checkout,
        reservations: Reservations,
        dead_letters: DeadLetters,
        publisher: Publisher,
        tiers: Sequence[RetryTier],
        policy: RetryPolicy,
        dependencies: Dependencies,
        undecided_wait_ms: int,
    ) -> None:
        self._ledger = ledger
        self._parked = parked
        self._late = late
        self._checkout = checkout
        self._dead_letters = dead_letters
        self._aside = Aside(
            ledger=ledger, reservations=reservations, dead_letters=dead_letters, publisher=publisher, tiers=tiers
        )
        self._tiers = tiers
        self._policy = policy
        self._dependencies = dependencies
        self._undecided_wait_ms = undecided_wait_ms

    async def carry(self, orders: Sequence[Delivered]) -> None:
        """Returns when every record has been routed. Waits for whatever is down as long as it takes."""
        with CARRY_SECONDS.time():
            first, reused = split_reused(orders)
            for delivered in reused:
                await self._aside.bury_impostor(delivered)
            waiting = await self._unfinished([self._carried(delivered) for delivered in first])
            count = len(waiting)
            while waiting:
                await self._dependencies.until_up()
                outcomes = await self._try_pieces(waiting, count)
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

    def _carried(self, delivered: Delivered) -> Carried:
        tier = tier_of(delivered.record.topic, self._tiers)
        before = retry_story(delivered.record)
        return Carried(delivered, delivered.order, tier=tier.number if tier else None, before=before)

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
                await self._aside.bury_impostor(carried.delivered)
        return [carried for carried in orders if carried.order.order_id not in seen.ended | seen.reused]

    async def _try_pieces(self, orders: Sequence[Carried], count: int) -> Outcomes:
        """One attempt of each order, of a group that once had `count`, and the end of those that have one. One piece
        after the other: what one of them makes wait in the database is not to fail the next. When piece after piece
        hangs, the rest is spared that wait.
        """
        outcomes: Outcomes = {}
        hanging = Hanging()
        for piece in pieces(orders, lambda attempts: self._policy.piece_size(count, attempts=attempts)):
            began_s = time.monotonic()
            if (cause := hanging.blamed_for_all(now_s=began_s)) is not None:
                found = _spared(piece, cause)
            else:
                found = await self._try_once(piece)
                hanging.note(blamed_by_all(found.values()), began_s=began_s)
                await self._settle(_ends(piece, found))  # now: their buyers need not wait for the other pieces
            outcomes |= found
        return outcomes

    async def _try_once(self, orders: Sequence[Carried]) -> Outcomes:
        for carried in orders:
            carried.alone = len(orders) == 1
        try:
            # At every attempt: while something was down, a rebuild may have given back what came past the front.
            past_front = [each for each in orders if each.delivered.order.admission_number is None or each.unknown]
            outcomes = await self._admit_late(past_front)
            ready = [carried.order for carried in orders if carried.order.order_id not in outcomes]
            return outcomes | await self._checkout.run(ready)
        except SeckillError as error:
            return {carried.order.order_id: Failed(error) for carried in orders}
        except Exception as error:  # whatever it is, the order that brings it about is set aside, not lost
            if len(orders) == 1:
                log.exception("carry_failed_unexpectedly", order_id=orders[0].order.order_id)
                return {orders[0].order.order_id: Failed(error)}
            log.warning("group_failed_unexpectedly", orders=len(orders), error=f"{type(error).__name__}: {error}")
            first, second = halves(orders)
            return await self._try_once(first) | await self._try_once(second)

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
        """Of orders whose ends are settled: lets wait what is undecided, puts aside what has had its attempts; returns
        what is tried again.

        What failed because of a dependency that is `down` was no attempt.
        """
        undecided: list[Carried] = []
        again: list[Carried] = []
        given_up: list[GivenUp] = []
        pause_ms, cause = 0, ""
        for carried in orders:
            match outcomes[carried.order.order_id]:
                case Undecided(gid, detail):
                    log.info("order_undecided", order_id=carried.order.order_id, gid=gid, detail=detail)
                    undecided.append(carried)
                case SetAside() if replays_of(carried.delivered.record):  # what set it aside came before the replay
                    await until_done(partial(self._parked.unpark, carried.order))
                    again.append(carried)
                    pause_ms, cause = max(pause_ms, self._policy.base_ms), "set aside before it was replayed"
                case SetAside():
                    log.info("order_set_aside_before", order_id=carried.order.order_id)
                case Failed(error) if blamed(error) in down:
                    again.append(carried)
                    pause_ms, cause = max(pause_ms, self._policy.base_ms), str(error)
                case Failed(AdmissionClosed() as error) if carried.unknown or error.rebuilding:  # no attempt either
                    again.append(carried)
                    pause_ms, cause = max(pause_ms, HELD_PAUSE_MS), str(error)
                case Failed(error):
                    match self._judged(carried, error):
                        case Retry(delay_ms):
                            again.append(carried)
                            pause_ms, cause = max(pause_ms, delay_ms), str(error)
                        case Later() | Dead() as verdict:
                            given_up.append(GivenUp(carried, verdict, error))
        left = await self._aside.take(given_up)
        await self._settle(left.ended)
        held = await self._postpone(undecided + left.undecided)
        if held:
            pause_ms = max(pause_ms, HELD_PAUSE_MS)
        if again or held:
            log.warning("orders_tried_again", failed=len(again), held=len(held), pause_ms=pause_ms, error=cause)
            await asyncio.sleep(pause_ms / 1000)
        return again + held

    def _judged(self, carried: Carried, error: Exception) -> Retry | Later | Dead:
        """What becomes of an order that failed. It dies of nothing that it may have caught from its neighbours."""
        carried.failed(at_ms=_now_ms())
        match self._policy.decide(attempt=carried.attempts, tier=carried.tier, error=error):
            case Dead() if not carried.alone and not isinstance(error, InvalidOrder):  # that one is about itself
                return Retry(self._policy.base_ms)
            case verdict:
                return verdict

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
        return [carried for carried in orders if not comes_back(known.get(carried.order.order_id))]


def _ends(orders: Sequence[Carried], outcomes: Outcomes) -> list[tuple[Order, Confirmed | Rejected]]:
    found = [(carried.order, outcomes[carried.order.order_id]) for carried in orders]
    return [(order, outcome) for order, outcome in found if isinstance(outcome, Confirmed | Rejected)]


def _spared(orders: Sequence[Carried], cause: Exception) -> Outcomes:
    """They count as tried, though not as tried alone."""
    for carried in orders:
        carried.alone = False
    return {carried.order.order_id: Failed(cause) for carried in orders}


def _now_ms() -> int:
    return int(time.time() * 1000)
