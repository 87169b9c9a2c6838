"""Where the orders go that have had their attempts: to a retry topic, or among the dead letters.

read the reservations ─▶ ended, or a transaction holds it ─▶ back to the carrier
                      └▶ nothing holds it ─▶ later: ledger entry put off, then the retry record
                                          └▶ dead:  letter, then ledger entry parked

Four words, of an order's record and of its ledger entry:
- put off: a copy of the record waits in a retry topic, and the entry is due only after that;
- postponed: the entry is due later, nothing else; reconcile looks after the order then;
- parked: the entry is never due, as there is a letter that an operator replays or discards;
- set aside: there is a letter, and the entry, if there is one, is parked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import structlog
from prometheus_client import Counter

from consumers.carried import Carried, own_record
from consumers.persistence import until_done
from seckill.admission.ledger import Ledger
from seckill.checkout.reservations import Reservations, outcome_of
from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import OrderIdReused, RecordTooLarge, SeckillError
from seckill.domain.order import Order
from seckill.domain.outcomes import Confirmed, Failed, OrderResult, OrderStatus, Rejected, Undecided
from seckill.domain.reasons import DeadLetterReason
from seckill.domain.retry import Dead, Later
from seckill.messaging.dead_letters import DeadLetters, Letter
from seckill.messaging.delivery import Delivered
from seckill.messaging.publisher import Publisher
from seckill.messaging.retry_topics import RetryStory, RetryTier, retry_record, retry_story

log = structlog.get_logger()

OUTCOMES = Counter("seckill_orders_total", "Orders by how the worker routed them", ["outcome", "reason"])
for _reason in DeadLetterReason:
    OUTCOMES.labels("buried", _reason)  # from the start: Prometheus sees no increase in the first value of a series
RETRIES = Counter(
    "seckill_retries_total", "Orders put off to a retry topic, by the error that did it", ["tier", "reason"]
)


@dataclass(frozen=True, slots=True)
class GivenUp:
    """An order that is not tried again now, and why."""

    carried: Carried
    verdict: Later | Dead
    error: Exception


@dataclass(slots=True)
class Left:
    """Orders that are not put aside: they have ended, or a transaction or the ledger has them."""

    ended: list[tuple[Order, Confirmed | Rejected]] = field(default_factory=list)
    undecided: list[Carried] = field(default_factory=list)


class Aside:
    """Opens nothing. Each step is repeated until it is done; what was done twice has the effect of once."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        reservations: Reservations,
        dead_letters: DeadLetters,
        publisher: Publisher,
        tiers: Sequence[RetryTier],
    ) -> None:
        self._ledger = ledger
        self._reservations = reservations
        self._dead_letters = dead_letters
        self._publisher = publisher
        self._tiers = tiers

    async def take(self, given_up: Sequence[GivenUp]) -> Left:
        """Puts each off or buries it, as its verdict says; returns those that may not be."""
        left = Left()
        for each in given_up:
            if isinstance(each.error, OrderIdReused):
                await self.bury_impostor(each.carried.delivered)
        own = [each for each in given_up if not isinstance(each.error, OrderIdReused)]
        free = await self._free(own, left) if own else []
        await self._put_off([(each, each.verdict) for each in free if isinstance(each.verdict, Later)])
        await self._bury([(each, each.verdict) for each in free if isinstance(each.verdict, Dead)])
        return left

    async def bury_impostor(self, delivered: Delivered) -> None:
        """Other contents under a known id: the letter is written, the true order's ledger entry is not touched."""
        error = OrderIdReused(delivered.order.order_id)
        before = retry_story(delivered.record)
        letter = Letter(
            error.dead_letter_reason, error, before.attempts + 1, before.first_failed_ms or time.time_ns() // 1_000_000
        )
        await self._write_letter(delivered, letter)

    async def _free(self, given_up: Sequence[GivenUp], left: Left) -> list[GivenUp]:
        """Those whose reservations say that nothing holds them, and that the ledger does not bring back."""
        orders = [each.carried.order for each in given_up]
        try:
            rows, unread = await self._reservations.readable(orders)
        except SeckillError as silent:
            rows, unread = {}, dict.fromkeys([order.key for order in orders], silent)
        if unread:
            cause = str(next(iter(unread.values())))
            log.warning("orders_not_put_aside", orders=len(unread), of=len(orders), error=cause)
        free: list[GivenUp] = []
        brought_back = await self._brought_back([order for order in orders if order.admission_number is None])
        for each in given_up:
            order = each.carried.order
            match outcome_of(order, rows.get(order.key), gid=""):
                case _ if order.key in unread:
                    left.undecided.append(each.carried)
                case Confirmed() | Rejected() as end:
                    left.ended.append((order, end))
                case Undecided():
                    left.undecided.append(each.carried)
                case Failed(OrderIdReused()):
                    await self.bury_impostor(each.carried.delivered)
                case _ if order.order_id in brought_back:
                    left.undecided.append(each.carried)
                case _:
                    free.append(each)
        return free

    async def _brought_back(self, past_front: Sequence[Order]) -> set[str]:
        """The ids of those orders past the front that the ledger holds, because their admission was not answered."""
        if not past_front:
            return set()
        known = await until_done(lambda: self._ledger.results([order.order_id for order in past_front]))
        return {order_id for order_id, result in known.items() if comes_back(result)}

    # --- later ---------------------------------------------------------------------------------------------------

    async def _put_off(self, waiting: Sequence[tuple[GivenUp, Later]]) -> None:
        by_tier = sorted(waiting, key=lambda pair: pair[1].tier)
        for number, same in groupby(by_tier, key=lambda pair: pair[1].tier):
            await self._put_off_to(self._tiers[number], list(same))

    async def _put_off_to(self, tier: RetryTier, waiting: Sequence[tuple[GivenUp, Later]]) -> None:
        """One step, repeated for those that Kafka has not acknowledged: an entry counts as published before its record
        is, so each time that a record is written its entry has to be younger than everything that was lost.
        """
        now_ms = time.time_ns() // 1_000_000
        unsent = [(each, now_ms + later.delay_ms) for each, later in waiting]
        delay_ms = max(later.delay_ms for _, later in waiting)
        too_large: list[GivenUp] = []

        async def step() -> None:
            nonlocal unsent
            await self._publisher.check()  # what is sent while Kafka is down arrives later, once for each repetition
            await self._ledger.put_off([each.carried.order for each, _ in unsent], delay_ms=delay_ms)
            ends = await asyncio.gather(*(self._send(tier, *pair) for pair in unsent), return_exceptions=True)
            reach(CrashPoint.RETRY_SENT)
            too_large.extend(each for (each, _), end in zip(unsent, ends, strict=True) if end is False)
            unsent = [pair for pair, end in zip(unsent, ends, strict=True) if isinstance(end, BaseException)]
            for end in ends:
                if isinstance(end, BaseException):
                    raise end

        await until_done(step)
        await self._bury([(each, Dead(DeadLetterReason.RETRIES_EXHAUSTED)) for each in too_large])
        self._tell(tier, [pair for pair in waiting if pair[0] not in too_large], delay_ms)

    def _tell(self, tier: RetryTier, waiting: Sequence[tuple[GivenUp, Later]], delay_ms: int) -> None:
        if not waiting:
            return
        for each, _ in waiting:
            RETRIES.labels(str(tier.number), type(each.error).__name__).inc()
        first = waiting[0][0]
        log.warning(
            "orders_put_off", orders=len(waiting), tier=tier.number, delay_ms=delay_ms,
            first=first.carried.order.order_id, attempts=first.carried.attempts_in_all, error=str(first.error),
        )  # fmt: skip

    async def _send(self, tier: RetryTier, given_up: GivenUp, due_ms: int) -> bool:
        """Whether the topic takes such a record at all. Raises PublishUnknown."""
        carried, error = given_up.carried, given_up.error
        cause = f"{type(error).__name__}: {error}"
        story = RetryStory(carried.attempts_in_all, carried.first_failed_ms, due_ms, cause)
        key, value, headers = retry_record(carried.delivered.record, carried.order, tier, story)
        try:
            await self._publisher.send(tier.topic, key=key, value=value, headers=headers)
        except RecordTooLarge as refused:
            log.warning("order_not_put_off", order_id=carried.order.order_id, error=str(refused))
            return False
        return True

    # --- dead ----------------------------------------------------------------------------------------------------

    async def _bury(self, dead: Sequence[tuple[GivenUp, Dead]]) -> None:
        """The letters first: an entry that is parked without one would wait for ever."""
        if not dead:
            return
        letters = [
            (
                each.carried,
                Letter(verdict.reason, each.error, each.carried.attempts_in_all, each.carried.first_failed_ms),
            )
            for each, verdict in dead
        ]
        await asyncio.gather(*(self._write_letter(carried.delivered, letter) for carried, letter in letters))
        await until_done(lambda: self._ledger.park([carried.order for carried, _ in letters]))

    async def _write_letter(self, delivered: Delivered, letter: Letter) -> None:
        log.error("order_buried", order_id=delivered.order.order_id, reason=letter.reason, error=str(letter.error))
        OUTCOMES.labels("buried", letter.reason).inc()
        await until_done(lambda: self._dead_letters.bury(own_record(delivered), letter))


def comes_back(result: OrderResult | None) -> bool:
    """Whether the ledger publishes the order again, or it has ended."""
    return result is not None and result.status is not OrderStatus.DELAYED
