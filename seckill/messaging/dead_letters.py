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
from seckill.messaging.envelope import Headers, Record, origin, with_origin
from seckill.messaging.publisher import Publisher
from seckill.messaging.retry_topics import RETRY_PREFIX, number_of

log = structlog.get_logger()

MESSAGE_MAX = 1_000
"""Characters of an error's text kept in a header."""

VALUE_LEFT_HEADER = "seckill-dlq-value-left"
"""Bytes of a value that was too large for the dead-letter topic, and stayed where the letter says."""

REASON_HEADER = "seckill-dlq-reason"

REPLAYS_HEADER = "seckill-dlq-replays"
"""How often the record was published again by an operator, of whom a later letter knows by it."""

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


def letter_headers(record: Record, letter: Letter, *, group: str, now_ms: int) -> Headers:
    """The record's own headers and the story of its failure, of which earlier ones are part. Pure."""
    kept = tuple(header for header in with_origin(record) if not header[0].startswith((*_OURS, RETRY_PREFIX)))
    replays = next((value for name, value in record.headers if name == REPLAYS_HEADER), None)
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
        REPLAYS_HEADER: str(number_of(replays)),
    }
    return (*kept, *((name, value.encode()) for name, value in story.items()))


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
        headers = letter_headers(record, letter, group=self._group, now_ms=int(time.time() * 1000))
        value = b"" if record.key is None and record.value is None else record.value  # the client takes no such record
        reach(CrashPoint.BURYING)
        try:
            await self._publisher.send(self._topic, key=record.key, value=value, headers=headers)
        except RecordTooLarge as error:
            log.warning("letter_without_its_record", where=origin(record), error=str(error))
            story = tuple(header for header in headers if header[0].startswith(_OURS))
            left = (VALUE_LEFT_HEADER, str(error.size_bytes).encode())
            await self._publisher.send(self._topic, key=None, value=b"", headers=(*story, left))
        reach(CrashPoint.BURIED)
