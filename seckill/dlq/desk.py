"""The desk at which people and roles handle dead letters. What it begins, `finishing` ends; `index` remembers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
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
    By,
    Considered,
    Done,
    Filter,
    InvalidEdit,
    Letter,
    RebuiltIndex,
    Stats,
    Story,
    UnknownLetter,
)
from seckill.dlq.reading import found_letter
from seckill.dlq.topic import LetterTopic
from seckill.dlq.upkeep import LOST_AFTER_MS, Upkeep
from seckill.domain.errors import SeckillError
from seckill.domain.order import Order, Sale
from seckill.domain.reasons import DeadLetterReason
from seckill.messaging.envelope import Record

log = structlog.get_logger()

JUDGED_MAX = 100
"""Letters whose records are read at once."""

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
        self._upkeep = Upkeep(in_transaction, stores.reservations, stores.parked, finisher, topic_name=topic_name)

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

    async def look_at(self, letter_ids: Collection[int]) -> list[Letter]:
        """These letters as they are now."""
        return await self._do(partial(index.by_numbers, numbers=letter_ids, topic=self._topic_name))

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
        """What replay would do with each, by what index and topic say; of one letter alone also what it would publish.
        Changes nothing. Raises InvalidEdit.
        """
        if edit is not None and len(letters) != 1:
            raise InvalidEdit("record", "an edit is of one letter only")
        considered: list[Considered] = []
        for start in range(0, len(letters), JUDGED_MAX):
            page = letters[start : start + JUDGED_MAX]
            originals = await self._topic.originals(page)
            for each in page:
                judged, _ = await self._judge(each, originals.get(each.letter_id), edit, force=force)
                considered.append(judged if len(letters) == 1 else replace(judged, payload=None))
        return considered

    async def original(self, letter: Letter) -> Record | None:
        """The record that failed, with its value; None: no topic holds it any more."""
        return (await self._topic.originals([letter])).get(letter.letter_id)

    async def replay(self, letter: Letter, by: By, *, edit: bytes | None = None, force: bool = False) -> Done:
        """Publishes the record again, or settles its order when that has ended. Raises InvalidEdit.

        `force`: also what would only come back, more often than is allowed, and what was published before and has not
        ended.
        """
        original = await self.original(letter)
        considered, found = await self._judge(letter, original, edit, force=force)
        if considered.refused:
            return Done(letter, f"refused: {considered.refused}")
        order = found.order if found is not None and (edit is not None or not is_impostor(letter)) else None
        payload = considered.payload if edit is not None else None
        begun, current = await self._do(partial(intents.intend_replay, letter=letter, by=by, order=order, edit=payload))
        return await self._begun(current, begun, CrashPoint.REPLAY_INTENDED)

    async def discard(self, letter: Letter, by: By, *, force: bool = False) -> Done:
        """Ends the order as rejected(DISCARDED), which gives back what it held; of what holds no order, the state.

        `force`: also what was published again and has not ended.
        """
        if refused := busy(letter, force=force):
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
        original = await self.original(letter)
        order = candidate(original).order if original is not None else None
        return order if order is not None and not await self._is_others(order, letter) else None

    async def _is_others(self, order: Order, letter: Letter) -> bool:
        return await self._do(partial(index.is_others, order_id=order.order_id, letter_id=letter.letter_id))

    # --- judging -----------------------------------------------------------------------------------------------------

    async def _judge(
        self, letter: Letter, original: Record | None, edit: bytes | None, *, force: bool
    ) -> tuple[Considered, Candidate | None]:
        taken = busy(letter, force=force and edit is None)  # an edit may be another order: never of one on its way
        if original is None:
            return Considered(letter, taken or "the topic does not hold its record any more", None), None
        found = edited(letter, original, edit) if edit is not None else candidate(original)
        if edit is not None and not taken:
            await self._require_free(letter, original, found)
        refused = taken or await self._refused(letter, found, edited=edit is not None, force=force)
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

    async def resume(self, *, idle_ms: int = 0, told: Callable[[Done], object] = lambda _: None) -> list[Done]:
        """Finishes what was written down at least `idle_ms` ago and is not finished; `told` of each at once.

        One that cannot be finished now leaves the others be; the first such error is raised in the end.
        """
        return await self._upkeep.resume(idle_ms=idle_ms, told=told)

    async def resolve(self, *, lost_after_ms: int = LOST_AFTER_MS) -> int:
        """Notes which open letters' orders have ended meanwhile; bounded for each call. Returns how many.

        One that was replayed so long ago, and whose ledger entry is parked, is new again.
        """
        return await self._upkeep.resolve(lost_after_ms)

    async def rebuild(self, progress: Callable[[int], None]) -> RebuiltIndex:
        """The index again from the topic's beginning; `progress` is told how many letters have been read."""
        taken: list[Taken] = []

        async def take(records: Sequence[Record]) -> None:
            taken.extend(await self.take(records))
            progress(len(taken))

        await self._stores.read_all(take)
        resolved = await self._upkeep.resolve_all()
        return RebuiltIndex(len(taken), taken.count(Taken.ADDED), taken.count(Taken.REOPENED), resolved)
