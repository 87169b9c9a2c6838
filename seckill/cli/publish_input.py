"""Orders read from JSONL or CSV, line by line. Pure: bytes in, orders and named problems out; no line is dropped."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, BinaryIO

import msgspec

from seckill.domain.order import MAX_ID, MAX_KEY_LENGTH

LINE_BYTES_MAX = 65_536

Positive = Annotated[int, msgspec.Meta(gt=0, le=MAX_ID)]
RequestId = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_KEY_LENGTH, pattern=r"^[\x21-\x7e]*\Z")]


class InputFormat(StrEnum):
    AUTO = "auto"
    JSONL = "jsonl"
    CSV = "csv"


class InputOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One order as a line says it. The field names are those of the file's columns."""

    user_id: Positive
    product_id: Positive
    quantity: Positive = 1
    request_id: RequestId | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """`number` counts from 1, as an editor does. `order` is None when `problem` says why."""

    number: int
    order: InputOrder | None = None
    problem: str = ""


class BadHeader(ValueError):
    """The first line of a CSV does not name the columns."""


_COLUMNS = ("user_id", "product_id", "quantity", "request_id")
_decode = msgspec.json.Decoder(InputOrder).decode


def raw_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines without their end. One longer than LINE_BYTES_MAX comes cut, one byte over, so that it can be told."""
    while line := stream.readline(LINE_BYTES_MAX + 1):
        rest = line
        while not rest.endswith(b"\n") and len(rest) > LINE_BYTES_MAX:
            rest = stream.readline(LINE_BYTES_MAX + 1)
        yield line.rstrip(b"\r\n")


def guessed_format(name: str, first_line: bytes) -> InputFormat:
    """By the file's name, else by its first character: JSON objects begin with a brace."""
    suffix = name.lower().rpartition(".")[2]
    if suffix == "csv":
        return InputFormat.CSV
    if suffix in {"jsonl", "ndjson", "json"} or first_line.lstrip(b"\xef\xbb\xbf \t").startswith(b"{"):
        return InputFormat.JSONL
    return InputFormat.CSV


def read_orders(lines: Iterable[bytes], *, name: str = "-", form: InputFormat = InputFormat.AUTO) -> Iterator[Line]:
    """Every line that is not blank, as an order or as a problem. Raises BadHeader at a CSV's first line."""
    numbered = ((number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line) for number, line in _count(lines))
    present = ((number, line) for number, line in numbered if line.strip())
    first = next(present, None)
    if first is None:
        return
    if form is InputFormat.AUTO:
        form = guessed_format(name, first[1])
    if form is InputFormat.JSONL:
        yield _json_line(*first)
        yield from (_json_line(number, line) for number, line in present)
        return
    columns = _header(first[1])
    yield from (_csv_line(columns, number, line) for number, line in present)


def _count(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    return enumerate(lines, start=1)


def _json_line(number: int, raw: bytes) -> Line:
    if len(raw) > LINE_BYTES_MAX:
        return Line(number, problem=f"longer than {LINE_BYTES_MAX} bytes")
    try:
        return Line(number, _decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Line(number, problem=_problem(error))


def _header(raw: bytes) -> list[str]:
    try:
        columns = [column.strip() for column in _fields(raw)]
    except ValueError as error:
        raise BadHeader(f"the first line of a CSV names the columns: {error}") from error
    unknown = [column for column in columns if column not in _COLUMNS]
    missing = [column for column in _COLUMNS[:2] if column not in columns]
    twice = [column for column in set(columns) if columns.count(column) > 1]
    if unknown or missing or twice:
        wrong = f"unknown {unknown}" if unknown else f"missing {missing}" if missing else f"twice {twice}"
        raise BadHeader(f"the first line of a CSV names the columns, {','.join(_COLUMNS)}: {wrong}")
    return columns


def _csv_line(columns: list[str], number: int, raw: bytes) -> Line:
    if len(raw) > LINE_BYTES_MAX:
        return Line(number, problem=f"longer than {LINE_BYTES_MAX} bytes")
    try:
        fields = _fields(raw)
        if len(fields) != len(columns):
            return Line(number, problem=f"has {len(fields)} fields, the first line names {len(columns)}")
        given = {column: field.strip() for column, field in zip(columns, fields, strict=True) if field.strip()}
        return Line(number, msgspec.convert(given, InputOrder, strict=False))
    except (msgspec.ValidationError, ValueError) as error:
        return Line(number, problem=_problem(error))


def _problem(error: Exception) -> str:
    """What is wrong, the field first: msgspec has it last."""
    problem, found, field = str(error).rpartition(" - at `$.")
    return f"{field.rstrip('`')}: {problem}" if found else str(error)


def _fields(raw: bytes) -> list[str]:
    """The fields of one line of CSV. Each line stands alone, so that an open quote cannot swallow the next ones."""
    try:
        return next(csv.reader([raw.decode("utf-8")], strict=True), [])
    except csv.Error as error:
        unclosed = "unexpected end of data" in str(error)  # the module has one error type for everything
        raise ValueError("a quote is opened and not closed" if unclosed else str(error)) from error
