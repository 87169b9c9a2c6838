"""What is looked after without anybody asking: what was begun with letters and left, and how their orders ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import structlog

from seckill.admission.parked import ParkedOrders
from seckill.checkout.reservations import Reservations, outcome_of
from seckill.dlq import index, intents
from seckill.dlq.finishing import Finisher, InTransaction
from seckill.dlq.model import OPEN_STATES, Done, Letter, LetterState
from seckill.domain.errors import SeckillError
from seckill.domain.order import Order

log = structlog.get_logger()

LOOK_MAX = 500
"""Letters of one state in a look after ended orders."""

UNFINISHED_MAX = 100
"""Interrupted replays and discards that are read at once."""

FAILURES_MAX = 5
"""Interrupted replays and discards in a row that cannot be finished now: then it is not they that are the reason."""

LOST_AFTER_MS = 30_000
"""From a replay to the moment in which a parked entry says that the published record came to nothing: much longer than
the index takes to read the letter of a record that came back."""


class Upkeep:
    """Of one desk. Raises what the desk's stores raise."""

    def __init__(
        self,
        in_transaction: InTransaction,
        reservations: Reservations,
        parked: ParkedOrders,
        finisher: Finisher,
        *,
        topic_name: str,
    ) -> None:
        self._do = in_transaction
        self._reservations = reservations
        self._parked = parked
        self._finisher = finisher
        self._topic_name = topic_name
        self._looked_at = dict.fromkeys(OPEN_STATES, 0)  # the letter at which the last look of `resolve` ended

    # --- what was begun ----------------------------------------------------------------------------------------------

    async def resume(self, *, idle_ms: int, told: Callable[[Done], object]) -> list[Done]:
        done: list[Done] = []
        failed: list[SeckillError] = []
        in_a_row = 0
        async for letter in self._unfinished(idle_ms):
            try:
                done.append(await self._finisher.finish(letter))
                told(done[-1])
                in_a_row = 0
            except SeckillError as error:
                log.warning("letter_not_finished", letter_id=letter.letter_id, error=str(error))
                failed.append(error)
                in_a_row += 1
                await self._do(partial(intents.touch, letter=letter))
            if in_a_row == FAILURES_MAX:
                break
        if failed:
            raise failed[0]
        return done

    async def _unfinished(self, idle_ms: int) -> AsyncIterator[Letter]:
        """Each once, oldest first. What is looked at and stays open is younger afterwards."""
        seen: set[int] = set()
        while True:
            wanted = partial(intents.unfinished, topic=self._topic_name, idle_ms=idle_ms, limit=UNFINISHED_MAX)
            page = await self._do(wanted)
            fresh = [letter for letter in page if letter.letter_id not in seen]
            seen.update(letter.letter_id for letter in fresh)
            for letter in fresh:
                yield letter
            if len(page) < UNFINISHED_MAX or not fresh:
                return

    # --- what has ended ----------------------------------------------------------------------------------------------

    async def resolve(self, lost_after_ms: int) -> int:
        """One look at each state; how many have ended."""
        return sum([(await self._look(state, lost_after_ms))[0] for state in OPEN_STATES])

    async def resolve_all(self) -> int:
        """Looks from the beginning of the index to its end; how many have ended."""
        resolved = 0
        for state in OPEN_STATES:
            self._looked_at[state], at_end = 0, False
            while not at_end:
                count, at_end = await self._look(state, LOST_AFTER_MS)
                resolved += count
        return resolved

    async def _look(self, state: LetterState, lost_after_ms: int) -> tuple[int, bool]:
        """Goes on where the last look ended; how many have ended, and whether it came to the end of the index."""
        looking = partial(intents.open_orders, state=state, topic=self._topic_name, limit=LOOK_MAX)
        found = await self._do(partial(looking, after_id=self._looked_at[state]))
        rows = await self._reservations.of_orders([order for _, order in found])
        ended = 0
        free: list[tuple[Letter, Order]] = []
        for letter, order in found:
            row = rows.get(order.key)
            ended += await self._finisher.note_end(letter, order, row) is not None
            if outcome_of(order, row, gid="") is None:
                free.append((letter, order))
        if state is LetterState.REPLAYING:
            await self._reopen_lost(free, before_ms=index.now_ms() - lost_after_ms)
        at_end = len(found) < LOOK_MAX
        self._looked_at[state] = 0 if at_end else found[-1][0].letter_id
        return ended, at_end

    async def _reopen_lost(self, replayed: Sequence[tuple[Letter, Order]], *, before_ms: int) -> None:
        """Those whose entries were set aside by a rebuild, or by the letter of an older copy, after the replay
        had looked for them. Nothing would bring them back.
        """
        old = [(letter, order) for letter, order in replayed if letter.updated_ms <= before_ms]
        aside = await self._parked.set_aside([order for _, order in old]) if old else frozenset()
        for letter, order in old:
            if order.order_id in aside:
                log.warning("letter_reopened", letter_id=letter.letter_id, order_id=order.order_id)
                why = "published again, and its ledger entry is parked all the same"
                await self._do(partial(intents.reopen, letter=letter, why=why))
