"""Reads what may still bring an order back: Redis' ledger, the topics, the letters, the coordinator. Reads only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from seckill.admission import open_admission
from seckill.clients import open_dtm
from seckill.coordinator.state import UNFINISHED
from seckill.domain.errors import InvalidOrder, SeckillError
from seckill.messaging.envelope import decode
from seckill.messaging.letters import UNRESOLVED, letter
from seckill.messaging.reading import oldest_record_ms, read_topic
from seckill.messaging.retry_topics import retry_tiers
from seckill.prune.rules import Evidence
from seckill.settings import Settings

UNFINISHED_MAX = 100_000


class TooManyUnfinished(SeckillError):
    """The coordinator has more unfinished transactions than can be told apart from the others here."""

    def __init__(self, status: str) -> None:
        super().__init__(
            f"the coordinator has {UNFINISHED_MAX} or more transactions that are {status}; "
            "let it end them before anything is pruned (`seckill tx list --stuck`)"
        )


async def gather(settings: Settings, letters: AsyncEngine, product_ids: Collection[int]) -> Evidence:
    """Raises AdmissionUnavailable, PublishUnknown, Unavailable: where nobody answers, nothing is known to be gone."""
    return Evidence(
        ledger=await _ledger(settings, product_ids),
        set_aside=await _set_aside(settings),
        unresolved=await _unresolved(letters),
        unfinished=await _unfinished(settings),
        oldest_record_ms=await oldest_record_ms(settings.kafka, settings.kafka.topic),
    )


async def _ledger(settings: Settings, product_ids: Collection[int]) -> Counter[int]:
    async with open_admission(settings.redis, settings.ledger) as admission:
        await admission.sales.check()
        entries = [entry for product_id in product_ids for entry in await admission.ledger.entries(product_id)]
    return Counter(entry.order.sale_id for entry in entries)


async def _set_aside(settings: Settings) -> frozenset[bytes]:
    """Keys of the orders in the topics that keep their records for ever: those of retries, and the dead letters."""
    topics = [tier.topic for tier in retry_tiers(settings.kafka, settings.retry)]
    found: set[bytes] = set()
    for topic in (*topics, settings.kafka.dead_letter_topic):
        for record in await read_topic(settings.kafka, topic):
            try:
                found |= {order.key for order in decode(record)}
            except InvalidOrder:
                continue  # no order, so no reservation
    return frozenset(found)


async def _unresolved(letters: AsyncEngine) -> frozenset[int]:
    waiting = select(letter.c.sale_id).where(letter.c.state.in_(UNRESOLVED)).distinct()
    async with letters.connect() as connection:
        return frozenset(sale_id for (sale_id,) in await connection.execute(waiting) if sale_id)


async def _unfinished(settings: Settings) -> frozenset[str]:
    gids: set[str] = set()
    async with open_dtm(settings) as client:
        for status in UNFINISHED:
            found = await client.list(limit=UNFINISHED_MAX, status=status)
            if len(found) >= UNFINISHED_MAX:
                raise TooManyUnfinished(status)
            gids |= {each.gid for each in found if each.status in UNFINISHED}
    return frozenset(gids)
