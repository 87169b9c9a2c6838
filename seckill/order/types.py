"""What the order service works on: plain frozen values, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class OrderState(IntEnum):
    CONFIRMED = 1
    CLOSED = 2


@dataclass(frozen=True, slots=True)
class NewOrder:
    """One order of a group. `order_id` is the UUID's 16 bytes."""

    order_id: bytes
    user_id: int
    quantity: int
    admitted_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """Orders of one sale, each order id once. `price_cents` is that of one unit."""

    product_id: int
    sale_id: int
    price_cents: int
    orders: Sequence[NewOrder]


@dataclass(frozen=True, slots=True)
class SagaOrder:
    """One order on no sale; its id is given by gid and branch. `price_cents` is that of one unit.

    `postage` and `receive_address_id` are the caller's, kept as they came.
    """

    user_id: int
    product_id: int
    quantity: int
    price_cents: int = 0
    postage: int | None = None
    receive_address_id: int | None = None


@dataclass(frozen=True, slots=True)
class StoredOrder:
    """A row of `orders`."""

    order_id: bytes
    product_id: int
    sale_id: int
    user_id: int
    quantity: int
    price_cents: int
    state: OrderState
    gid: str
    created_at_ms: int
