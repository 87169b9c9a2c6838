"""What the checkouts of all patterns share: where the branches are, what takes how long, what a failed call means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import grpc
import structlog

from seckill.checkout.reservations import TRANSIENT
from seckill.domain.errors import (
    BranchFailed,
    CoordinatorUnavailable,
    OrderUnavailable,
    ProductUnavailable,
    SeckillError,
    TransactionCancelled,
)
from seckill.domain.order import Order, OrderId
from seckill.domain.outcomes import Failed, Outcome, Undecided
from seckill.dtm.errors import CallFailed, Refused
from seckill.dtm.protocol import TransOptions
from seckill.wire import order_pb2

log = structlog.get_logger()

Outcomes = dict[OrderId, Outcome]


class Checkout(Protocol):
    """Carries orders through global transactions of one pattern."""

    async def run(self, orders: Sequence[Order]) -> Outcomes:
        """An outcome for each order (ids are unique among them). Raises only what nobody foresaw."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the branches are and how long things may take.

    Their starter calls branches at `…_address`; `…_branch_address` is where the coordinator finds the same branch, if
    that is another port. `batch_…` bound a group, `concurrency_max` the transactions of single orders under way.
    """

    product_address: str
    order_address: str
    try_timeout_ms: int
    submit_timeout_ms: int
    batch_max: int
    batch_bytes_max: int
    options: TransOptions
    concurrency_max: int = 16
    product_branch_address: str | None = None
    order_branch_address: str | None = None

    def product(self, method: str) -> str:
        return f"{self.product_address}/product.Product/{method}"

    def order(self, method: str) -> str:
        return f"{self.order_address}/order.Order/{method}"

    def told_product(self, method: str) -> str:
        """The same method where the coordinator finds it."""
        return f"{self.product_branch_address or self.product_address}/product.Product/{method}"

    def told_order(self, method: str) -> str:
        return f"{self.order_branch_address or self.order_address}/order.Order/{method}"

    @property
    def untimed(self) -> TransOptions:
        """The options without the time after which a transaction fails by itself."""
        return replace(self.options, timeout_to_fail_s=0)


@dataclass(frozen=True, slots=True)
class Broken:
    """A call failed. `divisible`: the group itself may be the cause, so smaller ones may pass."""

    error: SeckillError
    divisible: bool = False


def broken(
    gid: str,
    error: CallFailed,
    *,
    target: str,
    unavailable: type[ProductUnavailable | OrderUnavailable],
    coordinator: str,
) -> Broken:
    """What the failed call of a branch at `target` means, or of the coordinator at `coordinator` on the way to it.

    A branch that could not even be reached says nothing about the group.
    """
    log.warning("branch_failed", target=error.target, code=error.code.name, detail=error.detail)
    if error.target != target:  # the registration, not the branch
        return Broken(CoordinatorUnavailable(coordinator, error.detail))
    if isinstance(error, Refused):
        return Broken(TransactionCancelled(gid, error.detail))
    divisible = error.code is not grpc.StatusCode.UNAVAILABLE
    if error.code in TRANSIENT:
        return Broken(unavailable(target, f"{error.code.name} {error.detail}"), divisible)
    return Broken(BranchFailed(target, error.code.name, error.detail), divisible)


def order_item(order: Order) -> order_pb2.Item:
    """The order as the order service is told of it."""
    return order_pb2.Item(
        order_id=order.key, user_id=order.user_id, quantity=order.quantity, admitted_at_ms=order.admitted_at_ms
    )


def all_failed(orders: Sequence[Order], error: Exception) -> Outcomes:
    return {order.order_id: Failed(error) for order in orders}


def all_undecided(orders: Sequence[Order], gid: str, detail: str, cause: Exception | None) -> Outcomes:
    return {order.order_id: Undecided(gid, detail, cause) for order in orders}
