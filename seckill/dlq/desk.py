"""The desk at which people and roles handle dead letters. What it begins, `finishing` ends; `index` remembers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from seckill.admission.parked import Held, ParkedOrders
from seckill.audit.timeline import Event, in_order
from seckill.checkout.reservations import Reservations
from seckill.crashpoints import CrashPoint, reach
from seckill.dlq import index, intents
from seckill.dlq.finishing import Finisher, InTransaction
from seckill.dlq.index import Taken
from seckill.dlq.judging import Candidate, busy, candidate, comes_back, edited, enters_another_sale, is_impostor
from seckill.dlq.model import (
    OPEN_STATES,
    By,
    Considered,
    Done,
    Filter,
    InvalidEdit,
    Letter,
    LetterState,
    RebuiltIndex,
    Stats,
    Story,
    UnknownLetter,
)
from seckill.dlq.reading import found_letter
from seckill.dlq.topic import LetterTopic
from seckill.domain.errors import SeckillError
from seckill.domain.order import Order, Sale
from seckill.domain.reasons import DeadLetterReason
from seckill.messaging.envelope import Record

log = structlog.get_logger()

LOOK_MAX = 500
"""Letters of one state in a look after ended orders."""

UNFINISHED_MAX = 100
"""Interrupted replays and discards in one look after them."""

ReadAll = Callable[[Callable[[Sequence[Record]], Awaitable[None]]], Awaitable[None]]
"""Hands over every record of the dead-letter topic, some hundreds at once."""


@dataclass(frozen=True, slots=True)
class DeskStores:
    """What the desk reads besides the index. `current_sale`: the newest of a product. `tell`: an order's own story."""

    reservations: Reservations
    parked: ParkedOrders
    current_sale: Callable[[int], Awaitable[Sale | None]]
    tell: Callable[[str], Awaitable[Sequence[Event]]]
    read_all: ReadAll


