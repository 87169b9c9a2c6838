"""The HTTP application: `POST /v1/orders` on its own path, everything else through FastAPI. Answers problems only."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seckill import __version__
from seckill.admission.ledger import Ledger
from seckill.domain.errors import AdmissionUnavailable, InvalidTransition, ProductUnavailable
from seckill.front import orders_api, problems
from seckill.front.intake import Intake
from seckill.front.orders_api import PlaceOrder, orders_router, read_body
from seckill.front.problems import Problem, ProblemError, invalid
from seckill.front.product_client import ProductRefused
from seckill.front.sale_desk import SaleDesk
from seckill.front.sales_api import sales_router
from seckill.ops import Readiness, ops_routes
from seckill.settings import FrontSettings

log = structlog.get_logger(__name__)

Handler = Callable[[Request, Any], Coroutine[Any, Any, Response]]


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
    described: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not described:
            described.update(_described(FastAPI.openapi(app)))
        return described

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend the description
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
    response = _response(Problem("OVERLOADED", "more connections than this front serves"))
    response.headers["connection"] = "close"
    return response


class BoundedBodies:
    """Reads a request's body whole, up to a bound, before the application sees it."""

    def __init__(self, app: ASGIApp, bytes_max: int) -> None:
        self._app = app
        self._bytes_max = bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        body = await read_body(receive, self._bytes_max)
        if body is None:
            return
        if isinstance(body, Problem):
            response = _response(body)
            response.headers["connection"] = "close"  # some of the body may not have been read
            await response(scope, receive, send)
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)


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


def _response(problem: Problem) -> Response:
    return Response(problem.document(), status_code=problem.status, headers=problem.headers())


async def _on_problem(_: Request, error: ProblemError) -> Response:
    return _response(error.problem)


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    match error.status_code:
        case 404:
            return _response(Problem("NOT_FOUND", f"there is nothing at {request.url.path[:200]}"))
        case 405:
            response = _response(Problem("METHOD_NOT_ALLOWED", f"{request.method[:20]} is not allowed here"))
            response.headers.update(error.headers or {})
            return response
        case _:
            return _response(Problem("MALFORMED_JSON", str(error.detail)))


async def _on_invalid(_: Request, error: RequestValidationError) -> Response:
    found = error.errors()
    for each in found:
        if each["type"] == "json_invalid":
            return _response(Problem("MALFORMED_JSON", str(each.get("ctx", {}).get("error", each["msg"]))))
    return _response(invalid(*((_field(each["loc"]), each["msg"]) for each in found[:10])))


def _field(location: tuple[int | str, ...]) -> str:
    """`body.stock` → `stock`; the body itself stays `body`."""
    return ".".join(str(part)[:80] for part in (location[1:] or location))


async def _on_unavailable(request: Request, error: AdmissionUnavailable | ProductUnavailable) -> Response:
    log.warning("request_unavailable", path=request.url.path, error=str(error))
    return _response(Problem("UNAVAILABLE", f"the {error.what} does not answer: try again"))


async def _on_refused(_: Request, error: ProductRefused) -> Response:
    return _response(Problem(error.code if error.code in problems.TITLES else "SALE_CONFLICT", error.detail))


async def _on_conflict(_: Request, error: InvalidTransition) -> Response:
    return _response(Problem("SALE_CONFLICT", str(error)))


async def _on_unexpected(request: Request, error: Exception) -> Response:
    log.error("request_failed", path=request.url.path, exc_info=error)
    return _response(Problem("INTERNAL", "an error that nobody foresaw; it has been logged"))


_HANDLERS: dict[int | type[Exception], Handler] = {
    ProblemError: _on_problem,
    HTTPException: _on_http_error,
    RequestValidationError: _on_invalid,
    AdmissionUnavailable: _on_unavailable,
    ProductUnavailable: _on_unavailable,
    ProductRefused: _on_refused,
    InvalidTransition: _on_conflict,
    Exception: _on_unexpected,
}


# --- the description ---------------------------------------------------------------------------------------------


def _described(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's description with the order endpoint and the problem document, and without FastAPI's own error."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas |= orders_api.openapi_components() | {"Problem": problems.openapi_schema()}
    invalid_request = problems.openapi_responses("INVALID_REQUEST")[422]
    for path in document["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                operation["responses"]["422"] = invalid_request
    document["paths"] = {orders_api.PATH: orders_api.openapi_path(), **document["paths"]}
    return document
