"""What the topics that keep their records say of some orders: those of retries, then the dead letters. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from seckill.domain.errors import InvalidOrder
from seckill.messaging.dead_letters import REASON_HEADER
from seckill.messaging.envelope import Record, decode
from seckill.messaging.reading import read_topic
from seckill.messaging.retry_topics import RetryTier, retry_story, retry_tiers, waits_until_ms
from seckill.settings import Settings

Told = dict[str, list[tuple[int, str]]]
"""By order id: when each of its records was written (ms), and what that record says."""


async def told_by_records(settings: Settings, order_ids: Collection[str]) -> Told:
    """Every copy of these orders that was put off or set aside. Raises PublishUnknown."""
    kafka = settings.kafka
    speakers: dict[str, Callable[[Record], str]] = {
        tier.topic: partial(_put_off, tier) for tier in retry_tiers(kafka, settings.retry)
    }
    speakers[kafka.dead_letter_topic] = _letter
    found: Told = {}
    for topic, say in speakers.items():
        for record in await read_topic(kafka, topic, wanted=lambda each: bool(_ids_of(each, order_ids))):
            for order_id in _ids_of(record, order_ids):
                found.setdefault(order_id, []).append((record.timestamp_ms, say(record)))
    return found


def _ids_of(record: Record, order_ids: Collection[str]) -> list[str]:
    try:
        return [order.order_id for order in decode(record) if order.order_id in order_ids]
    except InvalidOrder:
        return []


def _put_off(tier: RetryTier, record: Record) -> str:
    story = retry_story(record)
    waits_s = max(0, waits_until_ms(record, tier) - record.timestamp_ms) / 1_000
    cause = story.cause or "no cause told"
    return f"put off by {waits_s:.1f} s to {_place(record)} after {story.attempts} attempts: {cause}"


def _letter(record: Record) -> str:
    headers = {name: (value or b"?").decode(errors="replace") for name, value in record.headers}
    reason, attempts = headers.get(REASON_HEADER, "?"), headers.get("seckill-dlq-attempts", "?")
    return f"dead letter {_place(record)}: {reason} after {attempts} attempts"


def _place(record: Record) -> str:
    return f"{record.topic}/{record.partition}/{record.offset}"
