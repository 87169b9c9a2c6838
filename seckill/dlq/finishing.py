"""What a replay or a discard does, from the intent on: each step may be repeated, so whoever finds it open finishes it.

    replay   read the reservation ─▶ ended          ─▶ settle, resolved
                                  ├▶ frozen         ─▶ held: looked at again, until it has ended or is released
                                  └▶ released, none ─▶ unpark the ledger entry ─▶ publish ─▶ replaying
    discard  read the reservation ─▶ ended          ─▶ settle, resolved
                                  ├▶ frozen         ─▶ refused
                                  └▶ released, none ─▶ rejected(DISCARDED) ─▶ read back ─▶ settle ─▶ discarded

The reservation decides; settling gives back what the ledger entry holds together with the entry, so it does so once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.admission.parked import Held, ParkedOrders
from seckill.checkout.late import in_sale_of
from seckill.checkout.reservations import Reservation, Reservations, outcome_of
from seckill.crashpoints import CrashPoint, reach
from seckill.dlq import index, intents
from seckill.dlq.judging import Candidate, candidate
from seckill.dlq.model import Done, Letter, LetterState
from seckill.dlq.reading import replay_headers
from seckill.dlq.topic import LetterTopic
from seckill.domain.errors import SeckillError
from seckill.domain.order import Order
from seckill.domain.outcomes import Confirmed, Failed, Rejected, Undecided
from seckill.domain.reasons import Rejection
from seckill.messaging.envelope import encode
from seckill.messaging.publisher import Publisher

log = structlog.get_logger()

T = TypeVar("T")

PUBLISHED, HELD = "published", "held"

ID_OF_ANOTHER = "its order id stands for another order"
HELD_FOR_ANOTHER = (
    "the ledger holds its units under an order id that is another order's in SQL: rejecting it would tell that order's"
    " buyer; it stays as it is"
)


class InTransaction(Protocol):
    """Runs work in a transaction of the index. Raises DatabaseUnavailable."""

    async def __call__(self, work: Callable[[AsyncSession], Awaitable[T]]) -> T: ...


class Finisher:
    """Ends what was begun with letters. Raises what retrying may mend; anything else withdraws the intent."""

    def __init__(
        self,
        *,
        in_transaction: InTransaction,
        topic: LetterTopic,
        reservations: Reservations,
        parked: ParkedOrders,
        publisher: Publisher,
        main_topic: str,
    ) -> None:
        self._do = in_transaction
        self._topic = topic
        self._reservations = reservations
        self._parked = parked
        self._publisher = publisher
        self._main_topic = main_topic

    async def finish(self, letter: Letter) -> Done:
        """The letter has an open intent. What was cut short by an error that may pass stays open."""
        try:
            return await (self._replay(letter) if letter.open_intent == intents.REPLAY else self._discard(letter))
        except SeckillError as error:
            if error.retryable:
                raise
            return await self._withdraw(letter, str(error))
        except Exception as error:  # whatever it is, it would be the same at the next look, and in the way of others
            log.exception("letter_failed_unexpectedly", letter_id=letter.letter_id, intent=letter.open_intent)
            return await self._withdraw(letter, f"{type(error).__name__}: {error}")

    async def note_end(self, letter: Letter, order: Order, row: Reservation | None) -> Done | None:
        """Settles the order and closes the letter, when the reservation says that it has ended; else None."""
        match outcome_of(order, row, gid=""):
            case Confirmed() | Rejected() as end:
                await self._parked.settle([(in_sale_of(order, row), end)])
                return await self._close(letter, end)
            case _:
                return None

    # --- replay ------------------------------------------------------------------------------------------------------

    async def _replay(self, letter: Letter) -> Done:
        action, order = await self._do(partial(intents.replay_of, letter=letter))
        original = (await self._topic.originals([letter])).get(letter.letter_id)
        if original is None or action is None:
            return await self._withdraw(letter, "its record is gone from the topic")
        if order is not None:
            row = (await self._reservations.of_orders([order])).get(order.key)
            match outcome_of(order, row, gid=""):
                case Undecided():
                    await self._do(partial(intents.touch, letter=letter))
                    return Done(letter, HELD)
                case None:
                    if await self._parked.held(order) is Held.ANOTHERS:
                        return await self._withdraw(letter, ID_OF_ANOTHER)
                    await self._parked.unpark(order)
                    reach(CrashPoint.REPLAY_UNPARKED)
                case _:
                    ended = await self.note_end(letter, order, row)
                    return ended or await self._withdraw(letter, ID_OF_ANOTHER)
        found = candidate(original)
        if action.payload is not None:
            key = order.order_id.encode() if order is not None else original.key
            found = candidate(replace(original, key=key, value=action.payload))
        return await self._publish(letter, found)

    async def _publish(self, letter: Letter, found: Candidate) -> Done:
        """Of a record with several orders, a record for each: what then fails is a letter of its own."""
        several = len(found.orders) > 1
        subject = "" if several else letter.subject
        headers = replay_headers(found.record, subject=subject, replays=letter.replays)
        send = partial(self._publisher.send, self._main_topic, headers=headers)
        if several:
            await asyncio.gather(*(send(key=each.order_id.encode(), value=encode(each)) for each in found.orders))
        else:
            key, value = found.record.key, found.record.value
            value = b"" if key is None and value is None else value  # the client takes no such record
            await send(key=key, value=value)
        reach(CrashPoint.REPLAY_PUBLISHED)
        state = LetterState.RESOLVED if several else LetterState.REPLAYING
        return Done(await self._do(partial(intents.finish, letter=letter, state=state)), PUBLISHED)

    # --- discard -----------------------------------------------------------------------------------------------------

    async def _discard(self, letter: Letter) -> Done:
        order = await self._do(partial(index.order_of, letter_id=letter.letter_id))
        if order is None:
            return await self._discarded(letter)
        if letter.order_id is None:
            return await self._discard_impostor(letter, order)
        row = (await self._reservations.of_orders([order])).get(order.key)
        if outcome_of(order, row, gid="") is None:
            order = await self._parked.in_its_sale(in_sale_of(order, row))
            if await self._parked.held(order) is Held.ANOTHERS:
                return await self._impostor_discarded(letter)
            standing = await self._reservations.reject([order], {order.key: Rejection.DISCARDED.value})
            reach(CrashPoint.DISCARD_REJECTED)
            row = standing.get(order.key)
        match outcome_of(order, row, gid=""):
            case Failed():
                return await self._discard_impostor(letter, order)
            case Undecided(gid):
                return await self._withdraw(letter, f"transaction {gid} has its order; try again when that has ended")
            case _:
                ended = await self.note_end(letter, order, row)
                return ended or await self._withdraw(letter, "the product service did not keep its rejection")

    async def _discard_impostor(self, letter: Letter, order: Order) -> Done:
        """Its record has taken nothing, unless the ledger holds these very contents. Those are not given back here: an
        order id's end settles them, and would be told to the other order's buyer.
        """
        if await self._parked.held(order) is not Held.ITS_OWN:
            return await self._impostor_discarded(letter)
        if await self._do(partial(index.is_others, order_id=order.order_id, letter_id=letter.letter_id)):
            return await self._withdraw(letter, "another letter has its order id: discard that one first")
        return await self._withdraw(letter, HELD_FOR_ANOTHER)

    async def _impostor_discarded(self, letter: Letter) -> Done:
        return Done(await self._do(partial(intents.give_up_id, letter=letter)), LetterState.DISCARDED.value)

    async def _discarded(self, letter: Letter) -> Done:
        state = LetterState.DISCARDED
        return Done(await self._do(partial(intents.finish, letter=letter, state=state)), state.value)

    # --- ends --------------------------------------------------------------------------------------------------------

    async def _close(self, letter: Letter, end: Confirmed | Rejected) -> Done:
        match end:
            case Confirmed():
                state, outcome = LetterState.RESOLVED, "confirmed"
            case Rejected(reason) if reason == Rejection.DISCARDED:
                state, outcome = LetterState.DISCARDED, f"rejected:{reason}"
            case Rejected(reason):
                state, outcome = LetterState.RESOLVED, f"rejected:{reason}"
        discarding = letter.open_intent == intents.DISCARD
        if discarding:
            reach(CrashPoint.DISCARD_SETTLED)
        as_wanted = discarding and state is LetterState.DISCARDED
        closing = partial(intents.finish, letter=letter, state=state, outcome=outcome, action=state.value, note=outcome)
        closed = await self._do(closing)
        log.info("letter_closed", letter_id=letter.letter_id, order_id=letter.order_id, outcome=outcome)
        return Done(closed, state.value if as_wanted else outcome)

    async def _withdraw(self, letter: Letter, why: str) -> Done:
        """As if it had not been begun, but for the log."""
        withdrawn = await self._do(partial(intents.withdraw, letter=letter, why=why))
        log.warning("letter_intent_withdrawn", letter_id=letter.letter_id, intent=letter.open_intent, why=why)
        return Done(withdrawn, f"refused: {why}")
