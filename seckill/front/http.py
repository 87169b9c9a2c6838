"""The HTTP application: `POST /v1/orders` on its own path, everything else through FastAPI. Answers problems only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from seckill import __version__
from seckill.admission.ledger import Ledger
from seckill.domain.errors import AdmissionUnavailable, InvalidTransition
from seckill.front import orders_api, problems
from seckill.front.answers import HANDLERS, BoundedBodies, Handler, answered, describe, described
from seckill.front.intake import Intake
from seckill.front.orders_api import PlaceOrder, orders_router
from seckill.front.problems import Problem
from seckill.front.product_client import ProductRefused
from seckill.front.sale_desk import SaleDesk
from seckill.front.sales_api import sales_router
from seckill.ops import Readiness, ops_routes
from seckill.settings import FrontSettings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FrontParts:
    """What the application speaks to."""

    intake: Intake
    ledger: Ledger
    desk: SaleDesk
    readiness: Readiness


class LedgerStatus(BaseModel):
    product_id: int
    sale_id: int
    entries: int
    parked: int
    oldest_age_ms: int


class FrontStatus(BaseModel):
    role: str
    ready: bool
    checks: dict[str, str]
    ledger: list[LedgerStatus]


def create_app(settings: FrontSettings, parts: FrontParts) -> ASGIApp:
    """The whole application; opens nothing."""
    app = FastAPI(
        title="seckill front",
        version=__version__,
        exception_handlers=dict(_HANDLERS),
        docs_url="/docs",
        redoc_url=None,
    )
    app.include_router(orders_router(parts.ledger, parts.desk.product, wait_max_ms=settings.wait_max_ms))
    app.include_router(
        sales_router(parts.desk, operator_token=settings.operator_token, first_asked_ms=parts.desk.book.first_asked_ms)
    )
    app.include_router(_status_router(parts))
    app.router.routes.extend(ops_routes(parts.readiness))
    describe(app, _described)
    place_order = PlaceOrder(parts.intake, body_bytes_max=settings.body_bytes_max)
    return Front(place_order, BoundedBodies(app, settings.body_bytes_max))


class Front:
    """Sends orders past the framework: nothing but the exact path is compared for them."""

    def __init__(self, place_order: ASGIApp, rest: ASGIApp) -> None:
        self._place_order = place_order
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == orders_api.PATH:
            await self._place_order(scope, receive, send)
        else:
            await self._rest(scope, receive, send)


def too_many_connections() -> ASGIApp:
    """What a request gets that came on one connection too many."""
    response = answered(Problem("OVERLOADED", "more connections than this front serves"))
    response.headers["connection"] = "close"
    return response


def _status_router(parts: FrontParts) -> APIRouter:
    router = APIRouter(tags=["status"])

    @router.get("/v1/status", summary="Readiness and the ledger's size", responses=problems.openapi_responses())
    async def show_status() -> FrontStatus:
        report = await parts.readiness.report()
        ledger: list[LedgerStatus] = []
        try:
            for product_id in await parts.ledger.products():
                stats = await parts.ledger.stats(product_id)
                ledger.append(
                    LedgerStatus(
                        product_id=product_id,
                        sale_id=stats.sale_id,
                        entries=stats.entries,
                        parked=stats.parked,
                        oldest_age_ms=stats.oldest_age_ms,
                    )
                )
        except AdmissionUnavailable as error:
            log.warning("status_without_ledger", error=str(error))  # the checks say so as well
        return FrontStatus.model_validate({**report, "ledger": ledger})

    return router


# --- errors become problem documents -----------------------------------------------------------------------------


async def _on_refused(_: Request, error: ProductRefused) -> Response:
    return answered(Problem(error.code if error.code in problems.TITLES else "SALE_CONFLICT", error.detail))


async def _on_conflict(_: Request, error: InvalidTransition) -> Response:
    return answered(Problem("SALE_CONFLICT", str(error)))


_HANDLERS: dict[int | type[Exception], Handler] = {
    **HANDLERS,
    ProductRefused: _on_refused,
    InvalidTransition: _on_conflict,
}


# --- the description ---------------------------------------------------------------------------------------------


def _described(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's description with the order endpoint and the problem document."""
    described(document)
    document["components"]["schemas"] |= orders_api.openapi_components()
    document["paths"] = {orders_api.PATH: orders_api.openapi_path(), **document["paths"]}
    return document
