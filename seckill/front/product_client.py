"""The product service as the front uses it: its messages become domain values, its statuses errors with a type."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from seckill.domain.errors import ProductUnavailable, SeckillError
from seckill.domain.order import NewSale, OrderId, Sale, parse_order_id
from seckill.domain.outcomes import OrderResult, OrderStatus
from seckill.dtm.health import NOT_SERVING_MEANS
from seckill.wire import product_pb2, product_pb2_grpc

TIMEOUT_S = 5.0

T = TypeVar("T")
Metadata = Iterable[tuple[str, str | bytes]]

UNKNOWN_SALE = "UNKNOWN_SALE"

_REFUSALS = {
    grpc.StatusCode.NOT_FOUND: UNKNOWN_SALE,
    grpc.StatusCode.FAILED_PRECONDITION: "SALE_CONFLICT",
    grpc.StatusCode.ALREADY_EXISTS: "SALE_CONFLICT",
    grpc.StatusCode.INVALID_ARGUMENT: "INVALID_REQUEST",
}

_STATUS_OF = {
    product_pb2.FROZEN: OrderStatus.PROCESSING,
    product_pb2.RELEASED: OrderStatus.PROCESSING,
    product_pb2.SOLD: OrderStatus.CONFIRMED,
    product_pb2.REJECTED: OrderStatus.REJECTED,
}


class ProductRefused(SeckillError):
    """The product service understood and refused; `code` is that of the problem document."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class SaleChange:
    """None leaves a field as it is."""

    name: str | None = None
    starts_at_ms: int | None = None
    ends_at_ms: int | None = None
    per_user_limit: int | None = None
    price_cents: int | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """`first`: this very call has made the sale's row; a repeat answers the row that is there."""

    sale: Sale
    first: bool


class ProductClient:
    """All methods raise ProductUnavailable, and ProductRefused where the service may refuse."""

    def __init__(self, channel: grpc.aio.Channel, *, address: str) -> None:
        self._address = address
        self._product: product_pb2_grpc.ProductAsyncStub = product_pb2_grpc.ProductStub(channel)
        self._sales: product_pb2_grpc.SalesAsyncStub = product_pb2_grpc.SalesStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)

    async def create_sale(self, change_id: str, new: NewSale) -> Created:
        request = product_pb2.CreateSaleRequest(
            change_id=change_id,
            product_id=new.product_id,
            name=new.name,
            starts_at_ms=new.starts_at_ms,
            ends_at_ms=new.ends_at_ms,
            per_user_limit=new.per_user_limit,
            price_cents=new.price_cents,
            stock=new.stock,
        )
        made = await self._call(self._sales.CreateSale(request, timeout=TIMEOUT_S))
        return Created(_sale(made), first=made.created)

    async def sale(self, sale_id: int) -> Sale:
        request = product_pb2.GetSaleRequest(sale_id=sale_id)
        return _sale(await self._call(self._sales.GetSale(request, timeout=TIMEOUT_S)))

    async def find_sale(self, sale_id: int) -> Sale | None:
        """None: the database has no such sale."""
        try:
            return await self.sale(sale_id)
        except ProductRefused as error:
            if error.code != UNKNOWN_SALE:
                raise
            return None

    async def list_sales(self, *, product_id: int = 0, state: str = "", before_sale_id: int = 0) -> list[Sale]:
        """Newest first, at most 1,000."""
        request = product_pb2.ListSalesRequest(product_id=product_id, state=state, before_sale_id=before_sale_id)
        reply = await self._call(self._sales.ListSales(request, timeout=TIMEOUT_S))
        return [_sale(message) for message in reply.sales]

    async def all_sales(self, *, product_id: int = 0, state: str = "") -> list[Sale]:
        """The same without a bound, page by page."""
        found: list[Sale] = []
        while page := await self.list_sales(
            product_id=product_id, state=state, before_sale_id=found[-1].sale_id if found else 0
        ):
            found += page
        return found

    async def is_on_offer(self, product_id: int, sale_id: int = 0) -> bool:
        """Whether that sale, or with 0 any sale of the product, is open or paused."""
        sales = await self.all_sales(product_id=product_id)
        return any(sale.state != "closed" and sale_id in (0, sale.sale_id) for sale in sales)

    async def update_sale(self, change_id: str, sale_id: int, change: SaleChange, *, stock_delta: int) -> Sale:
        request = product_pb2.UpdateSaleRequest(
            change_id=change_id,
            sale_id=sale_id,
            name=change.name,
            starts_at_ms=change.starts_at_ms,
            ends_at_ms=change.ends_at_ms,
            per_user_limit=change.per_user_limit,
            price_cents=change.price_cents,
            stock_delta=stock_delta,
        )
        return _sale(await self._call(self._sales.UpdateSale(request, timeout=TIMEOUT_S)))

    async def set_state(self, sale_id: int, state: str) -> Sale:
        request = product_pb2.SetSaleStateRequest(sale_id=sale_id, state=state)
        return _sale(await self._call(self._sales.SetSaleState(request, timeout=TIMEOUT_S)))

    async def sale_changes(self, sale_id: int) -> frozenset[str]:
        """Ids of the changes that the sale's row has taken in."""
        request = product_pb2.SaleChangesRequest(sale_id=sale_id)
        reply = await self._call(self._sales.SaleChanges(request, timeout=TIMEOUT_S))
        return frozenset(reply.change_ids)

    async def item(self, product_id: int) -> product_pb2.ProductItem:
        request = product_pb2.ProductItemRequest(product_id=product_id)
        return await self._call(self._product.Product(request, timeout=TIMEOUT_S))

    async def order_result(self, order_id: OrderId) -> OrderResult | None:
        """What the order's reservation says; None: there is none. The UUID alone is the row's key."""
        product_id, key = parse_order_id(order_id)
        request = product_pb2.ReservationsRequest(order_ids=[key])
        reply = await self._call(self._product.Reservations(request, timeout=TIMEOUT_S))
        for row in reply.reservations:
            if row.product_id != product_id:
                return None
            status = _STATUS_OF[row.state]
            return OrderResult(order_id, status, row.reason if status is OrderStatus.REJECTED else "")
        return None

    async def check(self) -> None:
        """Asks the health service. Raises ProductUnavailable."""
        request = health_pb2.HealthCheckRequest(service="")
        reply = await self._call(self._health.Check(request, timeout=TIMEOUT_S))
        if reply.status != health_pb2.HealthCheckResponse.SERVING:
            raise ProductUnavailable(self._address, NOT_SERVING_MEANS)

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            detail = error.details() or ""
            trailing: Metadata = error.trailing_metadata() or ()  # type: ignore[assignment]  # the stubs hide the pairs
            if (refusal := _REFUSALS.get(error.code())) is not None:
                raise ProductRefused(_code_in(trailing) or refusal, detail) from error
            raise ProductUnavailable(self._address, f"{error.code().name} {detail}") from error


def _code_in(trailing: Metadata) -> str | None:
    return next((str(value) for key, value in trailing if key == "seckill-code"), None)


def _sale(message: product_pb2.Sale) -> Sale:
    return Sale(
        sale_id=message.sale_id,
        product_id=message.product_id,
        name=message.name,
        starts_at_ms=message.starts_at_ms,
        ends_at_ms=message.ends_at_ms,
        per_user_limit=message.per_user_limit,
        price_cents=message.price_cents,
        state=message.state,
        initial=message.initial,
        stock=message.stock,
        frozen=message.frozen,
        sold=message.sold,
        created_at_ms=message.created_at_ms,
    )
