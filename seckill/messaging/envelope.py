"""Records and orders: the only place that knows a record's JSON.

One order is one record: `{"order_id", "sale_id", "user_id", "product_id", "quantity", "admitted_at_ms", "number"}`,
key = order id. The first article's array `[{"uid", "pid"}]` is read as well; its orders get ids hashed from where the
record first arrived, which a header keeps, so that a retry or replay never derives new ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from seckill.domain.errors import InvalidOrder, UnreadableRecord
from seckill.domain.order import MAX_ID, Order, OrderId, derived_order_id, parse_order_id

ORIGIN_HEADER = "seckill-origin"
"""`topic/partition/offset/timestamp_ms` of a record's first arrival."""

REPLAYS_HEADER = "seckill-dlq-replays"
"""How often the record was published again by an operator, of whom a later letter knows by it."""

REPLAY_OF_HEADER = "seckill-replay-of"
"""Of a replayed record, and of its letter when it comes back: the subject of the letter that was replayed."""

ARRAY_ORDERS_MAX = 1_000
"""Most orders that one record in the first article's form may hold."""

Headers = tuple[tuple[str, bytes | None], ...]
Positive = Annotated[int, msgspec.Meta(gt=0, le=MAX_ID)]
NotNegative = Annotated[int, msgspec.Meta(ge=0, le=MAX_ID)]

_MISSING = re.compile(r"missing required field `([^`]+)`")
_TIME = re.compile(r"/([0-9]{1,15})\Z", re.ASCII)
_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")


@dataclass(frozen=True, slots=True)
class Record:
    """A Kafka record as far as the pipeline cares."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class _OrderRecord(msgspec.Struct, forbid_unknown_fields=False):
    order_id: str
    user_id: Positive
    product_id: Positive
    quantity: Positive
    admitted_at_ms: NotNegative = 0
    sale_id: NotNegative = 0  # 0: the product's current sale
    number: NotNegative | None = None


class _ArrayItem(msgspec.Struct):
    uid: Positive
    pid: Positive


_decode_order = msgspec.json.Decoder(_OrderRecord).decode
_decode_array = msgspec.json.Decoder(list[_ArrayItem]).decode
_encode = msgspec.json.Encoder().encode


def encode(order: Order) -> bytes:
    return _encode(
        _OrderRecord(
            order_id=order.order_id,
            user_id=order.user_id,
            product_id=order.product_id,
            quantity=order.quantity,
            admitted_at_ms=order.admitted_at_ms,
            sale_id=order.sale_id,
            number=order.admission_number,
        )
    )


def decode(record: Record) -> list[Order]:
    """The orders of a record. Raises UnreadableRecord, or InvalidOrder naming the field."""
    raw = record.value
    if not raw:
        raise UnreadableRecord("the record has no value")
    try:
        if raw.lstrip()[:1] == b"[":
            return _array_orders(record, _decode_array(raw))
        return [_order(_decode_order(raw))]
    except msgspec.ValidationError as error:
        raise _invalid(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # the last: nested beyond reason
        raise UnreadableRecord(str(error)) from error


def origin(record: Record) -> str:
    """Where the record first arrived: from its header, else from itself."""
    for name, value in record.headers:
        if name == ORIGIN_HEADER and value:
            return value.decode("utf-8", errors="replace")
    return f"{record.topic}/{record.partition}/{record.offset}/{record.timestamp_ms}"


def with_origin(record: Record) -> Headers:
    """The record's headers, with its origin among them."""
    kept = tuple(header for header in record.headers if header[0] != ORIGIN_HEADER)
    return (*kept, (ORIGIN_HEADER, origin(record).encode()))


def _order(fields: _OrderRecord) -> Order:
    try:
        product_id, _ = parse_order_id(fields.order_id)
    except ValueError as error:
        raise InvalidOrder("order_id", str(error)) from error
    if product_id != fields.product_id:
        raise InvalidOrder("order_id", f"names product {product_id}, the record {fields.product_id}")
    if fields.number is not None and fields.sale_id == 0:
        raise InvalidOrder("sale_id", "an admitted order names its sale")
    return Order(
        order_id=OrderId(fields.order_id),
        sale_id=fields.sale_id,
        user_id=fields.user_id,
        product_id=fields.product_id,
        quantity=fields.quantity,
        admitted_at_ms=fields.admitted_at_ms,
        admission_number=fields.number,
    )


def _array_orders(record: Record, items: Sequence[_ArrayItem]) -> list[Order]:
    if not items or len(items) > ARRAY_ORDERS_MAX:
        raise InvalidOrder("record", f"holds {len(items)} orders (1 to {ARRAY_ORDERS_MAX} are allowed)")
    first_arrival = origin(record)
    at_ms = _origin_time_ms(first_arrival)
    return [
        Order(
            order_id=derived_order_id(item.pid, "record", first_arrival, index, item.uid, item.pid, at_ms=at_ms),
            sale_id=0,
            user_id=item.uid,
            product_id=item.pid,
            quantity=1,
            admitted_at_ms=at_ms,
        )
        for index, item in enumerate(items)
    ]


def _origin_time_ms(first_arrival: str) -> int:
    """0 when the origin tells no time. Never the record's own: a copy of the record has another one."""
    match = _TIME.search(first_arrival)
    return int(match[1]) if match else 0


def _invalid(error: msgspec.ValidationError) -> InvalidOrder:
    """The library puts the path into its message; it is shown to people, nothing decides by it."""
    message = str(error)
    path = ""
    if match := _PATH.search(message):
        path, message = match["path"], message[: match.start()]
    if missing := _MISSING.search(message):
        return InvalidOrder(f"{path}.{missing[1]}".lstrip("."), "is missing")
    return InvalidOrder(path or "record", message)
