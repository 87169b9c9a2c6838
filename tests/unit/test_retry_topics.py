"""Retry topics: what is written into them, until when it waits there, and who is tried together afterwards."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from seckill.domain.order import Order, derived_order_id
from seckill.messaging.due_gate import Seen, split_due
from seckill.messaging.envelope import ORIGIN_HEADER, Record, decode, encode, origin
from seckill.messaging.retry_topics import (
    NUMBER_DIGITS_MAX,
    OTHER_HEADERS_BYTES_MAX,
    RetryStory,
    RetryTier,
    number_of,
    retry_record,
    retry_story,
    retry_tiers,
    tier_of,
    waits_until_ms,
)
from seckill.settings import KafkaSettings, RetrySettings

TIER = RetryTier(1, "orders-retry-1", 1_000)
ORDER = Order(derived_order_id(7, "x", at_ms=1), 4, 100, 7, 1, 1_000, 12)
NOW_MS = 1_700_000_000_000
STORY = RetryStory(attempts=6, first_failed_ms=NOW_MS - 9, due_ms=NOW_MS + 1_050, cause="ProductUnavailable: down")
RECORD = Record("orders", 2, 17, NOW_MS, b"key", b"\xff", headers=(("trace", b"abc"), ("seckill-dlq-replays", b"1")))


def written(record: Record = RECORD, story: RetryStory = STORY) -> Record:
    key, value, headers = retry_record(record, ORDER, TIER, story)
    return Record(TIER.topic, 0, 5, NOW_MS, key, value, headers)


def test_tiers_are_named_after_the_topic_and_numbered() -> None:
    """One for each delay; without delays there are none."""
    kafka = KafkaSettings(topic="orders")
    tiers = retry_tiers(kafka, RetrySettings(topic_delays_ms=(5, 9)))
    assert tiers == (RetryTier(0, "orders-retry-0", 5), RetryTier(1, "orders-retry-1", 9))
    assert tier_of("orders-retry-1", tiers) == tiers[1]
    assert tier_of("orders", tiers) is None
    assert retry_tiers(kafka, RetrySettings(topic_delays_ms=())) == ()


def test_a_retry_record_holds_the_order_as_it_is_known_and_its_story() -> None:
    """The order with its sale and number, the first arrival, and what others wrote beside it."""
    record = written()
    assert decode(record) == [ORDER]
    assert record.key == ORDER.order_id.encode()
    assert retry_story(record) == STORY
    assert origin(record) == f"orders/2/17/{NOW_MS}"
    headers = dict(record.headers)
    assert (headers["trace"], headers["seckill-dlq-replays"], headers["seckill-retry-tier"]) == (b"abc", b"1", b"1")


def test_the_next_tier_replaces_the_story_and_keeps_the_origin() -> None:
    """Each header once, and the place of the first arrival."""
    twice = written(written(), replace(STORY, attempts=9))
    names = [name for name, _ in twice.headers]
    assert len(names) == len(set(names))
    assert (retry_story(twice).attempts, origin(twice)) == (9, f"orders/2/17/{NOW_MS}")


def test_headers_that_no_topic_may_take_stay_behind() -> None:
    """Whoever wrote them: a record that cannot be put off would hold up its partition for ever."""
    large = (("trace", b"x" * OTHER_HEADERS_BYTES_MAX), ("seckill-dlq-replays", b"1"), ("seckill-x", b"x" * 900_000))
    headers = dict(written(replace(RECORD, headers=large)).headers)
    assert {"seckill-dlq-replays", ORIGIN_HEADER, "seckill-retry-due-ms"} <= headers.keys()
    assert sum(len(name) + len(value or b"") for name, value in headers.items()) < 1_000


@pytest.mark.parametrize(
    "many",
    [
        tuple((f"seckill-{number}", b"x" * 100) for number in range(10_000)),
        (("seckill-" + "x" * 900_000, b""),),
        (("seckill-dlq-replays", b"1" * 400),) * 10_000,
        (("seckill-replay-of", b"x" * 900_000),),
    ],
    ids=["many", "a long name", "one again and again", "a long value of ours"],
)
def test_a_record_can_always_be_put_off(many: tuple[tuple[str, bytes], ...]) -> None:
    """However many headers there are, whatever they are called, and how often: what is needed comes along, once."""
    headers = written(replace(RECORD, headers=many)).headers
    assert len(headers) <= 8
    assert sum(len(name) + len(value or b"") for name, value in headers) < 1_500
    assert ORIGIN_HEADER in dict(headers)


def test_a_record_without_a_story_has_never_failed() -> None:
    """Headers that are missing, or that hold no number, count as nothing."""
    assert retry_story(RECORD) == RetryStory()
    odd = (
        ("seckill-retry-attempts", b"-3"),
        ("seckill-retry-due-ms", b"9" * 40),
        ("seckill-retry-first-failed-ms", None),
    )
    assert retry_story(replace(RECORD, headers=odd)) == RetryStory()


def test_a_number_in_a_header_is_a_time_that_a_calendar_has() -> None:
    """People are shown it as one."""
    assert number_of(b"9" * NUMBER_DIGITS_MAX) == 10**NUMBER_DIGITS_MAX - 1
    assert datetime.fromtimestamp(number_of(b"9" * NUMBER_DIGITS_MAX) / 1_000, tz=UTC).year < 9_999
    assert number_of(b"9" * 15) == 0


@pytest.mark.parametrize(
    ("due_ms", "until_ms"),
    [(NOW_MS + 1_050, NOW_MS + 1_050), (NOW_MS + 99_000, NOW_MS + 1_200), (0, 0)],
    ids=["as the header says", "never much longer than the tier's delay", "no header: at once"],
)
def test_until_when_a_record_waits(due_ms: int, until_ms: int) -> None:
    """A header of a clock that was wrong, or of somebody else, holds up nobody."""
    assert waits_until_ms(written(story=replace(STORY, due_ms=due_ms)), TIER) == until_ms


def test_records_are_due_up_to_the_first_that_waits() -> None:
    """What comes after it waits with it: records of a partition keep their order."""
    records = [written(story=replace(STORY, due_ms=NOW_MS + wait)) for wait in (-5, 0, 300, -5)]
    assert split_due(records, TIER, Seen(), now_ms=NOW_MS) == (2, NOW_MS + 300)
    assert split_due(records, TIER, Seen(), now_ms=NOW_MS + 300) == (4, None)
    assert split_due([], TIER, Seen(), now_ms=NOW_MS) == (0, None)


def test_a_writer_whose_clock_is_ahead_holds_up_nobody() -> None:
    """From the moment in which it was first seen a record waits no longer than its tier makes it, whoever stamped it;
    what was seen behind it need not wait as long once more.
    """
    ahead_ms = NOW_MS + 3_600_000
    wrong = written(story=replace(STORY, due_ms=ahead_ms + 1_000))
    records = [replace(wrong, offset=offset, timestamp_ms=ahead_ms) for offset in (5, 6, 7)]
    seen = Seen()
    seen.note(6, now_ms=NOW_MS)
    until_ms = NOW_MS + 1_200
    assert split_due(records[:2], TIER, seen, now_ms=NOW_MS) == (0, until_ms)
    seen.note(7, now_ms=until_ms)
    assert split_due(records, TIER, seen, now_ms=until_ms) == (2, until_ms + 1_200)
    seen.passed(7)
    assert split_due(records[2:], TIER, seen, now_ms=until_ms + 1_200) == (1, None)


def test_encoding_keeps_an_order_without_a_sale() -> None:
    """One that came past the front and was never admitted is put off as it came."""
    past_front = replace(ORDER, sale_id=0, admission_number=None)
    _, value, _ = retry_record(RECORD, past_front, TIER, STORY)
    assert value == encode(past_front)
