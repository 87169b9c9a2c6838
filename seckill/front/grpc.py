"""The gRPC front: one order, the products on sale, and a stream of orders for gateways."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

import grpc
import structlog

from seckill.admission.gate import Wanted
from seckill.admission.sales import SaleBook
from seckill.domain.errors import AdmissionUnavailable, ProductUnavailable
from seckill.domain.order import MAX_ID, Sale
from seckill.domain.outcomes import Refused
from seckill.front.door import Down
from seckill.front.intake import Accepted, Draining, Ended, Intake, Pending, Reply, Unavailable
from seckill.front.metrics import OrderMetrics
from seckill.front.orders_api import DOWN, DRAINING, pending_problem
from seckill.front.problems import Problem, invalid, of_refusal
from seckill.front.product_client import ProductClient, ProductRefused
from seckill.front.requests import key_problem
from seckill.wire import seckill_pb2, seckill_pb2_grpc

log = structlog.get_logger(__name__)

STREAM_ORDERS_MAX = 256
"""Orders of one stream under way at once; the stream is read on when one of them is answered."""

PRODUCTS_KEPT_S = 1.0
"""How long the list of products is reused: many buyers look at it, and it changes rarely."""

PRODUCTS_ASKED_MAX = 16
"""Products asked about at once."""

Context = grpc.aio.ServicerContext[Any, Any]

_STATUS: Mapping[str, grpc.StatusCode] = {
    "UNKNOWN_PRODUCT": grpc.StatusCode.NOT_FOUND,
    "INVALID_REQUEST": grpc.StatusCode.INVALID_ARGUMENT,
    "KEY_REUSED": grpc.StatusCode.INVALID_ARGUMENT,
    "OVERLOADED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "RATE_LIMITED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "PAUSED": grpc.StatusCode.UNAVAILABLE,
    "PENDING": grpc.StatusCode.UNAVAILABLE,
    "UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "INTERNAL": grpc.StatusCode.INTERNAL,
}
"""Of a problem's code; FAILED_PRECONDITION otherwise."""


