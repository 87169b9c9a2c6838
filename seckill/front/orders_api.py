"""`/v1/orders` over HTTP: placing an order on the lean path, and asking for one."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import structlog
from fastapi import APIRouter, Query, Response
from starlette.types import Receive, Scope, Send

from seckill.admission.ledger import ENDED, Ledger
from seckill.domain.errors import AdmissionUnavailable, ProductUnavailable
from seckill.domain.order import OrderId, parse_order_id
from seckill.domain.outcomes import OrderResult, OrderStatus, Refused
from seckill.front.door import Down
from seckill.front.intake import Accepted, Draining, Ended, Intake, Pending, Reply, Unavailable
from seckill.front.metrics import OrderMetrics
from seckill.front.problems import Problem, ProblemError, invalid, of_refusal, openapi_responses
from seckill.front.product_client import ProductClient
from seckill.front.requests import OrderRequest, read_order

log = structlog.get_logger(__name__)

PATH = "/v1/orders"
ORDER_CODES = (
    "SOLD_OUT", "ALREADY_ORDERED", "LIMIT_EXCEEDED", "NOT_STARTED", "ENDED", "PAUSED", "UNKNOWN_PRODUCT",
    "KEY_REUSED", "RATE_LIMITED", "OVERLOADED", "PENDING", "UNAVAILABLE", "INVALID_REQUEST", "MALFORMED_JSON",
    "BODY_TOO_LARGE",
)  # fmt: skip

DROPPED_BYTES_MAX = 33_554_432
"""Bytes of a body that is too large which are read and dropped before the answer."""

BODY_TIMEOUT_S = 10
"""Time for the rest of a body whose beginning has come."""

_WAIT = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?", re.ASCII)


class OrderReply(msgspec.Struct, omit_defaults=True):
    """What is known of an order."""

    order_id: str
    status: OrderStatus
    reason: str | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished HTTP answer; `code` is what it counts as."""

    status: int
    body: bytes
    code: str
    headers: tuple[tuple[bytes, bytes], ...]


_encoder = msgspec.json.Encoder()
_JSON = ((b"content-type", b"application/json"),)


class PlaceOrder:
    """`POST /v1/orders` as a bare ASGI application: a buyer's request goes through nothing that it does not need."""

    def __init__(self, intake: Intake, *, body_bytes_max: int) -> None:
        self._intake = intake
        self._body_bytes_max = body_bytes_max
        self._metrics = OrderMetrics("http")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        try:
            answer = await self._answer(scope, receive)
        except Exception:  # the boundary to the client
            log.exception("order_failed")
            answer = problem_answer(Problem("INTERNAL", "an error that nobody foresaw; it has been logged"))
        if answer is None:
            return  # the client went away before its request was complete
        self._metrics.answered(answer.code, time.perf_counter() - started)
        headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, scope: Scope, receive: Receive) -> Answer | None:
        if scope["method"] != "POST":
            return problem_answer(Problem("METHOD_NOT_ALLOWED", "POST an order"), (b"allow", b"POST"))
        key = None
        for name, value in scope["headers"]:
            if name == b"idempotency-key":
                key = value if key is None else b""  # given twice: as invalid as an empty one
        body = await read_body(receive, self._body_bytes_max)
        if body is None:
            return None
        if isinstance(body, Problem):
            return problem_answer(body, (b"connection", b"close"))  # some of the body may not have been read
        wanted = read_order(body, key)
        if isinstance(wanted, Problem):
            return problem_answer(wanted)
        return to_answer(await self._intake.place(wanted))  # a server cancels this only when its drain time is up


async def read_body(receive: Receive, bytes_max: int) -> bytes | Problem | None:
    """The body; None when the client went away; a problem when it is too large or does not come.

    The rest of a body that is too large is read and dropped up to a bound: a client that is still sending would
    otherwise lose the answer together with the connection.
    """
    message = await receive()
    body: bytes | bytearray = message.get("body", b"")
    size = len(body)
    if message.get("more_body", False):
        body = bytearray(body)
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while message.get("more_body", False) and size <= max(bytes_max, DROPPED_BYTES_MAX):
                    message = await receive()
                    chunk: bytes = message.get("body", b"")
                    size += len(chunk)
                    if size <= bytes_max:
                        body += chunk
                    else:
                        body.clear()
        except TimeoutError:
            return Problem("MALFORMED_JSON", f"the body did not come to its end within {BODY_TIMEOUT_S} s")
    if message["type"] == "http.disconnect":
        return None
    return bytes(body) if size <= bytes_max else Problem("BODY_TOO_LARGE", f"at most {bytes_max} bytes are read")


def to_answer(reply: Reply) -> Answer:
    match reply:
        case Accepted(order_id):
            body = _encoder.encode(OrderReply(order_id, OrderStatus.PROCESSING))
            return Answer(202, body, "ACCEPTED", _JSON)
        case Ended(result):
            return Answer(200, _encoder.encode(order_reply(result)), result.status.name, _JSON)
        case Refused():
            return problem_answer(of_refusal(reply))
        case Pending(order_id):
            return problem_answer(pending_problem(order_id))
        case Unavailable(detail):
            log.warning("order_unavailable", detail=detail)
            return problem_answer(Problem("UNAVAILABLE", "admission does not answer: try again"))
        case Draining():
            return problem_answer(DRAINING)
        case Down():
            return problem_answer(DOWN)


