"""The consumer of the dead-letter topic: keeps its index, and looks after what was begun with letters.

    letters ─▶ index ─▶ commit          every look: interrupted replays and discards ─▶ finish
                                                    letters whose orders have ended  ─▶ resolved

Both go on by themselves: with the product service down letters are indexed all the same. Two of these do no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from prometheus_client import Counter

from seckill.dlq.desk import LetterDesk
from seckill.dlq.index import Taken
from seckill.dlq.model import Done
from seckill.domain.errors import ConsumerEnded, SeckillError
from seckill.messaging.delivery import record_of
from seckill.messaging.envelope import Record
from seckill.messaging.fetching import fetch

log = structlog.get_logger()

TAKEN = Counter(
    "seckill_letters_taken_total", "Letters read from the topic, by what they changed in the index", ["what"]
)
ENDED = Counter("seckill_letters_ended_total", "Letters whose orders had ended when they were looked at")
RESUMED = Counter("seckill_letters_resumed_total", "Replays and discards that were finished for somebody else")
FAILED = Counter("seckill_letter_looks_failed_total", "Looks after letters that a dependency cut short", ["look"])

RESUMED_AFTER_MS = 15_000
"""From the beginning of a replay or discard to the moment in which whoever began it is taken for dead. More than a
publish may take; should it still live, both do the same, and it counts once."""

RECORDS_MAX = 500
"""Letters that are written to the index in one transaction."""


@dataclass(frozen=True, slots=True)
class KeeperLimits:
    look_every_ms: int
    poll_timeout_ms: int
    commit_timeout_ms: int
    resumed_after_ms: int = RESUMED_AFTER_MS


class LetterKeeper:
    """Runs until `stop`. Opens nothing: the (started) consumer and the desk are its caller's.

    `after_look`: what else is to be done in every look, such as showing figures.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        desk: LetterDesk,
        limits: KeeperLimits,
        *,
        after_look: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._consumer = consumer
        self._desk = desk
        self._limits = limits
        self._after_look = after_look
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """`run` returns after what is under way; it may be cut off at any moment."""
        self._stopping.set()

    async def run(self, topic: str) -> None:
        """A dependency that is down is waited for. Raises ConsumerEnded when Kafka does not serve this consumer any
        more.
        """
        self._consumer.subscribe([topic])
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(self._look_regularly())
            try:
                while not self._stopping.is_set():
                    await self._index_once()
            except KafkaError as error:
                raise ConsumerEnded(str(error)) from error
            finally:
                looking.cancel()

    # --- the index ---------------------------------------------------------------------------------------------------

    async def _index_once(self) -> None:
        came = await fetch(self._consumer, timeout_ms=self._limits.poll_timeout_ms, max_records=RECORDS_MAX)
        batches = came.batches  # what cannot be read at all is no letter, and has been told in the log
        fetched = [record for batch in batches.values() for record in batch]
        if not fetched:
            return
        taken = await self._taken([record_of(each) for each in fetched])
        if taken is None:
            return
        for what in taken:
            TAKEN.labels(what.value).inc()
        await self._commit({partition: batch[-1].offset + 1 for partition, batch in batches.items()})

    async def _taken(self, records: Sequence[Record]) -> list[Taken] | None:
        """Waits until the index has them; None when this is to stop before that."""
        while True:
            try:
                return await self._desk.take(records)
            except SeckillError as error:
                FAILED.labels("index").inc()
                log.warning("letters_wait_for_the_index", letters=len(records), error=str(error))
            if await self._stops_within(self._limits.look_every_ms):
                return None

    async def _commit(self, offsets: dict[TopicPartition, int]) -> None:
        """What is not committed is read again, and known."""
        assigned = self._consumer.assignment()
        try:
            async with asyncio.timeout(self._limits.commit_timeout_ms / 1_000):
                await self._consumer.commit({each: at for each, at in offsets.items() if each in assigned})
        except (CommitFailedError, IllegalStateError, KafkaError, TimeoutError) as error:
            log.warning("letters_not_committed", error=f"{type(error).__name__}: {error}")

    # --- looks -------------------------------------------------------------------------------------------------------

    async def _look_regularly(self) -> None:
        while not await self._stops_within(self._limits.look_every_ms):
            await self._look("resume", self._resume)
            await self._look("resolve", self._resolve)
            if self._after_look is not None:
                await self._look("after", self._after_look)

    async def _look(self, name: str, look: Callable[[], Awaitable[object]]) -> None:
        try:
            await look()
        except SeckillError as error:
            FAILED.labels(name).inc()
            log.warning("letters_not_looked_after", look=name, error=str(error))
        except Exception:
            FAILED.labels(name).inc()
            log.exception("look_after_letters_failed", look=name)  # the loop must outlive what nobody foresaw

    async def _resume(self) -> None:
        await self._desk.resume(idle_ms=self._limits.resumed_after_ms, told=_note_resumed)

    async def _resolve(self) -> None:
        ENDED.inc(await self._desk.resolve())

    async def _stops_within(self, limit_ms: int) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_ms / 1_000):
                await self._stopping.wait()
        return self._stopping.is_set()


def _note_resumed(done: Done) -> None:
    RESUMED.inc()
    log.info("letter_resumed", letter_id=done.letter.letter_id, what=done.what)
