"""The product service's messages from and to its own types. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from seckill.domain.order import MAX_ID, Sale
from seckill.dtm.tcc_branch import InvalidRequest
from seckill.product.decide import Group, Reservation, Wanted
from seckill.product.holds import TAKEN_BY, Hold, HoldId
from seckill.product.products import Product
from seckill.wire import product_pb2

ITEMS_MAX = 1_000
CONFIRMED_MAX = 500
ID_LENGTH = 128  # of a gid or a branch id


def group_of(
    request: product_pb2.UpdateProductStockRequest | product_pb2.RejectReservationsRequest, *, sale_id_min: int
) -> Group:
    """The request's orders, exact repeats once. Raises InvalidRequest naming the field."""
    in_range("product_id", request.product_id, low=1)
    in_range("sale_id", request.sale_id, low=sale_id_min)
    return Group(request.product_id, request.sale_id, _distinct(request.items))


def group_of_one(request: product_pb2.DecrStockRequest) -> Group:
    """The one order of a saga's request. Raises InvalidRequest naming the field."""
    product_id, sale_id = in_range("id", request.id, low=1), in_range("sale_id", request.sale_id, low=1)
    return Group(product_id, sale_id, _distinct([request.item]))


def hold_ids(request: product_pb2.ConfirmHoldsRequest) -> list[HoldId]:
    """Raises InvalidRequest naming the field."""
    if len(request.holds) > CONFIRMED_MAX:
        raise InvalidRequest("holds", f"{len(request.holds)} branches, {CONFIRMED_MAX} is the most")
    return [_hold_id(f"holds[{index}]", hold) for index, hold in enumerate(request.holds)]


def _hold_id(field: str, hold: product_pb2.HoldId) -> HoldId:
    if hold.trans_type not in TAKEN_BY:
        raise InvalidRequest(f"{field}.trans_type", f"{hold.trans_type[:45]!r} is none of {', '.join(TAKEN_BY)}")
    for name, value in (("gid", hold.gid), ("branch_id", hold.branch_id)):
        if not value or len(value) > ID_LENGTH or not value.isascii():
            raise InvalidRequest(f"{field}.{name}", f"must be 1 to {ID_LENGTH} ASCII characters")
    return HoldId(hold.trans_type, hold.branch_id, hold.gid)


def in_range(field: str, value: int, *, low: int) -> int:
    if not low <= value <= MAX_ID:
        raise InvalidRequest(field, f"{value} is not between {low} and {MAX_ID}")
    return value


def order_key(field: str, value: bytes) -> bytes:
    if len(value) != 16:
        raise InvalidRequest(field, f"{len(value)} bytes, an order id has 16")
    return value


def encode_outcomes(outcomes: Iterable[Reservation]) -> bytes:
    message = product_pb2.UpdateProductStockResponse(outcomes=[reservation_message(row) for row in outcomes])
    return message.SerializeToString()


def reservation_message(row: Reservation) -> product_pb2.Reservation:
    return product_pb2.Reservation(
        order_id=row.order_id,
        state=product_pb2.ReservationState.ValueType(row.state.value),
        gid=row.gid,
        reason=row.reason,
        sale_id=row.sale_id,
        user_id=row.user_id,
        quantity=row.quantity,
        updated_at_ms=row.updated_at_ms,
        product_id=row.product_id,
    )


def hold_message(hold: Hold) -> product_pb2.StaleHold:
    return product_pb2.StaleHold(
        gid=hold.gid,
        branch_id=hold.branch_id,
        sale_id=hold.sale_id,
        product_id=hold.product_id,
        orders=hold.orders,
        units=hold.units,
        age_ms=hold.age_ms,
        trans_type=hold.trans_type,
    )


def sale_message(sale: Sale, *, created: bool = False) -> product_pb2.Sale:
    return product_pb2.Sale(
        sale_id=sale.sale_id,
        product_id=sale.product_id,
        name=sale.name,
        starts_at_ms=sale.starts_at_ms,
        ends_at_ms=sale.ends_at_ms,
        per_user_limit=sale.per_user_limit,
        price_cents=sale.price_cents,
        state=sale.state,
        initial=sale.initial,
        stock=sale.stock,
        frozen=sale.frozen,
        sold=sale.sold,
        created_at_ms=sale.created_at_ms,
        created=created,
    )


def product_message(row: Product) -> product_pb2.ProductItem:
    return product_pb2.ProductItem(
        product_id=row.product_id,
        name=row.name,
        description=row.description,
        image_url=row.image_url,
        create_time=row.created_at_ms // 1_000,
        stock=row.stock,
        cateid=row.cateid,
        price=row.price_cents / 100,
        status=row.status,
        update_time=row.updated_at_ms // 1_000,
    )


def _distinct(items: Sequence[product_pb2.Item]) -> list[Wanted]:
    if len(items) > ITEMS_MAX:
        raise InvalidRequest("items", f"{len(items)} orders, {ITEMS_MAX} is the most")
    orders: dict[bytes, Wanted] = {}
    for index, item in enumerate(items):
        order = _wanted(index, item)
        first = orders.setdefault(order.order_id, order)
        if (first.user_id, first.quantity) != (order.user_id, order.quantity):
            raise InvalidRequest(f"items[{index}].order_id", f"{order.order_id.hex()} came before with other contents")
    return list(orders.values())


def _wanted(index: int, item: product_pb2.Item) -> Wanted:
    order_id, user_id, quantity, admitted_at_ms = item.order_id, item.user_id, item.quantity, item.admitted_at_ms
    if len(order_id) == 16 and user_id >= 1 and quantity >= 1 and admitted_at_ms >= 0:
        return Wanted(order_id, user_id, quantity, admitted_at_ms)
    order_key(f"items[{index}].order_id", order_id)
    in_range(f"items[{index}].user_id", user_id, low=1)
    in_range(f"items[{index}].quantity", quantity, low=1)
    in_range(f"items[{index}].admitted_at_ms", admitted_at_ms, low=0)
    raise AssertionError("one of the fields was out of range")