DRAINING = Problem("UNAVAILABLE", "this front is ending: try again, on a new connection")
DOWN = Problem("UNAVAILABLE", "orders cannot be taken at the moment: nothing was tried, try again")


def problem_answer(problem: Problem, *headers: tuple[bytes, bytes]) -> Answer:
    encoded = ((name.encode(), value.encode()) for name, value in problem.headers().items())
    return Answer(problem.status, problem.document(), problem.code, (*encoded, *headers))


def pending_problem(order_id: OrderId) -> Problem:
    detail = "it is not known yet whether the order was taken on: it may still succeed, ask for it"
    return Problem("PENDING", detail, {"order_id": order_id})


def order_reply(result: OrderResult) -> OrderReply:
    return OrderReply(result.order_id, result.status, result.reason or msgspec.UNSET)


# --- asking for an order -----------------------------------------------------------------------------------------


def orders_router(ledger: Ledger, product: ProductClient, *, wait_max_ms: int) -> APIRouter:
    router = APIRouter(tags=["orders"])

    @router.get(
        f"{PATH}/{{order_id}}",
        summary="Ask how an order ended",
        response_class=Response,
        responses={
            200: {
                "description": "What is known of the order",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/OrderReply"}}},
            },
            **openapi_responses("INVALID_ORDER_ID", "UNKNOWN_ORDER", "INVALID_REQUEST", "UNAVAILABLE"),
        },
    )
    async def show_order(
        order_id: str,
        wait: Annotated[str, Query(description="Seconds to wait for the end; longer waits are cut.")] = "0",
    ) -> Response:
        try:
            parse_order_id(order_id)
        except ValueError as error:
            raise ProblemError(Problem("INVALID_ORDER_ID", str(error))) from error
        if not _WAIT.fullmatch(wait):
            raise ProblemError(invalid(("wait", "expected seconds, for example 2.5")))
        look = OrderLookUp(ledger, product)
        result = await look.find(OrderId(order_id), wait_ms=min(int(float(wait) * 1_000), wait_max_ms))
        if result is None:
            raise ProblemError(Problem("UNKNOWN_ORDER", f"no order {order_id} was accepted"))
        return Response(_encoder.encode(order_reply(result)), media_type="application/json")

    return router


@dataclass(frozen=True, slots=True)
class OrderLookUp:
    """What is known of an order: Redis first, and what Redis no longer holds from its reservation."""

    ledger: Ledger
    product: ProductClient

    async def find(self, order_id: OrderId, *, wait_ms: int) -> OrderResult | None:
        """None: nobody knows it. Raises ProductUnavailable; AdmissionUnavailable when Redis does not answer, or has
        lost the product's sale, and SQL does not tell either.
        """
        try:
            result = await self._look(order_id)
        except AdmissionUnavailable:
            result = await self._reservation(order_id)
            if result is None or result.status is OrderStatus.PROCESSING:
                raise
            return result
        if wait_ms and (result is None or result.status is OrderStatus.PROCESSING):
            waited = await self.ledger.wait_result(order_id, timeout_ms=wait_ms)
            result = waited if waited is not None and waited.status in ENDED else await self._look(order_id)
        return result

    async def _look(self, order_id: OrderId) -> OrderResult | None:
        """Redis may have lost an end that was told before: where nobody vouches for it, the reservation is asked."""
        known, good = await self.ledger.look(order_id)
        if good:
            return known
        told = await self._reservation(order_id)
        if known is None and told is None:
            await self._require_whole(parse_order_id(order_id)[0])
        return told if known is None or (told is not None and told.status in ENDED) else known

    async def _require_whole(self, product_id: int) -> None:
        """Raises AdmissionUnavailable while Redis has lost what it held of the product: an order that nobody knows may
        have been accepted, and be in the topic alone.
        """
        for sale in await self.product.all_sales(product_id=product_id):
            if sale.state != "closed":
                await self.ledger.require_whole(sale)

    async def _reservation(self, order_id: OrderId) -> OrderResult | None:
        try:
            return await self.product.order_result(order_id)
        except ProductUnavailable:
            log.warning("reservation_unavailable", order_id=order_id)
            raise


def openapi_path() -> dict[str, Any]:
    """The description of `POST /v1/orders`, which FastAPI never sees."""
    reply = {"application/json": {"schema": {"$ref": "#/components/schemas/OrderReply"}}}
    return {
        "post": {
            "tags": ["orders"],
            "summary": "Place an order",
            "description": "Answers 202 after Kafka has acknowledged the order.",
            "operationId": "place_order",
            "parameters": [
                {
                    "name": "Idempotency-Key",
                    "in": "header",
                    "required": False,
                    "description": "A repeat by the same buyer in the same sale gets the same order.",
                    "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]{1,128}$"},
                }
            ],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/OrderRequest"}}},
            },
            "responses": {
                "202": {"description": "Accepted: it will end as confirmed or rejected", "content": reply},
                "200": {"description": "A repeat of an order that has ended", "content": reply},
                **{str(status): answer for status, answer in openapi_responses(*ORDER_CODES).items()},
            },
        }
    }


def openapi_components() -> dict[str, Any]:
    _, components = msgspec.json.schema_components(
        [OrderRequest, OrderReply], ref_template="#/components/schemas/{name}"
    )
    return components
