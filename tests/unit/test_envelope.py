"""Records and orders: what is read, what is refused, and what the refusal names."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seckill.domain.errors import InvalidOrder, UnreadableRecord
from seckill.domain.order import MAX_ID, Order, OrderId, order_id_from_key
from seckill.domain.reasons import DeadLetterReason
from seckill.messaging.envelope import ORIGIN_HEADER, Record, decode, encode, with_origin

DEEP = b'{"uid":1,"pid":2,"x":' + b"[" * 100_000
HEX = "0190a5c6d2b87c3e9f00112233445566"
positive = st.integers(1, MAX_ID)


def record(value: bytes | None, **changes: object) -> Record:
    base = Record("seckill-topic", 3, 41, 1_700_000_000_123, b"k", value)
    return replace(base, **changes)  # type: ignore[arg-type]


@st.composite
def orders(draw: st.DrawFn) -> Order:
    product_id = draw(positive)
    return Order(
        order_id=order_id_from_key(product_id, draw(st.binary(min_size=16, max_size=16))),
        sale_id=draw(positive),
        user_id=draw(positive),
        product_id=product_id,
        quantity=draw(positive),
        admitted_at_ms=draw(st.integers(0, MAX_ID)),
        admission_number=draw(st.none() | st.integers(0, MAX_ID)),
    )


@given(orders())
def test_an_order_survives_its_record(order: Order) -> None:
    """Decoding what was encoded gives the same order."""
    assert decode(record(encode(order))) == [order]


@pytest.mark.parametrize(
    "raw", [b"", None, b"not json", b"\xff\xfe\x00", b'{"order_id": ', b"\x00" * 100, DEEP, b"[" + DEEP]
)
def test_bytes_that_are_no_json_are_unreadable(raw: bytes | None) -> None:
    """What is not JSON at all is told apart from JSON that is no order."""
    with pytest.raises(UnreadableRecord) as caught:
        decode(record(raw))
    assert caught.value.dead_letter_reason is DeadLetterReason.UNREADABLE


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (f'{{"order_id":"7-{HEX}","product_id":7,"quantity":1}}', "user_id"),
        (f'{{"order_id":"7-{HEX}","user_id":"5","product_id":7,"quantity":1}}', "user_id"),
        (f'{{"order_id":"7-{HEX}","user_id":5,"product_id":7,"quantity":0}}', "quantity"),
        (f'{{"order_id":"7-{HEX}","user_id":5,"product_id":7,"quantity":true}}', "quantity"),
        (f'{{"order_id":"7-{HEX}","user_id":5,"product_id":7,"quantity":{2**63}}}', "quantity"),
        (f'{{"order_id":"8-{HEX}","user_id":5,"product_id":7,"quantity":1}}', "order_id"),
        (f'{{"order_id":"7-{HEX.upper()}","user_id":5,"product_id":7,"quantity":1}}', "order_id"),
        (f'{{"order_id":"7-{HEX}","user_id":5,"product_id":7,"quantity":1,"number":3}}', "sale_id"),
        ('[{"uid":1}]', "pid"),
        ('[{"uid":1,"pid":-2}]', "pid"),
        ("[]", "record"),
        ("[" + ",".join(['{"uid":1,"pid":2}'] * 1001) + "]", "record"),
        ("5", "record"),
        ("null", "record"),
    ],
)
def test_a_refusal_names_the_field(raw: str, field: str) -> None:
    """JSON that is no order is refused, and the error says which field is wrong."""
    with pytest.raises(InvalidOrder) as caught:
        decode(record(raw.encode()))
    assert field in caught.value.field
    assert caught.value.dead_letter_reason is DeadLetterReason.INVALID_FIELD


def test_the_articles_array_is_read() -> None:
    """Each item of `[{"uid", "pid"}]` is one order of one unit, and no two of them share an id."""
    first, second = decode(record(b'[{"uid":5,"pid":7},{"uid":5,"pid":7}]'))
    assert (first.user_id, first.product_id, first.quantity, first.admission_number) == (5, 7, 1, None)
    assert first.order_id != second.order_id


def test_a_moved_record_keeps_the_ids_of_its_first_arrival() -> None:
    """A retry or replay of an array record derives the same order ids, wherever it arrives."""
    arrived = record(b'[{"uid":5,"pid":7}]')
    moved = replace(arrived, topic="other", partition=0, offset=9, timestamp_ms=5, headers=with_origin(arrived))
    moved_again = replace(moved, offset=10, headers=with_origin(moved))
    ids = [decode(each)[0].order_id for each in (arrived, moved, moved_again)]
    assert ids[0] == ids[1] == ids[2]
    assert [name for name, _ in moved_again.headers].count(ORIGIN_HEADER) == 1
    assert decode(replace(arrived, offset=42))[0].order_id != OrderId(ids[0])


@pytest.mark.parametrize(
    "header", [None, b"", b"elsewhere", b"t/0/1/-1", b"t/0/1/" + b"9" * 5_000, b"t/0/1/" + b"9" * 30, b"\xff/1"]
)
def test_no_origin_header_stops_the_reading(header: bytes | None) -> None:
    """Whatever stands in the origin's header, an array is read, its time is one, and a copy gets the same ids."""
    first = record(b'[{"uid":5,"pid":7}]', headers=((ORIGIN_HEADER, header),))
    (order,) = decode(first)
    assert 0 <= order.admitted_at_ms < 10**15
    copy = replace(first, topic="retry", offset=0, timestamp_ms=first.timestamp_ms + 5, headers=with_origin(first))
    assert decode(copy) == [order]


@pytest.mark.parametrize("timestamp_ms", [-1, None])
def test_an_array_without_a_time_keeps_its_ids(timestamp_ms: int | None) -> None:
    """A record whose producer gave no time: a copy of it, written later, has the same orders."""
    first = record(b'[{"uid":5,"pid":7}]', timestamp_ms=timestamp_ms)
    copy = replace(first, topic="retry", timestamp_ms=1_700_000_000_999, headers=with_origin(first))
    assert decode(copy) == decode(first)
