"""Asks the index of dead letters, Kafka and the coordinator what the rules want to know. Each reads its own part."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from seckill.alerts.snapshot import Letters, OpenLetters, Snapshot, Source, TopicLag, Transaction
from seckill.dtm.barrier import in_transaction
from seckill.dtm.client import DtmClient
from seckill.messaging.lag import consumer_lag, group_lag
from seckill.messaging.letters import STATES, UNRESOLVED, letter
from seckill.messaging.retry_topics import RetryTier
from seckill.settings import KafkaSettings

RATE_OVER_MS = 60_000

LISTED_MAX = 1_000
"""Transactions of one status that the coordinator is asked for."""

UNFINISHED = ("prepared", "submitted", "aborting")


class LetterReader:
    """Open letters by reason, and how many came in the last minute. Raises what the database's driver raises."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._sessions = sessions

    async def read(self, now_ms: int) -> Snapshot:
        async def work(session: AsyncSession) -> Letters:
            return Letters(await _open_letters(session), *await _newest_letters(session, now_ms))

        return Snapshot(now_ms, letters=await in_transaction(self._sessions, work))


async def _open_letters(session: AsyncSession) -> tuple[OpenLetters, ...]:
    columns = letter.c.reason, func.count(), func.min(letter.c.first_failed_ms), func.max(letter.c.letter_id)
    by_reason = select(*columns).where(letter.c.state.in_(UNRESOLVED)).group_by(letter.c.reason)
    return tuple(
        [
            OpenLetters(reason, count, since_ms, await _shown(session, newest))
            for reason, count, since_ms, newest in (await session.execute(by_reason)).all()
        ]
    )


async def _newest_letters(session: AsyncSession, now_ms: int) -> tuple[int, str]:
    """How many failed last within the last minute, and one of them. Names every state, which is what the index begins
    with. A time that is still to come, as a stranger's record can name one, is not within it.
    """
    recent = select(func.count(), func.max(letter.c.letter_id)).where(
        letter.c.state.in_(STATES),
        letter.c.last_failed_ms > now_ms - RATE_OVER_MS,
        letter.c.last_failed_ms <= now_ms,
    )
    count, newest = (await session.execute(recent)).one()
    return count, await _shown(session, newest) if count else ""


async def _shown(session: AsyncSession, letter_id: int) -> str:
    """The order's id; of a letter without one, its number."""
    order_id: str | None = await session.scalar(select(letter.c.order_id).where(letter.c.letter_id == letter_id))
    return order_id or str(letter_id)


class LagReader:
    """How far the groups of workers, and that of the index of dead letters, are behind. Raises PublishUnknown.

    Of a topic that is not there nothing is known: what was told of it stands.
    """

    def __init__(self, kafka: KafkaSettings, tiers: Sequence[RetryTier]) -> None:
        self._kafka = kafka
        self._tiers = tiers

    async def read(self, now_ms: int) -> Snapshot:
        letters = self._kafka.dead_letter_topic
        retry = {tier.topic for tier in self._tiers}
        partitions = await consumer_lag(self._kafka, self._tiers)
        partitions += await group_lag(self._kafka, self._kafka.dead_letter_group, [letters])
        lags: Counter[str] = Counter()
        for each in partitions:
            lags[each.topic] += each.lag
        found = tuple(TopicLag(topic, lag, topic in retry, topic == letters) for topic, lag in lags.items())
        missing = {self._kafka.topic, letters, *retry} - lags.keys()
        return Snapshot(now_ms, lag=found, unread=frozenset({Source.LAG}) if missing else frozenset())


class TransactionReader:
    """Transactions that have not ended, of each status the newest `listed_max`. Raises DtmError.

    Where there are more of a status, an old one that is not among them may still be there.
    """

    def __init__(self, client: DtmClient, *, first_interval_s: int, listed_max: int = LISTED_MAX) -> None:
        self._client = client
        self._listed_max = listed_max
        self._first_interval_s = first_interval_s

    async def read(self, now_ms: int) -> Snapshot:
        listed = [await self._client.list(limit=self._listed_max, status=state) for state in UNFINISHED]
        transactions = tuple(
            Transaction(
                each.gid,
                each.status,
                int(each.created_at.timestamp() * 1_000) if each.created_at else now_ms,
                each.failed_calls(self._first_interval_s),
            )
            for found in listed
            for each in found
            if not each.finished
        )
        cut = any(len(found) >= self._listed_max for found in listed)
        return Snapshot(
            now_ms, transactions=transactions, unread=frozenset({Source.TRANSACTIONS}) if cut else frozenset()
        )


def clock_ms() -> int:
    """Unix time."""
    return time.time_ns() // 1_000_000
