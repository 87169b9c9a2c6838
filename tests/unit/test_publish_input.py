"""`seckill publish`: every line of the input is an order or a named problem, and every one of them is accounted for."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seckill.cli.errors import FAILED, OK, UNREACHABLE
from seckill.cli.publish import Sent, deliver
from seckill.cli.publish_input import (
    LINE_BYTES_MAX,
    BadHeader,
    InputFormat,
    InputOrder,
    Line,
    guessed_format,
    raw_lines,
    read_orders,
)


def read(data: bytes, *, name: str = "-", form: InputFormat = InputFormat.AUTO) -> list[Line]:
    return list(read_orders(raw_lines(io.BytesIO(data)), name=name, form=form))


def test_jsonl_with_bad_lines() -> None:
    """Good lines become orders, bad ones are named with the number that an editor shows; blank ones hold nothing."""
    lines = read(
        b'\xef\xbb\xbf{"user_id": 1, "product_id": 2}\r\n'
        b"\n"
        b'{"user_id": 1, "product_id": 2, "quantity": 3, "request_id": "k"}\n'
        b"not json\n"
        b'{"user_id": 1}\n'
        b'{"user_id": 1, "product_id": 2, "quantity": 0}\n'
        b'{"user_id": "1", "product_id": 2}\n'
        b'{"user_id": 1, "product_id": 2, "quantitty": 3}\n'
        b'{"user_id": 1, "product_id": 2, "request_id": "two words"}\n'
        b'{"user_id": 9223372036854775808, "product_id": 2}\n'
        b"\xff\xfe\n"
        b"[1, 2]\n"
        b'{"user_id": 4, "product_id": 2}'
    )
    assert [line.number for line in lines] == [1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert [line.number for line in lines if line.order] == [1, 3, 13]
    assert lines[1].order == InputOrder(user_id=1, product_id=2, quantity=3, request_id="k")
    problems = {line.number: line.problem for line in lines if line.order is None}
    assert all(problems.values())
    assert "product_id" in problems[5]
    assert "quantity" in problems[6]
    assert "user_id" in problems[7]
    assert "quantitty" in problems[8]
    assert "request_id" in problems[9]


def test_csv_with_bad_lines() -> None:
    """Columns come in any order, empty cells are the defaults; an open quote does not swallow the next line."""
    lines = read(
        b"product_id,user_id,quantity,request_id\n"
        b"2,1,,\n"
        b'"2",1,"3",k1\n'
        b"2,1\n"
        b"2,1,x,\n"
        b'2,1,"3,k\n'
        b"2,-1,1,\n"
        b"\xff,1,1,\n"
        b"2,4,1,k2\n"
    )
    assert [line.number for line in lines] == [2, 3, 4, 5, 6, 7, 8, 9]
    assert [line.number for line in lines if line.order] == [2, 3, 9]
    assert lines[0].order == InputOrder(user_id=1, product_id=2)
    assert lines[1].order == InputOrder(user_id=1, product_id=2, quantity=3, request_id="k1")
    assert "2 fields" in lines[2].problem


@pytest.mark.parametrize(
    ("header", "named"),
    [
        (b"user_id,quantity", "product_id"),
        (b"user_id,product_id,colour", "colour"),
        (b"user_id,product_id,user_id", "user_id"),
        (b"7,1", "7"),
        (b'"user_id,product_id', "columns"),
    ],
)
def test_a_csv_must_name_its_columns(header: bytes, named: str) -> None:
    """Without a usable first line nothing can be read, and the user is told which column is wrong."""
    with pytest.raises(BadHeader, match=named):
        read(header + b"\n1,2,3\n", form=InputFormat.CSV)


def test_a_line_too_long_is_one_problem() -> None:
    """It is named once, held in memory only in part, and the line after it is read."""
    long = b'{"user_id": 1, "product_id": 2, "request_id": "' + b"x" * (5 * LINE_BYTES_MAX) + b'"}\n'
    lines = read(long + b'{"user_id": 1, "product_id": 2}\n')
    assert [(line.number, line.order is not None) for line in lines] == [(1, False), (2, True)]
    assert str(LINE_BYTES_MAX) in lines[0].problem


def test_nothing_in_nothing_out() -> None:
    """An empty file, or one of blank lines, holds no orders and no problems."""
    assert read(b"") == read(b"\n \n\r\n") == []


@pytest.mark.parametrize(
    ("name", "first", "form"),
    [
        ("orders.csv", b"{", InputFormat.CSV),
        ("orders.JSONL", b"user_id", InputFormat.JSONL),
        ("orders.ndjson", b"", InputFormat.JSONL),
        ("-", b'  {"user_id"', InputFormat.JSONL),
        ("-", b"user_id,product_id", InputFormat.CSV),
        ("orders.txt", b"user_id,product_id", InputFormat.CSV),
    ],
)
def test_the_format_is_guessed(name: str, first: bytes, form: InputFormat) -> None:
    """The name decides, else the first character."""
    assert guessed_format(name, first) is form


ORDERS = st.lists(
    st.builds(
        InputOrder,
        user_id=st.integers(1, 2**63 - 1),
        product_id=st.integers(1, 2**63 - 1),
        quantity=st.integers(1, 2**63 - 1),
        request_id=st.none() | st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128),
    ),
    max_size=20,
)


@given(ORDERS)
def test_both_formats_say_the_same(orders: list[InputOrder]) -> None:
    """Whatever orders a program writes with a JSON or CSV library come back as they were."""
    fields = [{name: getattr(order, name) for name in InputOrder.__struct_fields__} for order in orders]
    as_json = "".join(json.dumps(each) + "\n" for each in fields)
    table = io.StringIO()
    writer = csv.DictWriter(table, InputOrder.__struct_fields__, lineterminator="\n")
    writer.writeheader()
    writer.writerows(fields)
    assert [line.order for line in read(as_json.encode())] == orders
    assert [line.order for line in read(table.getvalue().encode(), form=InputFormat.CSV)] == orders


@given(st.binary(max_size=400), st.sampled_from([InputFormat.JSONL, InputFormat.AUTO]))
def test_no_line_disappears(data: bytes, form: InputFormat) -> None:
    """Of any bytes, each line that is not blank comes out once, as an order or with a problem."""
    expected = [number for number, line in enumerate(data.split(b"\n"), start=1) if _holds_something(number, line)]
    try:
        lines = read(data, form=form)
    except BadHeader:
        return
    header = (
        form is InputFormat.AUTO
        and expected
        and guessed_format("-", data.split(b"\n")[expected[0] - 1]) is InputFormat.CSV
    )
    assert [line.number for line in lines] == expected[bool(header) :]
    assert all((line.order is None) == bool(line.problem) for line in lines)


def _holds_something(number: int, line: bytes) -> bool:
    return bool((line.rstrip(b"\r").removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip())


# --- delivering ----------------------------------------------------------------------------------------------------


async def _lines(count: int, *, bad: frozenset[int] = frozenset()) -> AsyncIterator[Line]:
    for number in range(1, count + 1):
        yield Line(number, problem="bad") if number in bad else Line(number, InputOrder(user_id=number, product_id=1))


async def test_every_line_ends_in_the_summary() -> None:
    """Accepted, refused and malformed lines add up to all lines; what failed makes the exit code 1."""
    told: list[Sent] = []

    async def send(number: int, order: InputOrder) -> Sent:
        await asyncio.sleep(0)
        return Sent(number, "SOLD_OUT" if number % 3 == 0 else "ACCEPTED")

    summary = await deliver(_lines(30, bad=frozenset({5, 6})), send, concurrency=4, tell=told.append)
    assert (summary.lines, sum(summary.codes.values())) == (30, 30)
    assert summary.codes == {"ACCEPTED": 19, "SOLD_OUT": 9, "MALFORMED": 2}
    assert sorted(sent.line for sent in told) == list(range(1, 31))
    assert (summary.failed, summary.exit_code) == (11, FAILED)


async def test_all_accepted_is_fine() -> None:
    """Nothing refused, nothing malformed: exit code 0."""

    async def send(number: int, order: InputOrder) -> Sent:
        return Sent(number, "ACCEPTED")

    assert (await deliver(_lines(3), send, concurrency=2, tell=lambda sent: None)).exit_code == OK


async def test_concurrency_is_bounded() -> None:
    """Never more orders in flight than asked for, and as many as that."""
    flying = most = 0

    async def send(number: int, order: InputOrder) -> Sent:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.001)
        flying -= 1
        return Sent(number, "ACCEPTED")

    await deliver(_lines(50), send, concurrency=7, tell=lambda sent: None)
    assert most == 7


async def test_silence_stops_the_reading_and_says_where() -> None:
    """Once nothing answers, no further line is sent, and the first unsent one is named; exit code 3."""

    async def send(number: int, order: InputOrder) -> Sent:
        return Sent(number, "ACCEPTED" if number < 5 else "UNREACHABLE")

    told: list[Sent] = []
    summary = await deliver(_lines(1_000), send, concurrency=1, tell=told.append)
    assert summary.not_sent_from == 6
    assert [sent.line for sent in told] == [1, 2, 3, 4, 5]
    assert summary.exit_code == UNREACHABLE


async def test_cancelled_while_reading_it_tells_of_every_line_sent() -> None:
    """What is on its way when the user has enough ends first; the rest is not read, and its beginning is named."""
    on_its_way = asyncio.Event()

    async def send(number: int, order: InputOrder) -> Sent:
        on_its_way.set()
        await asyncio.sleep(0.05)
        return Sent(number, "ACCEPTED")

    told: list[Sent] = []
    publishing = asyncio.create_task(deliver(_lines(100), send, concurrency=3, tell=told.append))
    await on_its_way.wait()
    publishing.cancel()
    summary = await publishing
    assert summary.interrupted
    assert [sent.line for sent in told] == [1, 2, 3]
    assert (summary.lines, summary.not_sent_from) == (3, 4)
