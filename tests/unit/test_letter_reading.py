"""What a record of the dead-letter topic tells, whoever wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.conflicts import Conflicts
from seckill.admission.ledger import Ledger
from seckill.dlq.index import story_values
from seckill.dlq.reading import FoundLetter, found_letter, replay_headers
from seckill.domain.errors import BranchFailed
from seckill.domain.order import Order, derived_order_id
from seckill.domain.reasons import DeadLetterReason
from seckill.messaging.dead_letters import DeadLetters, Letter, letter_headers
from seckill.messaging.envelope import Record, decode, encode
from seckill.messaging.letters import letter as letters

ORDER = Order(derived_order_id(7, "x", at_ms=1), 3, 42, 7, 2, 1_600_000_000_000, 5)
RECORD = Record("orders", 2, 11, 1_700_000_000_000, b"key", encode(ORDER), (("trace", b"t"),))
LETTER = Letter(DeadLetterReason.BRANCH_FAILED, BranchFailed("p/M", "INTERNAL", "broken"), 4, 1_700_000_000_500)
OURS = ("__dlq.errors.", "seckill-dlq-", "seckill-retry-", "kafka_dlt-")


def letter_of(record: Record, letter: Letter = LETTER, *, at: int = 1) -> Record:
    """The record as the worker sets it aside."""
    headers = letter_headers(record, letter, group="g", now_ms=1_700_000_000_900)
    return Record("orders-dlt", 0, at, 1_700_000_000_950, record.key, record.value, headers)


def test_our_own_letter_tells_everything() -> None:
    """Where it came from, how often and when it failed, and why."""
    found = found_letter(letter_of(RECORD))
    assert (str(found.record), str(found.arrived), str(found.letter)) == (
        "orders/2/11",
        "orders/2/11",
        "orders-dlt/0/1",
    )
    assert (found.reason, found.exception) == (DeadLetterReason.BRANCH_FAILED, "BranchFailed")
    assert (found.first_failed_ms, found.last_failed_ms) == (1_700_000_000_500, 1_700_000_000_900)
    assert (found.attempts, found.replays, found.of, found.arrived_ms) == (4, 0, None, RECORD.timestamp_ms)
    assert (found.order, found.subject) == (ORDER, ORDER.order_id)


def test_a_replayed_record_comes_back_to_the_row_of_its_letter() -> None:
    """Of bytes that hold no order as well: they arrive at another place, and say which letter they came from."""
    unreadable = replace(RECORD, value=b"{")
    first = letter_of(unreadable)
    subject = found_letter(first).subject
    assert subject == "orders/2/11"
    headers = replay_headers(first, subject=subject, replays=3)
    assert not [name for name, _ in headers if name.startswith(OURS) and name != "seckill-dlq-replays"]
    assert ("trace", b"t") in headers
    published = Record("orders", 1, 90, 1_800_000_000_000, b"key", b"{", headers)
    again = found_letter(letter_of(published, at=7))
    assert (again.of, str(again.arrived), again.replays, str(again.record)) == (subject, subject, 3, "orders/1/90")


def test_a_replayed_array_has_the_same_orders() -> None:
    """The first arrival is kept as it was told, so ids are derived again, not anew."""
    array = replace(RECORD, value=msgspec.json.encode([{"uid": 1, "pid": 7}]))
    letter = letter_of(array)
    published = Record("orders", 1, 90, 1, None, array.value, replay_headers(letter, subject="s", replays=1))
    assert decode(published) == decode(letter) == decode(array)


def test_an_impostor_owns_no_order() -> None:
    """Its letter is kept under where it arrived, for the order's own letter has the order's id."""
    found = found_letter(letter_of(RECORD, replace(LETTER, reason=DeadLetterReason.ID_REUSED)))
    assert (found.order, found.claims, found.subject) == (None, ORDER.order_id, "orders/2/11")


class Drawer(DeadLetters):
    """Letters as they would be written."""

    def __init__(self) -> None:
        self.letters: list[Record] = []

    async def bury(self, record: Record, letter: Letter) -> None:
        self.letters.append(letter_of(record, letter, at=len(self.letters)))


class NoLedger(Ledger):
    def __init__(self) -> None:
        """Holds nothing."""

    async def park(self, orders: Sequence[Order]) -> int:
        return len(orders)


async def test_a_ledger_entry_has_one_letter() -> None:
    """Whoever sets it aside may die and do it again: both letters have one subject, another entry's has another."""
    drawer = Drawer()
    other = replace(ORDER, order_id=derived_order_id(7, "y", at_ms=1))
    await Conflicts(NoLedger(), drawer, topic="orders").set_aside([ORDER, ORDER, other])
    first, again, others = [found_letter(each) for each in drawer.letters]
    assert first.subject == again.subject != others.subject
    assert (first.impostor, first.claims) == (True, ORDER.order_id)
    assert str(again.record) == "orders-dlt/0/1"


