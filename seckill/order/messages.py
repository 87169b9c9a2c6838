"""The order service's messages from and to its own types. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from seckill.domain.order import MAX_ID, derived_order_id, order_id_from_key, order_key
from seckill.dtm.protocol import BranchContext, Metadata
from seckill.dtm.tcc_branch import InvalidRequest
from seckill.order.types import Group, NewOrder, OrderState, SagaOrder, StoredOrder
from seckill.wire import order_pb2, orderclient_pb2

ITEMS_MAX = 1_000

REFUSED = "seckill-refused-bin"
"""Trailing metadata of a refused Try: a serialized CreateOrderResponse."""

REFUSED_MAX = 100
"""Most orders that one refusal names: gRPC peers drop a reply whose metadata takes more than 8 KB. A group with more
of them is refused again."""

_STATUS = {OrderState.CONFIRMED: "confirmed", OrderState.CLOSED: "closed"}


def group_of(request: order_pb2.CreateOrderRequest, context: BranchContext) -> Group:
    """The request's orders, exact repeats once; without items one order of one unit. Raises InvalidRequest."""
    product_id = in_range("pid", request.pid, low=1)
    if not request.items:
        user_id = in_range("uid", request.uid, low=1)
        key = order_key(derived_order_id(product_id, context.gid, context.branch_id, at_ms=0))
        return Group(product_id, sale_id=0, price_cents=0, orders=[NewOrder(key, user_id, quantity=1)])
    sale_id = in_range("sale_id", request.sale_id, low=1)
    price_cents = in_range("price_cents", request.price_cents, low=0)
    return Group(product_id, sale_id, price_cents, _distinct(request.items))


def group_of_one(request: order_pb2.AddOrderReq) -> Group:
    """The one order of a sale that the request's item is. Raises InvalidRequest naming the field."""
    return Group(
        in_range("productid", request.productid, low=1),
        sale_id=in_range("sale_id", request.sale_id, low=1),
        price_cents=in_range("price_cents", request.price_cents, low=0),
        orders=_distinct([request.item]),
    )


def saga_order(request: order_pb2.AddOrderReq | orderclient_pb2.CreateRequest) -> SagaOrder:
    """The one order of an action. Raises InvalidRequest naming the field.

    `Create` sells one unit at the price that the caller names; its `Status` is read by nobody, as in the article.
    """
    if isinstance(request, orderclient_pb2.CreateRequest):
        return SagaOrder(
            user_id=in_range("Uid", request.Uid, low=1),
            product_id=in_range("Pid", request.Pid, low=1),
            quantity=1,
            price_cents=in_range("Amount", request.Amount, low=0),
        )
    return SagaOrder(
        user_id=in_range("userid", request.userid, low=1),
        product_id=in_range("productid", request.productid, low=1),
        quantity=in_range("quantity", request.quantity, low=1),
        postage=in_range("postage", request.postage, low=0),
        receive_address_id=in_range("receiveAddressId", request.receiveAddressId, low=0),
    )


def in_range(field: str, value: int, *, low: int, high: int = MAX_ID) -> int:
    if not low <= value <= high:
        raise InvalidRequest(field, f"{value} is not between {low} and {high}")
    return value


def refused_metadata(refused: Mapping[bytes, str]) -> Metadata:
    named = islice(refused.items(), REFUSED_MAX)
    message = order_pb2.CreateOrderResponse(
        refused=[order_pb2.Refusal(order_id=order_id, reason=str(reason)) for order_id, reason in named]
    )
    return ((REFUSED, message.SerializeToString()),)


def order_message(order: StoredOrder) -> order_pb2.OrderItem:
    return order_pb2.OrderItem(
        id=order_id_from_key(order.product_id, order.order_id),
        user_id=order.user_id,
        product_id=order.product_id,
        quantity=order.quantity,
        sale_id=order.sale_id,
        price_cents=order.price_cents,
        status=_STATUS[order.state],
        gid=order.gid,
        create_time=order.created_at_ms // 1_000,
    )


def _distinct(items: Sequence[order_pb2.Item]) -> list[NewOrder]:
    if len(items) > ITEMS_MAX:
        raise InvalidRequest("items", f"{len(items)} orders, {ITEMS_MAX} is the most")
    orders: dict[bytes, NewOrder] = {}
    for index, item in enumerate(items):
        if len(item.order_id) != 16:
            raise InvalidRequest(f"items[{index}].order_id", f"{len(item.order_id)} bytes, an order id has 16")
        order = NewOrder(item.order_id, item.user_id, item.quantity, item.admitted_at_ms)
        first = orders.setdefault(order.order_id, order)
        if (first.user_id, first.quantity) != (order.user_id, order.quantity):
            raise InvalidRequest(f"items[{index}].order_id", f"{order.order_id.hex()} came before with other contents")
    return list(orders.values())
