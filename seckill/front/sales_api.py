"""`/v1/sales` over HTTP: anyone may look; what changes a sale needs the operator token."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from seckill.admission.sales import UNITS_MAX, SaleView
from seckill.domain.order import MAX_ID, NewSale
from seckill.front.operators import OPERATOR_CODES, operator
from seckill.front.problems import ProblemError, invalid, openapi_responses
from seckill.front.product_client import SaleChange
from seckill.front.requests import key_problem
from seckill.front.sale_desk import SaleDesk

DEFAULT_DURATION_MS = 86_400_000
CLOSED = "sales cannot be changed here: no operator token is configured"

Id = Annotated[int, Field(ge=1, le=MAX_ID)]
Units = Annotated[int, Field(ge=1, le=UNITS_MAX)]
Moment = Annotated[int, Field(ge=0, le=2**48 - 1, description="Milliseconds since 1970")]
Name = Annotated[str, Field(min_length=1, max_length=200)]
State = Literal["open", "paused", "closed"]
IdempotencyKey = Annotated[str | None, Header(description="The change's id: a repeat changes nothing twice.")]


class SaleRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    product_id: Id
    stock: Units
    name: Name | None = None
    starts_at_ms: Moment | None = None
    ends_at_ms: Moment | None = None
    per_user_limit: Units = 1
    price_cents: Annotated[int, Field(ge=0, le=MAX_ID)] = 0


class SaleChangeRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    name: Name | None = None
    starts_at_ms: Moment | None = None
    ends_at_ms: Moment | None = None
    per_user_limit: Units | None = None
    price_cents: Annotated[int | None, Field(ge=0, le=MAX_ID)] = None
    stock_delta: Annotated[int, Field(ge=-UNITS_MAX, le=UNITS_MAX)] = 0


class SaleInRedis(BaseModel):
    """The sale as admission sees it. `vouched` false: Redis was restarted, and admission answers PAUSED."""

    state: State
    stock: int
    number: int
    vouched: bool


class SaleReply(BaseModel):
    sale_id: int
    product_id: int
    name: str
    starts_at_ms: int
    ends_at_ms: int
    per_user_limit: int
    price_cents: int
    state: State
    initial: int
    stock: int
    frozen: int
    sold: int
    created_at_ms: int


class ChangedSaleReply(SaleReply):
    taken: int | None = Field(None, description="Units that could be taken off, when that was asked for")


class ShownSaleReply(SaleReply):
    redis: SaleInRedis | None = Field(None, description="null: Redis does not hold the sale, or another one is current")


class SalesReply(BaseModel):
    sales: list[SaleReply]


def sales_router(
    desk: SaleDesk, *, operator_token: SecretStr | None, first_asked_ms: Callable[[str], Awaitable[int]]
) -> APIRouter:
    """`first_asked_ms` tells when a change id was seen first: what a repeat's "now" means."""
    router = APIRouter(tags=["sales"])
    guarded: dict[str, Any] = {"dependencies": [Depends(operator(operator_token, closed=CLOSED))]}

    @router.get("/v1/sales", summary="List sales, newest first", responses=openapi_responses("UNAVAILABLE"))
    async def list_sales(
        product_id: Annotated[int, Query(ge=1, le=MAX_ID)] | None = None, state: State | None = None
    ) -> SalesReply:
        sales = await desk.product.list_sales(product_id=product_id or 0, state=state or "")
        return SalesReply(sales=[SaleReply(**dataclasses.asdict(sale)) for sale in sales])

    @router.get("/v1/sales/{sale_id}", summary="Show a sale", responses=openapi_responses("UNKNOWN_SALE"))
    async def show_sale(sale_id: Id) -> ShownSaleReply:
        sale, view = await desk.show(sale_id)
        return ShownSaleReply(**dataclasses.asdict(sale), redis=_in_redis(view))

    @router.post(
        "/v1/sales",
        status_code=201,
        summary="Open a sale",
        responses=openapi_responses("SALE_CONFLICT", "INVALID_REQUEST", *OPERATOR_CODES),
        **guarded,
    )
    async def create_sale(request: SaleRequest, idempotency_key: IdempotencyKey = None) -> SaleReply:
        change_id = _change_id(idempotency_key)
        asked_ms = await first_asked_ms(change_id)
        starts_at_ms = asked_ms if request.starts_at_ms is None else request.starts_at_ms
        ends_at_ms = starts_at_ms + DEFAULT_DURATION_MS if request.ends_at_ms is None else request.ends_at_ms
        if ends_at_ms <= starts_at_ms:
            raise ProblemError(invalid(("ends_at_ms", f"{ends_at_ms} is not after starts_at_ms {starts_at_ms}")))
        new = NewSale(
            product_id=request.product_id,
            name=request.name or f"Product {request.product_id}",
            starts_at_ms=starts_at_ms,
            ends_at_ms=ends_at_ms,
            per_user_limit=request.per_user_limit,
            price_cents=request.price_cents,
            stock=request.stock,
        )
        return SaleReply(**dataclasses.asdict(await desk.create(change_id, new)))

    @router.patch(
        "/v1/sales/{sale_id}",
        summary="Change a sale's terms or units",
        response_model_exclude_none=True,
        responses=openapi_responses("UNKNOWN_SALE", "SALE_CONFLICT", "INVALID_REQUEST", *OPERATOR_CODES),
        **guarded,
    )
    async def change_sale(
        sale_id: Id, request: SaleChangeRequest, idempotency_key: IdempotencyKey = None
    ) -> ChangedSaleReply:
        terms = SaleChange(**request.model_dump(exclude={"stock_delta"}))
        changed = await desk.change(_change_id(idempotency_key), sale_id, terms, stock_delta=request.stock_delta)
        return ChangedSaleReply(**dataclasses.asdict(changed.sale), taken=changed.taken)

    async def set_state(sale_id: int, state: State) -> SaleReply:
        return SaleReply(**dataclasses.asdict(await desk.set_state(sale_id, state)))

    state_codes = openapi_responses("UNKNOWN_SALE", "SALE_CONFLICT", *OPERATOR_CODES)

    @router.post("/v1/sales/{sale_id}/pause", summary="Take no orders for now", responses=state_codes, **guarded)
    async def pause(sale_id: Id) -> SaleReply:
        return await set_state(sale_id, "paused")

    @router.post("/v1/sales/{sale_id}/resume", summary="Take orders again", responses=state_codes, **guarded)
    async def resume(sale_id: Id) -> SaleReply:
        return await set_state(sale_id, "open")

    @router.post("/v1/sales/{sale_id}/close", summary="End the sale for good", responses=state_codes, **guarded)
    async def close(sale_id: Id) -> SaleReply:
        return await set_state(sale_id, "closed")

    return router


def _change_id(key: str | None) -> str:
    if key is None:
        return uuid.uuid4().hex
    if (problem := key_problem(key)) is not None:
        raise ProblemError(invalid(("Idempotency-Key", problem)))
    return key


def _in_redis(view: SaleView | None) -> SaleInRedis | None:
    if view is None:
        return None
    return SaleInRedis(state=view.state, stock=view.stock, number=view.number, vouched=view.vouched)
