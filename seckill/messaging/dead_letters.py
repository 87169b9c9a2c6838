"""Setting a record aside with everything needed to understand it.

Header names follow KIP-1191 (`__dlq.errors.*`); ours come beside them under `seckill-dlq-`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import structlog

from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import RecordTooLarge
from seckill.domain.reasons import DeadLetterReason
from seckill.messaging.envelope import ORIGIN_HEADER, Headers, Record, origin, with_origin
from seckill.messaging.envelope import REPLAY_OF_HEADER as REPLAY_OF_HEADER  # noqa: PLC0414 - of letters, too
from seckill.messaging.envelope import REPLAYS_HEADER as REPLAYS_HEADER  # noqa: PLC0414
from seckill.messaging.publisher import Publisher
from seckill.messaging.retry_topics import RETRY_PREFIX, number_of

log = structlog.get_logger()

MESSAGE_MAX = 1_000
"""Characters of an error's text kept in a header."""

VALUE_LEFT_HEADER = "seckill-dlq-value-left"
"""Bytes of a value that was too large for the dead-letter topic, and stayed where the letter says."""

REASON_HEADER = "seckill-dlq-reason"

PLACE_BYTES_MAX = 500
"""Of a header that names a place or a letter, in a letter without its record."""

_OURS = ("__dlq.errors.", "seckill-dlq-")


@dataclass(frozen=True, slots=True)
class Letter:
    """Why a record is set aside, and how often it was tried, in retry topics as well."""

    reason: DeadLetterReason
    error: Exception
    attempts: int
    first_failed_ms: int


def reason_of(letter: Record) -> DeadLetterReason | None:
    """Why the record was set aside; None when the letter does not tell, or tells what nobody knows here."""
    told = next((value for name, value in letter.headers if name == REASON_HEADER), None)
    try:
        return DeadLetterReason((told or b"").decode())
    except (ValueError, UnicodeDecodeError):
        return None


def replays_of(record: Record) -> int:
    """How often an operator has published the record again; 0: it came by itself."""
    return number_of(next((value for name, value in record.headers if name == REPLAYS_HEADER), None))


def letter_headers(record: Record, letter: Letter, *, group: str, now_ms: int) -> Headers:
    """The record's own headers and the story of its failure, of which earlier ones are part. Pure."""
    kept = tuple(header for header in with_origin(record) if not header[0].startswith((*_OURS, RETRY_PREFIX)))
    story = {
        "__dlq.errors.topic": record.topic,
        "__dlq.errors.partition": str(record.partition),
        "__dlq.errors.offset": str(record.offset),
        "__dlq.errors.group": group,
        "__dlq.errors.message": str(letter.error)[:MESSAGE_MAX],
        "seckill-dlq-exception": type(letter.error).__name__,
        REASON_HEADER: letter.reason.value,
        "seckill-dlq-attempts": str(letter.attempts),
        "seckill-dlq-first-failed-ms": str(letter.first_failed_ms),
        "seckill-dlq-last-failed-ms": str(now_ms),
        REPLAYS_HEADER: str(replays_of(record)),
    }
    return (*kept, *((name, value.encode()) for name, value in story.items()))


def _without_its_own(headers: Headers) -> Headers:
    """A letter's headers without those that its record brought along, which may be what is too large. What leads to the
    row of a replayed letter stays.
    """
    places = {
        name: (name, value)
        for name, value in headers
        if name in (ORIGIN_HEADER, REPLAY_OF_HEADER) and len(value or b"") <= PLACE_BYTES_MAX
    }
    return (*places.values(), *(header for header in headers if header[0].startswith(_OURS)))


class DeadLetters:
    """The dead-letter topic, as its writer sees it."""

    def __init__(self, publisher: Publisher, *, topic: str, group: str) -> None:
        self._publisher = publisher
        self._topic = topic
        self._group = group

    async def bury(self, record: Record, letter: Letter) -> None:
        """Writes key and value untouched. Raises PublishUnknown; writing twice is harmless, dropping is not.

        When the topic takes smaller records than the one that it came from, the letter only says where the record is:
        a partition must not stand still for it.
        """
        await self._publisher.check()  # what is sent while Kafka is down arrives later, once for each repetition
        headers = letter_headers(record, letter, group=self._group, now_ms=int(time.time() * 1000))
        value = b"" if record.key is None and record.value is None else record.value  # the client takes no such record
        reach(CrashPoint.BURYING)
        try:
            await self._publisher.send(self._topic, key=record.key, value=value, headers=headers)
        except RecordTooLarge as error:
            log.warning("letter_without_its_record", where=origin(record), error=str(error))
            left = (VALUE_LEFT_HEADER, str(error.size_bytes).encode())
            await self._publisher.send(self._topic, key=None, value=b"", headers=(*_without_its_own(headers), left))
        reach(CrashPoint.BURIED)
