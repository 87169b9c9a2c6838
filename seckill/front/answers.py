"""What every HTTP API of ours does alike: errors become problem documents, bodies are bounded, both are described."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seckill.domain.errors import AdmissionUnavailable, ProductUnavailable
from seckill.front import problems
from seckill.front.orders_api import read_body
from seckill.front.problems import Problem, ProblemError, invalid

log = structlog.get_logger(__name__)

Handler = Callable[[Request, Any], Coroutine[Any, Any, Response]]


class BoundedBodies:
    """Reads a request's body whole, up to a bound, before the application sees it.

    `turned_away`: who is answered with a problem whatever the body says, of which nothing is kept then.
    """

    def __init__(
        self, app: ASGIApp, bytes_max: int, *, turned_away: Callable[[Scope], Problem | None] = lambda _: None
    ) -> None:
        self._app = app
        self._bytes_max = bytes_max
        self._turned_away = turned_away

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        refused = self._turned_away(scope)
        body = await read_body(receive, self._bytes_max if refused is None else 0)
        if body is None:
            return
        body = refused or body
        if isinstance(body, Problem):
            response = answered(body)
            response.headers["connection"] = "close"  # some of the body may not have been read
            await response(scope, receive, send)
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)


# --- errors become problem documents -----------------------------------------------------------------------------


def answered(problem: Problem) -> Response:
    return Response(problem.document(), status_code=problem.status, headers=problem.headers())


async def _on_problem(_: Request, error: ProblemError) -> Response:
    return answered(error.problem)


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    match error.status_code:
        case 404:
            return answered(Problem("NOT_FOUND", f"there is nothing at {request.url.path[:200]}"))
        case 405:
            response = answered(Problem("METHOD_NOT_ALLOWED", f"{request.method[:20]} is not allowed here"))
            response.headers.update(error.headers or {})
            return response
        case _:
            return answered(Problem("MALFORMED_JSON", str(error.detail)))


async def _on_invalid(_: Request, error: RequestValidationError) -> Response:
    found = error.errors()
    for each in found:
        if each["type"] == "json_invalid":
            return answered(Problem("MALFORMED_JSON", str(each.get("ctx", {}).get("error", each["msg"]))))
    return answered(invalid(*((_field(each["loc"]), each["msg"]) for each in found[:10])))


def _field(location: tuple[int | str, ...]) -> str:
    """`body.stock` → `stock`; the body itself stays `body`."""
    return ".".join(str(part)[:80] for part in (location[1:] or location))


async def _on_unavailable(request: Request, error: AdmissionUnavailable | ProductUnavailable) -> Response:
    log.warning("request_unavailable", path=request.url.path, error=str(error))
    return answered(Problem("UNAVAILABLE", f"the {error.what} does not answer: try again"))


async def _on_unexpected(request: Request, error: Exception) -> Response:
    log.error("request_failed", path=request.url.path, exc_info=error)
    return answered(Problem("INTERNAL", "an error that nobody foresaw; it has been logged"))


HANDLERS: dict[int | type[Exception], Handler] = {
    ProblemError: _on_problem,
    HTTPException: _on_http_error,
    RequestValidationError: _on_invalid,
    AdmissionUnavailable: _on_unavailable,
    ProductUnavailable: _on_unavailable,
    Exception: _on_unexpected,
}
"""What any application of ours makes of an error."""


# --- the description ---------------------------------------------------------------------------------------------


def describe(app: FastAPI, extend: Callable[[dict[str, Any]], object]) -> None:
    """Lets `extend` change the application's own description, once."""
    known: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not known:
            document = FastAPI.openapi(app)
            extend(document)
            known.update(document)
        return known

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend the description


def described(document: dict[str, Any]) -> None:
    """Puts the problem document in the place of FastAPI's own error."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = problems.openapi_schema()
    invalid_request = problems.openapi_responses("INVALID_REQUEST")[422]
    for path in document["paths"].values():
        for operation in path.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                operation["responses"]["422"] = invalid_request
