"""Cutting what waits into groups: one sale, bounded by count and by bytes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from seckill.domain.order import Order

T = TypeVar("T")

ITEM_BYTES_MAX = 64
"""Most bytes of one order in a branch's payload: 18 for the id, three integers of at most 10 + 1, and the framing."""


def same_contents(one: Order, other: Order) -> bool:
    return (one.user_id, one.quantity, one.sale_id) == (other.user_id, other.quantity, other.sale_id)


def cut(orders: Sequence[Order], *, count_max: int, bytes_max: int) -> Iterator[list[Order]]:
    """Groups of one sale each, none above `count_max` orders or about `bytes_max` bytes of payload."""
    size = max(1, min(count_max, bytes_max // ITEM_BYTES_MAX))
    by_sale = sorted(orders, key=lambda order: (order.product_id, order.sale_id))  # stable: arrival order is kept
    for _, of_sale in groupby(by_sale, key=lambda order: (order.product_id, order.sale_id)):
        waiting = list(of_sale)
        for start in range(0, len(waiting), size):
            yield waiting[start : start + size]


def halves(group: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    middle = len(group) // 2
    return group[:middle], group[middle:]
