"""Gauges of the index, for the role that keeps it. Letters that have ended are not counted: their number only grows."""

from __future__ import annotations

from prometheus_client import Gauge

from seckill.dlq.desk import LetterDesk
from seckill.dlq.model import Filter, LetterState
from seckill.domain.reasons import DeadLetterReason

NEW = Gauge("seckill_letters_new", "Dead letters that wait for a person, by why they were set aside", ["reason"])
REPLAYING = Gauge("seckill_letters_replaying", "Dead letters that were replayed and have not ended")
LOOPING = Gauge("seckill_letters_looping", "Dead letters that were replayed and came back")


async def show_letters(desk: LetterDesk) -> None:
    """Sets the gauges to what the index says now. Raises DatabaseUnavailable."""
    new = await desk.stats(Filter(states=frozenset({LetterState.NEW})))
    replaying = await desk.stats(Filter(states=frozenset({LetterState.REPLAYING})))
    for reason in DeadLetterReason:  # each of them always: a series that is missing says nothing, 0 says none
        NEW.labels(reason).set(new.by_reason.get(reason, 0))
    LOOPING.set(new.looping)
    REPLAYING.set(replaying.total)
