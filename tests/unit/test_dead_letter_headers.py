"""What a dead letter says about itself."""

from __future__ import annotations

from dataclasses import replace

from seckill.domain.errors import RecordTooLarge
from seckill.domain.reasons import DeadLetterReason
from seckill.messaging.dead_letters import DeadLetters, Letter, letter_headers
from seckill.messaging.envelope import ORIGIN_HEADER, Headers, Record
from seckill.messaging.publisher import Publisher

RECORD = Record("seckill-topic", 2, 17, 1_700_000_000_000, b"key", b"\xff\x00", headers=(("trace", b"abc"),))
LETTER = Letter(DeadLetterReason.RETRIES_EXHAUSTED, TimeoutError("x" * 5_000), attempts=8, first_failed_ms=111)


def test_a_letter_tells_where_it_comes_from_and_why() -> None:
    """The record's own headers stay; where it was, what failed, how often and when stand beside them."""
    headers = dict(letter_headers(RECORD, LETTER, group="seckill-group", now_ms=222))
    assert headers["trace"] == b"abc"
    assert headers["__dlq.errors.topic"] == b"seckill-topic"
    assert headers["__dlq.errors.partition"] == b"2"
    assert headers["__dlq.errors.offset"] == b"17"
    assert headers["__dlq.errors.group"] == b"seckill-group"
    assert len(headers["__dlq.errors.message"]) == 1_000
    assert headers["seckill-dlq-exception"] == b"TimeoutError"
    assert headers["seckill-dlq-reason"] == b"RETRIES_EXHAUSTED"
    assert headers["seckill-dlq-attempts"] == b"8"
    assert headers["seckill-dlq-first-failed-ms"] == b"111"
    assert headers["seckill-dlq-last-failed-ms"] == b"222"
    assert headers[ORIGIN_HEADER] == b"seckill-topic/2/17/1700000000000"


def test_a_second_letter_replaces_the_story_of_the_first() -> None:
    """A record that is buried again carries each header once, with the newest story and its first origin."""
    once = letter_headers(RECORD, LETTER, group="g", now_ms=222)
    moved = replace(RECORD, topic="other", offset=99, headers=once)
    twice = letter_headers(moved, LETTER, group="g", now_ms=333)
    names = [name for name, _ in twice]
    assert len(names) == len(set(names))
    assert dict(twice)["seckill-dlq-last-failed-ms"] == b"333"
    assert dict(twice)[ORIGIN_HEADER] == b"seckill-topic/2/17/1700000000000"


def test_a_letter_tells_how_often_its_record_was_replayed() -> None:
    """Who replays says it in a header, which the next letter keeps; nobody else's number counts."""
    for told, number in ((b"2", b"2"), (b"-1", b"0"), (b"x", b"0"), (None, b"0")):
        replayed = replace(RECORD, headers=(("seckill-dlq-replays", told), ("seckill-replay-of", b"7-1")))
        headers = letter_headers(replayed, LETTER, group="g", now_ms=222)
        assert [value for name, value in headers if name == "seckill-dlq-replays"] == [number]
        assert dict(headers)["seckill-replay-of"] == b"7-1"


def test_a_letter_tells_the_story_of_its_retries_once() -> None:
    """What a retry record says of itself is part of the letter's own attempts and first failure."""
    waited = tuple(
        (f"seckill-retry-{name}", b"1") for name in ("tier", "attempts", "first-failed-ms", "due-ms", "cause")
    )
    names = {name for name, _ in letter_headers(replace(RECORD, headers=waited), LETTER, group="g", now_ms=222)}
    assert not [name for name in names if name.startswith("seckill-retry-")]


class SmallTopic(Publisher):
    """Takes no values."""

    def __init__(self) -> None:
        self.headers: list[dict[str, bytes | None]] = []

    async def check(self) -> None:
        """It answers."""

    async def send(self, topic: str, *, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        if value:
            raise RecordTooLarge(topic, len(value))
        self.headers.append(dict(headers))


async def test_a_letter_without_its_record_still_leads_to_its_row() -> None:
    """Of what the record brought along its first arrival and the replayed letter's subject stay, if they are short."""
    topic = SmallTopic()
    for origin in (b"orders/0/1/2", b"x" * 501):
        own = ((ORIGIN_HEADER, origin), ("seckill-replay-of", b"7-1"), ("trace", b"abc"))
        await DeadLetters(topic, topic="dlt", group="g").bury(replace(RECORD, headers=own), LETTER)
    kept, cut = topic.headers
    assert (kept[ORIGIN_HEADER], kept["seckill-replay-of"]) == (b"orders/0/1/2", b"7-1")
    assert kept["seckill-dlq-value-left"] == b"2"
    assert "trace" not in kept
    assert ORIGIN_HEADER not in cut