def test_springs_headers_are_read() -> None:
    """Its numbers are big-endian, its cause names the exception, and derived ids are those of the original record."""
    array = msgspec.json.encode([{"uid": 1, "pid": 7}])
    headers = {
        "kafka_dlt-original-topic": b"orders",
        "kafka_dlt-original-partition": (2).to_bytes(4, "big"),
        "kafka_dlt-original-offset": (11).to_bytes(8, "big"),
        "kafka_dlt-original-timestamp": (1_700_000_000_000).to_bytes(8, "big"),
        "kafka_dlt-exception-fqcn": b"org.springframework.kafka.listener.ListenerExecutionFailedException",
        "kafka_dlt-exception-message": b"no stock",
    }
    record = Record("orders-dlt", 0, 5, 1_900_000_000_000, None, array, tuple(headers.items()))
    found = found_letter(record)
    assert (found.reason, str(found.record), found.error) == (DeadLetterReason.FOREIGN, "orders/2/11", "no stock")
    assert found.order == decode(Record("orders", 2, 11, 1_700_000_000_000, None, array))[0]
    assert found.exception.endswith("ListenerExecutionFailedException")


def test_kips_headers_are_read_without_ours() -> None:
    """A broker's own dead letter tells where it came from, and no reason that is known here."""
    headers = (("__dlq.errors.topic", b"orders"), ("__dlq.errors.partition", b"2"), ("__dlq.errors.offset", b"11"))
    found = found_letter(Record("orders-dlt", 0, 5, 17, None, b"?", headers))
    assert (found.reason, str(found.arrived), found.last_failed_ms) == (DeadLetterReason.FOREIGN, "orders/2/11", 17)


NAMES = st.sampled_from(
    ["seckill-origin", "seckill-replay-of", "seckill-dlq-reason", "seckill-dlq-attempts", "seckill-dlq-replays"]
    + ["seckill-dlq-first-failed-ms", "seckill-dlq-last-failed-ms", "seckill-dlq-exception", "seckill-dlq-value-left"]
    + [f"__dlq.errors.{name}" for name in ("topic", "partition", "offset", "message")]
    + [f"kafka_dlt-original-{name}" for name in ("topic", "partition", "offset", "timestamp")]
    + ["kafka_dlt-exception-fqcn", "kafka_dlt-exception-message"]
)
NUMBERS = st.integers(0, 10**22).map(lambda number: str(number).encode())
VALUES = st.none() | st.binary(max_size=12) | NUMBERS | st.sampled_from([b"a/1/2/3", b"a/9999999999/1", b"a" * 2_000])


@given(
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=8),
    value=st.none() | st.binary(max_size=30) | st.just(encode(ORDER)) | st.just(b'[{"uid":1,"pid":7}]'),
)
def test_any_record_is_a_letter(headers: list[tuple[str, bytes | None]], value: bytes | None) -> None:
    """Whatever somebody writes to the topic, it can be read, and fits the columns of the index."""
    found = found_letter(Record("orders-dlt", 0, 5, -1, None, value, tuple(headers)))
    fits(found)
    replay_headers(Record("orders-dlt", 0, 5, -1, None, value, tuple(headers)), subject="s", replays=1)


def fits(found: FoundLetter) -> None:
    for name, value in (story_values(found) | {"subject": found.subject}).items():
        length = getattr(letters.c[name].type, "length", None)
        assert not isinstance(value, str) or length is None or len(value) <= length, name
        assert not isinstance(value, int) or -(2**63) <= value < 2**63, name
    for name in ("subject", "record_topic"):
        text = {"subject": found.subject, "record_topic": found.record.topic}[name]
        assert text.isascii(), name
    assert max(found.attempts, found.replays, found.record.partition) < 2**31


@pytest.mark.parametrize("reason", list(DeadLetterReason))
def test_every_reason_is_read_back(reason: DeadLetterReason) -> None:
    """What the worker writes is what the index says."""
    assert found_letter(letter_of(RECORD, replace(LETTER, reason=reason))).reason is reason
