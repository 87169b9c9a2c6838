"""The retry topics, and what the headers of a record in them say. Pure.

An order that failed in place is copied to `{topic}-retry-0`, then `-1`, …: as it is known by now, and in headers where
it first arrived, how often it has failed, and until when it waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seckill.domain.order import Order
from seckill.messaging.envelope import (
    ORIGIN_HEADER,
    REPLAY_OF_HEADER,
    REPLAYS_HEADER,
    Headers,
    Record,
    encode,
    with_origin,
)
from seckill.settings import KafkaSettings, RetrySettings

RETRY_PREFIX = "seckill-retry-"
TIER_HEADER = f"{RETRY_PREFIX}tier"
ATTEMPTS_HEADER = f"{RETRY_PREFIX}attempts"
FIRST_FAILED_HEADER = f"{RETRY_PREFIX}first-failed-ms"
DUE_HEADER = f"{RETRY_PREFIX}due-ms"
CAUSE_HEADER = f"{RETRY_PREFIX}cause"

CAUSE_MAX = 300
"""Characters of an error's text kept in a retry record."""

OTHER_HEADERS_BYTES_MAX = 16_384
"""Headers that a record brings along and keeps in a retry topic. With more it keeps only NEEDED_HEADERS, each once."""

NEEDED_HEADERS = (ORIGIN_HEADER, REPLAYS_HEADER, REPLAY_OF_HEADER)
"""What the record is known by when it comes back."""

NEEDED_BYTES_MAX = 500
"""Of the value of one of them, in a record that may not keep the others."""

NUMBER_DIGITS_MAX = 14
"""Digits of a header that is believed to be a number: Unix milliseconds have 13, and 14 up to the year 5138."""


@dataclass(frozen=True, slots=True)
class RetryTier:
    """A topic in which records wait for `delay_ms` before they are carried again."""

    number: int
    topic: str
    delay_ms: int


def retry_tiers(kafka: KafkaSettings, retry: RetrySettings) -> tuple[RetryTier, ...]:
    """All tiers that are configured, the one that a record comes to first in front."""
    return tuple(
        RetryTier(number, f"{kafka.topic}-retry-{number}", delay_ms)
        for number, delay_ms in enumerate(retry.topic_delays_ms)
    )


@dataclass(frozen=True, slots=True)
class RetryStory:
    """What a record tells of its failures until now. `attempts` 0: it has never failed, or somebody else wrote it.

    `due_ms` is Unix time; 0: at once.
    """

    attempts: int = 0
    first_failed_ms: int = 0
    due_ms: int = 0
    cause: str = ""


def tier_of(topic: str, tiers: Sequence[RetryTier]) -> RetryTier | None:
    """The tier of a topic; None for any other topic, the main one too."""
    return next((tier for tier in tiers if tier.topic == topic), None)


def retry_story(record: Record) -> RetryStory:
    """The story in a record's headers. A header that cannot be read counts as absent."""
    headers = {name: value or b"" for name, value in record.headers if name.startswith(RETRY_PREFIX)}
    return RetryStory(
        attempts=number_of(headers.get(ATTEMPTS_HEADER)),
        first_failed_ms=number_of(headers.get(FIRST_FAILED_HEADER)),
        due_ms=number_of(headers.get(DUE_HEADER)),
        cause=headers.get(CAUSE_HEADER, b"").decode(errors="replace"),
    )


def number_of(value: bytes | None) -> int:
    """A header's decimal number that is not negative; 0 when there is none."""
    text = value or b""
    return int(text) if text.isdigit() and len(text) <= NUMBER_DIGITS_MAX else 0


def waits_until_ms(record: Record, tier: RetryTier, *, seen_ms: int | None = None) -> int:
    """Unix time until which the record waits in its tier. 0, at once, without a readable header.

    Whatever the header says, that is not much longer than the tier's delay after the record was written; nor, as the
    clock of who wrote it may be wrong, after `seen_ms`, when this process first saw it (None: an onlooker asks).
    """
    began_ms = record.timestamp_ms if seen_ms is None else min(record.timestamp_ms, seen_ms)
    return min(retry_story(record).due_ms, began_ms + tier.delay_ms * 6 // 5)


def retry_record(record: Record, order: Order, tier: RetryTier, story: RetryStory) -> tuple[bytes, bytes, Headers]:
    """Key, value and headers of the copy of a record's order that is to wait in a tier.

    Other headers stay as they came, the first arrival and the number of replays among them; unless they are so large
    that the topic may not take the copy: then those two, and of which letter it is a replay, alone.
    """
    kept = tuple(header for header in with_origin(record) if not header[0].startswith(RETRY_PREFIX))
    if sum(len(name) + len(value or b"") for name, value in kept) > OTHER_HEADERS_BYTES_MAX:
        first = {name: value for name, value in reversed(kept) if name in NEEDED_HEADERS}
        kept = tuple((name, value) for name, value in first.items() if len(value or b"") < NEEDED_BYTES_MAX)
    told = {
        TIER_HEADER: str(tier.number),
        ATTEMPTS_HEADER: str(story.attempts),
        FIRST_FAILED_HEADER: str(story.first_failed_ms),
        DUE_HEADER: str(story.due_ms),
        CAUSE_HEADER: story.cause[:CAUSE_MAX],
    }
    headers = (*kept, *((name, value.encode(errors="replace")) for name, value in told.items()))
    return order.order_id.encode(), encode(order), headers