class SeckillService(seckill_pb2_grpc.SeckillServicer):
    """`seckill.Seckill`. A refused unary call carries `seckill-code` and `seckill-order-id` as trailing metadata."""

    def __init__(self, intake: Intake, product: ProductClient, book: SaleBook) -> None:
        self._intake = intake
        self._product = product
        self._book = book
        self._metrics = OrderMetrics("grpc")
        self._draining = asyncio.Event()
        self.streams = 0  # that are open
        self._products = seckill_pb2.SeckillProductsResponse()
        self._products_until = 0.0
        self._products_lock = asyncio.Lock()

    def drain(self) -> None:
        """Open streams read no more orders, answer those that they have read, and end."""
        self._draining.set()

    async def SeckillOrder(
        self, request: seckill_pb2.SeckillOrderRequest, context: Context
    ) -> seckill_pb2.SeckillOrderResponse:
        placed = await self._place(request)
        if isinstance(placed, Problem):
            await _abort(context, placed)
        return placed

    async def SeckillOrders(  # type: ignore[override]  # the stubs know only generators; this one writes itself
        self, request_iterator: object, context: Context
    ) -> None:
        """Answers in any order, each with its request's `tag`."""
        slots, writing = asyncio.Semaphore(STREAM_ORDERS_MAX), asyncio.Lock()

        async def answer(request: seckill_pb2.SeckillOrderRequest) -> None:
            try:
                placed = await self._place(request)
                response = _in_band(placed) if isinstance(placed, Problem) else placed
                response.tag = request.tag
                async with writing:
                    await context.write(response)
            finally:
                slots.release()

        async with asyncio.TaskGroup() as answers:
            reader = asyncio.create_task(
                _read_all(context, slots, lambda request: answers.create_task(answer(request)))
            )
            draining = asyncio.create_task(self._draining.wait())
            self.streams += 1
            try:
                await asyncio.wait({reader, draining}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.streams -= 1
                for task in (reader, draining):
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task

    async def SeckillProducts(
        self, _request: seckill_pb2.SeckillProductsRequest, context: Context
    ) -> seckill_pb2.SeckillProductsResponse:
        async with self._products_lock:  # whoever comes while the list is being read waits for it
            if time.monotonic() >= self._products_until:
                try:
                    self._products = await self._read_products()
                except (ProductUnavailable, ProductRefused, AdmissionUnavailable) as error:
                    log.warning("products_unavailable", error=str(error))
                    await _abort(context, Problem("UNAVAILABLE", "the list cannot be read now"))
                self._products_until = time.monotonic() + PRODUCTS_KEPT_S
            return self._products

    async def _place(self, request: seckill_pb2.SeckillOrderRequest) -> seckill_pb2.SeckillOrderResponse | Problem:
        started = time.perf_counter()
        wanted = _wanted(request)
        try:
            reply = wanted if isinstance(wanted, Problem) else _read_reply(await self._intake.place_shielded(wanted))
        except Exception:  # the boundary to the caller
            log.exception("order_failed", user_id=request.user_id, product_id=request.product_id)
            reply = Problem("INTERNAL", "an error that nobody foresaw; it has been logged")
        code = reply.code if isinstance(reply, Problem) else reply.status.upper()
        self._metrics.answered(code, time.perf_counter() - started)
        return reply

    async def _read_products(self) -> seckill_pb2.SeckillProductsResponse:
        slots = asyncio.Semaphore(PRODUCTS_ASKED_MAX)

        async def one(sale: Sale) -> seckill_pb2.Product:
            async with slots:
                return await self._read_product(sale)

        sales = await self._product.list_sales(state="open")
        return seckill_pb2.SeckillProductsResponse(products=await asyncio.gather(*map(one, sales)))

    async def _read_product(self, sale: Sale) -> seckill_pb2.Product:
        """The stock is what admission would still give out; the row's, where Redis does not hold the sale."""
        item = await self._product.item(sale.product_id)
        view = await self._book.read(sale.product_id)
        in_redis = view is not None and view.sale_id == sale.sale_id
        return seckill_pb2.Product(
            product_id=sale.product_id,
            name=sale.name or item.name,
            desc=item.description,
            image=item.image_url,
            stock=view.stock if view is not None and in_redis else sale.stock,
            create_time=item.create_time,
        )


async def _read_all(context: Context, slots: asyncio.Semaphore, start: Any) -> None:
    """Reads the stream to its end; `start` begins answering a request, whose slot is then the answer's to release."""
    while True:
        await slots.acquire()
        request = await context.read()
        if request is grpc.aio.EOF:  # type: ignore[attr-defined]  # the stubs lack it
            return
        start(request)


def _wanted(request: seckill_pb2.SeckillOrderRequest) -> Wanted | Problem:
    errors = [
        (name, f"{value} is not between 1 and {MAX_ID}")
        for name, value in (
            ("user_id", request.user_id), ("product_id", request.product_id), ("quantity", request.quantity),
        )
        if value < 1
    ]  # fmt: skip
    if request.request_id and (problem := key_problem(request.request_id)) is not None:
        errors.append(("request_id", problem))
    if errors:
        return invalid(*errors)
    return Wanted(request.product_id, request.user_id, request.quantity, request.request_id or None)


def _read_reply(reply: Reply) -> seckill_pb2.SeckillOrderResponse | Problem:
    match reply:
        case Accepted(order_id):
            return seckill_pb2.SeckillOrderResponse(order_id=order_id, status="accepted")
        case Ended(result):
            return seckill_pb2.SeckillOrderResponse(
                order_id=result.order_id, status=result.status.value, code=result.reason
            )
        case Refused():
            return of_refusal(reply)
        case Pending(order_id):
            return pending_problem(order_id)
        case Unavailable(detail):
            log.warning("order_unavailable", detail=detail)
            return Problem("UNAVAILABLE", "admission does not answer: try again")
        case Draining():
            return DRAINING
        case Down():
            return DOWN


def _in_band(problem: Problem) -> seckill_pb2.SeckillOrderResponse:
    """The problem as a reply on a stream; whether an unanswered order was taken on is not known, so it is pending."""
    return seckill_pb2.SeckillOrderResponse(
        order_id=str(problem.facts.get("order_id") or ""),
        status="pending" if problem.code in ("PENDING", "UNAVAILABLE", "INTERNAL") else "refused",
        code=problem.code,
        detail=problem.detail,
        retry_after_ms=problem.retry_after_s * 1_000,
    )


async def _abort(context: Context, problem: Problem) -> NoReturn:
    trailing = [("seckill-code", problem.code)]
    if order_id := problem.facts.get("order_id"):
        trailing.append(("seckill-order-id", str(order_id)))
    status = _STATUS.get(problem.code, grpc.StatusCode.FAILED_PRECONDITION)
    await context.abort(status, problem.detail, tuple(trailing))
    raise AssertionError("abort always raises")
