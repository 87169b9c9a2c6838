"""What a record of the dead-letter topic tells: ours, KIP-1191's, Spring's, or nobody's. Pure; it never fails.

Ours follow KIP-1191 (`__dlq.errors.*`, values are text) with `seckill-dlq-*` beside them. Spring for Apache Kafka
writes `kafka_dlt-*` (`KafkaHeaders`, `DeadLetterPublishingRecoverer`); its numbers are big-endian integers. A record
that tells no reason that is known here is FOREIGN, whatever else it tells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from seckill.dlq.model import Place
from seckill.domain.errors import InvalidOrder
from seckill.domain.order import Order, OrderId
from seckill.domain.reasons import DeadLetterReason
from seckill.messaging.dead_letters import (
    MESSAGE_MAX,
    REPLAY_OF_HEADER,
    REPLAYS_HEADER,
    VALUE_LEFT_HEADER,
    reason_of,
)
from seckill.messaging.envelope import ORIGIN_HEADER, Headers, Record, decode
from seckill.messaging.retry_topics import RETRY_PREFIX, number_of

EXCEPTION_MAX = 200
"""Characters of an exception's name that are kept."""

_KIP, _SPRING, _OURS = "__dlq.errors.", "kafka_dlt-", "seckill-dlq-"
_ORIGIN = re.compile(r"([A-Za-z0-9._-]{1,249})/([0-9]{1,10})/([0-9]{1,18})(?:/([0-9]{1,15}))?", re.ASCII)
_SUBJECT = re.compile(r"[A-Za-z0-9._/-]{1,300}", re.ASCII)
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class FoundLetter:
    """A letter as the topic has it.

    `named`: the order that the record holds, if it holds exactly one. `impostor`: that has the id of another order.
    `of`: the subject of the letter that was replayed, if this came of a replay. `arrived`: where the record first
    arrived, `arrived_ms` when (0: nobody tells).
    """

    named: Order | None
    impostor: bool
    of: str | None
    arrived: Place
    arrived_ms: int
    reason: DeadLetterReason
    error: str
    exception: str
    record: Place
    letter: Place
    first_failed_ms: int
    last_failed_ms: int
    attempts: int
    replays: int

    @property
    def order(self) -> Order | None:
        """The order that ends when the letter does."""
        return None if self.impostor else self.named

    @property
    def claims(self) -> OrderId | None:
        return self.named.order_id if self.impostor and self.named is not None else None

    @property
    def subject(self) -> str:
        return self.order.order_id if self.order is not None else str(self.arrived)


def found_letter(record: Record) -> FoundLetter:
    headers = {name: value for name, value in record.headers if value}
    lies = Place(record.topic, record.partition, record.offset)
    arrival = _arrival(record, headers)
    reason = reason_of(record) or DeadLetterReason.FOREIGN
    last_failed_ms = number_of(headers.get(_OURS + "last-failed-ms")) or record.timestamp_ms
    subject = _text(headers.get(REPLAY_OF_HEADER))
    return FoundLetter(
        named=the_order(record),
        impostor=reason is DeadLetterReason.ID_REUSED,
        of=subject if _SUBJECT.fullmatch(subject) else None,
        arrived=arrival.place,
        arrived_ms=arrival.at_ms,
        reason=reason,
        error=_first(headers, _KIP + "message", _SPRING + "exception-message")[:MESSAGE_MAX],
        exception=_exception(headers),
        record=_came(record, headers),
        letter=lies,
        first_failed_ms=number_of(headers.get(_OURS + "first-failed-ms")) or last_failed_ms,
        last_failed_ms=last_failed_ms,
        attempts=min(number_of(headers.get(_OURS + "attempts")), _INT32_MAX),
        replays=min(number_of(headers.get(REPLAYS_HEADER)), _INT32_MAX),
    )


def the_order(record: Record) -> Order | None:
    """The order that the record holds; None when it holds none, or several."""
    try:
        orders = decode(at_origin(record))
    except InvalidOrder:
        return None
    return orders[0] if len(orders) == 1 else None


def at_origin(record: Record) -> Record:
    """The record with its first arrival in the header that says so, also when only Spring's headers tell it."""
    headers = {name: value for name, value in record.headers if value}
    kept = tuple(header for header in record.headers if header[0] != ORIGIN_HEADER)
    return replace(record, headers=(*kept, (ORIGIN_HEADER, _arrival(record, headers).told.encode())))


def replay_headers(record: Record, *, subject: str, replays: int) -> Headers:
    """The record's own headers without the story of its failure, and what a replay adds to them.

    `subject`: that of the letter, which the record's own letter would reopen; empty: it would be another one.
    """
    story = (_KIP, _SPRING, _OURS, RETRY_PREFIX)
    kept = tuple(
        header
        for header in at_origin(record).headers
        if not header[0].startswith(story) and header[0] != REPLAY_OF_HEADER
    )
    of = ((REPLAY_OF_HEADER, subject.encode()),) if subject else ()
    return (*kept, (REPLAYS_HEADER, str(replays).encode()), *of)


def left_behind(record: Record) -> Place | None:
    """Where the value of a letter is that was too large for the dead-letter topic; None: in the letter."""
    headers = {name: value for name, value in record.headers if value}
    return _kip_place(headers) if VALUE_LEFT_HEADER in headers else None


# --- headers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Arrival:
    """`told`: as the header has it, from which ids are derived."""

    place: Place
    at_ms: int
    told: str


def _arrival(record: Record, headers: Mapping[str, bytes]) -> _Arrival:
    text = _text(headers.get(ORIGIN_HEADER))
    told = _ORIGIN.fullmatch(text)
    if told and int(told[2]) <= _INT32_MAX:
        return _Arrival(Place(told[1], int(told[2]), int(told[3])), int(told[4] or 0), text)
    place = _came(record, headers)
    at_ms = max(0, _integer(headers.get(_SPRING + "original-timestamp"), 8) or 0)
    return _Arrival(place, at_ms, f"{place}/{at_ms}" if at_ms else str(place))


def _came(record: Record, headers: Mapping[str, bytes]) -> Place:
    """Where the record was read that failed; its own place when nobody tells."""
    return _kip_place(headers) or _spring_place(headers) or Place(record.topic, record.partition, record.offset)


def _kip_place(headers: Mapping[str, bytes]) -> Place | None:
    parts = (_text(headers.get(_KIP + name)) for name in ("topic", "partition", "offset"))
    told = _ORIGIN.fullmatch("/".join(parts))
    return Place(told[1], int(told[2]), int(told[3])) if told and int(told[2]) <= _INT32_MAX else None


def _spring_place(headers: Mapping[str, bytes]) -> Place | None:
    partition = _integer(headers.get(_SPRING + "original-partition"), 4)
    offset = _integer(headers.get(_SPRING + "original-offset"), 8)
    told = _ORIGIN.fullmatch(f"{_text(headers.get(_SPRING + 'original-topic'))}/{partition}/{offset}")
    return Place(told[1], int(told[2]), int(told[3])) if told else None


def _exception(headers: Mapping[str, bytes]) -> str:
    """Spring wraps what a listener raises: the cause tells more."""
    names = (_OURS + "exception", _SPRING + "exception-cause-fqcn", _SPRING + "exception-fqcn")
    return _first(headers, *names)[:EXCEPTION_MAX]


def _first(headers: Mapping[str, bytes], *names: str) -> str:
    return next((text for name in names if (text := _text(headers.get(name)))), "")


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", errors="replace")


def _integer(value: bytes | None, size: int) -> int | None:
    return int.from_bytes(value, "big", signed=True) if value is not None and len(value) == size else None
