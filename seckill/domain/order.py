"""The order, its identity, and the sale that it belongs to."""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass
from typing import NewType

OrderId = NewType("OrderId", str)
"""`<product_id>-<uuid as 32 lower-case hex>`."""

MAX_ID = 2**63 - 1
"""Largest product, user and sale id, and the largest quantity: a signed 64-bit integer."""

MAX_KEY_LENGTH = 128
"""Longest idempotency key, gid or change id, in characters."""

_ORDER_ID = re.compile(r"([1-9][0-9]{0,18})-([0-9a-f]{32})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Order:
    """One buyer's order of one product in one sale: the contents of one Kafka record.

    `admission_number` is the sale's running number at admission; None means that the record was published past the
    front (directly, or in the first article's form) and is admitted by the worker.
    """

    order_id: OrderId
    sale_id: int
    user_id: int
    product_id: int
    quantity: int
    admitted_at_ms: int
    admission_number: int | None = None

    @property
    def key(self) -> bytes:
        """The UUID's 16 bytes: the order's key in SQL and on the wire between services."""
        return order_key(self.order_id)


@dataclass(frozen=True, slots=True)
class NewSale:
    """A sale to be made. `stock` is in units, the window in milliseconds since 1970."""

    product_id: int
    name: str
    starts_at_ms: int
    ends_at_ms: int
    per_user_limit: int
    price_cents: int
    stock: int


@dataclass(frozen=True, slots=True)
class Sale:
    """A sale as its row in the product database says. Always `stock + frozen + sold == initial`."""

    sale_id: int
    product_id: int
    name: str
    starts_at_ms: int
    ends_at_ms: int
    per_user_limit: int
    price_cents: int
    state: str  # open | paused | closed
    initial: int
    stock: int
    frozen: int
    sold: int
    created_at_ms: int


def order_id_from_key(product_id: int, key: bytes) -> OrderId:
    return OrderId(f"{product_id}-{key.hex()}")


def order_key(order_id: str) -> bytes:
    return bytes.fromhex(order_id.rpartition("-")[2])


def parse_order_id(text: str) -> tuple[int, bytes]:
    """Product id and UUID bytes of an order id. Raises ValueError for anything else."""
    match = _ORDER_ID.fullmatch(text)
    if match is None or int(match[1]) > MAX_ID:
        raise ValueError(f"not an order id: {text[:80]!r} (expected <product_id>-<32 lower-case hex digits>)")
    return int(match[1]), bytes.fromhex(match[2])


def derived_order_id(product_id: int, *parts: str | int | bytes, at_ms: int) -> OrderId:
    """An id that the same parts always give: a UUIDv8 (RFC 9562) of SHA-256, its time part `at_ms`.

    The time part keeps rows of one sale together in the primary key, as with UUIDv7. The product is hashed as well,
    because in SQL the UUID alone is the key.
    """
    digest = hashlib.sha256()
    for part in (product_id, *parts):
        raw = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(raw).to_bytes(4, "big") + raw)
    value = bytearray((at_ms & (2**48 - 1)).to_bytes(6, "big") + digest.digest()[:10])
    value[6] = (value[6] & 0x0F) | 0x80
    value[8] = (value[8] & 0x3F) | 0x80
    return order_id_from_key(product_id, uuid.UUID(bytes=bytes(value)).bytes)
