"""Letters as JSON: what commands print with --json and what the HTTP API answers. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from seckill.dlq.model import Action, Considered, Done, Letter, Stats, Story
from seckill.messaging.envelope import Record

NUMBER_BYTES = (4, 8)
"""Sizes of the binary numbers that other producers write into headers, big-endian."""


def letter_document(letter: Letter) -> dict[str, Any]:
    return asdict(letter) | {"looping": letter.looping}


def story_document(story: Story) -> dict[str, Any]:
    """The letter, its record as the topic holds it (null: the topic has it no more), and what happened."""
    return {
        "letter": letter_document(story.letter),
        "record": None if story.record is None else record_document(story.record),
        "actions": [action_document(action) for action in story.actions],
        "timeline": [asdict(event) for event in story.events],
    }


def record_document(record: Record) -> dict[str, Any]:
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "key": bytes_document(record.key),
        "value": bytes_document(record.value),
        "headers": [{"name": name, "value": header_text(value)} for name, value in record.headers],
    }


def action_document(action: Action) -> dict[str, Any]:
    return {
        "action_id": action.action_id,
        "operator": action.operator,
        "action": action.action,
        "note": action.note,
        "at_ms": action.at_ms,
        "payload": bytes_document(action.payload),
    }


def considered_document(considered: Considered) -> dict[str, Any]:
    """What would be done; `refused` is why nothing would, or empty."""
    return {
        "letter": letter_document(considered.letter),
        "refused": considered.refused,
        "payload": bytes_document(considered.payload),
    }


def done_document(done: Done) -> dict[str, Any]:
    return {"letter": letter_document(done.letter), "what": done.what}


def stats_document(stats: Stats) -> dict[str, Any]:
    def counts(found: Mapping[Any, int]) -> dict[str, int]:
        return {str(name): count for name, count in found.items()}

    return {
        "total": stats.total,
        "by_state": counts(stats.by_state),
        "by_reason": counts(stats.by_reason),
        "by_product": counts(stats.by_product),
        "oldest_ms": stats.oldest_ms,
        "last_minute": stats.last_minute,
        "looping": stats.looping,
    }


def bytes_document(value: bytes | None) -> dict[str, Any] | None:
    """Bytes that may be anything: `text` is null when they are no UTF-8, `base64` always has them all."""
    if value is None:
        return None
    return {"text": text_of(value), "base64": base64.b64encode(value).decode()}


def header_text(value: bytes | None) -> str | None:
    """A header for people: its text, or its bytes in hex, with the number that they may be."""
    if value is None:
        return None
    text = text_of(value)
    if text is not None and text.isprintable():
        return text
    number = f" ({int.from_bytes(value, signed=True)})" if len(value) in NUMBER_BYTES else ""
    return f"0x{value.hex()}{number}"


def text_of(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