class LetterDesk:
    """Opened by `seckill.wiring.dead_letters:open_letter_desk`.

    Methods raise what their stores raise: DatabaseUnavailable (the index), PublishUnknown and TopicMissing (Kafka),
    AdmissionUnavailable (Redis), ProductUnavailable and BranchFailed. A replay or discard that is cut short so stays
    written down, and `resume` finishes it.
    """

    def __init__(
        self,
        in_transaction: InTransaction,
        topic: LetterTopic,
        stores: DeskStores,
        finisher: Finisher,
        *,
        topic_name: str,
        replays_max: int,
    ) -> None:
        self._do = in_transaction
        self._topic = topic
        self._stores = stores
        self._finisher = finisher
        self._topic_name = topic_name
        self._replays_max = replays_max
        self._looked_at = dict.fromkeys(OPEN_STATES, 0)  # the letter at which the last look of `resolve` ended

    # --- looking -----------------------------------------------------------------------------------------------------

    async def find(self, wanted: Filter) -> list[Letter]:
        """Newest first."""
        return await self._do(partial(index.find, wanted=wanted, topic=self._topic_name))

    async def get(self, ident: str) -> Letter:
        """By letter number, order id or subject. Raises UnknownLetter."""
        letter = await self._do(partial(index.get, ident=ident, topic=self._topic_name))
        if letter is None:
            raise UnknownLetter(ident)
        return letter

    async def story(self, letter: Letter) -> Story:
        """Payload and headers from the topic, what people did, and the order's whole timeline."""
        record = (await self._topic.read([letter])).get(letter.letter_id)
        actions = await self._do(partial(index.actions_of, letter_id=letter.letter_id))
        told = [
            Event(letter.first_failed_ms, "worker", f"failed for the first time, reading {letter.record}"),
            Event(letter.last_failed_ms, "worker", f"given up after attempt {letter.attempts}: {letter.error}"),
        ]
        if letter.reason is DeadLetterReason.FOREIGN:  # what failed there was no worker of ours
            told = [Event(letter.last_failed_ms, "kafka", f"written to {letter.letter} by somebody else")]
        if letter.order_id is not None:
            told += await self._tell(letter.order_id)
        return Story(letter, record, actions, tuple(in_order(told)))

    async def _tell(self, order_id: str) -> Sequence[Event]:
        """A store that does not answer is a line of the story."""
        try:
            return await self._stores.tell(order_id)
        except SeckillError as error:
            return [Event(None, "stores", f"the order's own story cannot be read: {error}")]

    async def stats(self, wanted: Filter) -> Stats:
        """Of all letters that the filter means, whatever its limit."""
        return await self._do(partial(index.stats, wanted=wanted))

    # --- handling ----------------------------------------------------------------------------------------------------

    async def consider(
        self, letters: Sequence[Letter], *, edit: bytes | None = None, force: bool = False
    ) -> list[Considered]:
        """What replay would do with each, by what index and topic say. Changes nothing. Raises InvalidEdit.

        An edit is of one letter only.
        """
        originals = await self._topic.originals(letters)
        return [(await self._judge(each, originals.get(each.letter_id), edit, force=force))[0] for each in letters]

    async def replay(self, letter: Letter, by: By, *, edit: bytes | None = None, force: bool = False) -> Done:
        """Publishes the record again, or settles its order when that has ended. Raises InvalidEdit."""
        original = (await self._topic.originals([letter])).get(letter.letter_id)
        considered, found = await self._judge(letter, original, edit, force=force)
        if considered.refused:
            return Done(letter, f"refused: {considered.refused}")
        order = found.order if found is not None and (edit is not None or not is_impostor(letter)) else None
        payload = considered.payload if edit is not None else None
        begun, current = await self._do(partial(intents.intend_replay, letter=letter, by=by, order=order, edit=payload))
        return await self._begun(current, begun, CrashPoint.REPLAY_INTENDED)

    async def discard(self, letter: Letter, by: By) -> Done:
        """Ends the order as rejected(DISCARDED), which gives back what it held; of what holds no order, the state."""
        if refused := busy(letter):
            return Done(letter, f"refused: {refused}")
        order = None if letter.order_id or is_impostor(letter) else await self._order_in(letter)
        begun, current = await self._do(partial(intents.intend_discard, letter=letter, by=by, order=order))
        return await self._begun(current, begun, CrashPoint.DISCARD_INTENDED)

    async def _begun(self, letter: Letter, begun: bool, point: CrashPoint) -> Done:
        if not begun:
            return Done(letter, f"refused: {busy(letter) or 'somebody was quicker'}")
        reach(point)
        return await self._finisher.finish(letter)

    async def _order_in(self, letter: Letter) -> Order | None:
        """The order of a letter without one in the index: its value lies elsewhere."""
        original = (await self._topic.originals([letter])).get(letter.letter_id)
        order = candidate(original).order if original is not None else None
        return order if order is not None and not await self._is_others(order, letter) else None

    async def _is_others(self, order: Order, letter: Letter) -> bool:
        return await self._do(partial(index.is_others, order_id=order.order_id, letter_id=letter.letter_id))

    # --- judging -----------------------------------------------------------------------------------------------------

    async def _judge(
        self, letter: Letter, original: Record | None, edit: bytes | None, *, force: bool
    ) -> tuple[Considered, Candidate | None]:
        if original is None:
            return Considered(letter, busy(letter) or "the topic does not hold its record any more", None), None
        found = edited(letter, original, edit) if edit is not None else candidate(original)
        if edit is not None and not busy(letter):
            await self._require_free(letter, original, found)
        refused = busy(letter) or await self._refused(letter, found, edited=edit is not None, force=force)
        return Considered(letter, refused, found.record.value), found

    async def _refused(self, letter: Letter, found: Candidate, *, edited: bool, force: bool) -> str:
        """Why it is not replayed unless somebody insists, or not at all; empty when it may be."""
        order = found.order
        if order is not None and not is_impostor(letter) and await self._is_others(order, letter):
            return "another letter has its order"
        if force:
            return ""
        if letter.replays >= self._replays_max:
            return f"it was replayed {letter.replays} times, and dead_letters.replays_max is {self._replays_max}"
        if not edited and (refused := comes_back(letter, found)):
            return refused
        return await self._enters_another_sale(found)

    async def _enters_another_sale(self, found: Candidate) -> str:
        for order in found.orders:
            placed = await self._stores.parked.in_its_sale(order)
            current = await self._stores.current_sale(order.product_id) if not placed.sale_id else None
            arrived_ms = found_letter(found.record).arrived_ms
            if current is not None and (refused := enters_another_sale(order, arrived_ms=arrived_ms, current=current)):
                return refused
        return ""

    async def _require_free(self, letter: Letter, original: Record, changed: Candidate) -> None:
        """An edit must leave alone what admission or a reservation knows. Raises InvalidEdit."""
        before = candidate(original).order if not is_impostor(letter) else None
        after = changed.order
        assert after is not None
        if await self._is_others(after, letter):
            raise InvalidEdit("order_id", f"another letter has {after.order_id}")
        for order in {each.order_id: each for each in (before, after) if each is not None}.values():
            held = await self._stores.parked.held(order)
            rows = await self._stores.reservations.of_orders([order])
            if held is not Held.NOTHING or rows:
                raise InvalidEdit("order_id", f"{order.order_id} was taken in as it is: replay it so, or discard it")

    # --- looking after -----------------------------------------------------------------------------------------------

    async def take(self, records: Sequence[Record]) -> list[Taken]:
        """Writes the letters of these records of the topic into the index: all of them, or none."""
        found = [found_letter(record) for record in records]
        return await self._do(partial(index.take_all, found=found, topic=self._topic_name))

    async def resume(self, *, idle_ms: int = 0) -> list[Done]:
        """Finishes what was written down at least `idle_ms` ago and is not finished."""
        wanted = partial(intents.unfinished, topic=self._topic_name, idle_ms=idle_ms, limit=UNFINISHED_MAX)
        return [await self._finisher.finish(letter) for letter in await self._do(wanted)]

    async def resolve(self) -> int:
        """Notes which open letters' orders have ended meanwhile; bounded for each call. Returns how many."""
        return sum([(await self._look(state))[0] for state in OPEN_STATES])

    async def _look(self, state: LetterState) -> tuple[int, bool]:
        """Goes on where the last look ended; how many have ended, and whether it came to the end of the index."""
        looking = partial(intents.open_orders, state=state, topic=self._topic_name, limit=LOOK_MAX)
        found = await self._do(partial(looking, after_id=self._looked_at[state]))
        rows = await self._stores.reservations.of_orders([order for _, order in found])
        ended = [await self._finisher.note_end(letter, order, rows.get(order.key)) for letter, order in found]
        at_end = len(found) < LOOK_MAX
        self._looked_at[state] = 0 if at_end else found[-1][0].letter_id
        return sum(each is not None for each in ended), at_end

    async def rebuild(self, progress: Callable[[int], None]) -> RebuiltIndex:
        """The index again from the topic's beginning; `progress` is told how many letters have been read."""
        taken: list[Taken] = []

        async def take(records: Sequence[Record]) -> None:
            taken.extend(await self.take(records))
            progress(len(taken))

        await self._stores.read_all(take)
        resolved = 0
        for state in OPEN_STATES:
            self._looked_at[state], at_end = 0, False
            while not at_end:
                count, at_end = await self._look(state)
                resolved += count
        return RebuiltIndex(len(taken), taken.count(Taken.ADDED), taken.count(Taken.REOPENED), resolved)
