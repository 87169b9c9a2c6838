"""A front on a Redis server, a real product service, and a publisher that keeps records in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc
from pydantic import SecretStr

from seckill.admission import Ledger, SaleBook, open_admission
from seckill.domain.errors import PublishUnknown
from seckill.domain.order import Order
from seckill.draining import Drain
from seckill.front.serve import ServedFront, serve_front
from seckill.product.service import serve_product
from seckill.schema import upgrade
from seckill.settings import FrontSettings, LedgerSettings, ProductSettings, RedisSettings
from tests.support.redis_servers import Backend

TOKEN = "operator-token-of-a-test"
OPERATOR = {"Authorization": f"Bearer {TOKEN}"}


@dataclass(slots=True)
class MemoryPublisher:
    """Keeps what was published. `failing`: nothing is acknowledged; `holding` set: waits until it is released."""

    orders: list[Order] = field(default_factory=list)
    failing: bool = False
    released: asyncio.Event | None = None

    async def publish(self, order: Order) -> None:
        if self.released is not None:
            await self.released.wait()
        if self.failing:
            raise PublishUnknown("memory", "it is told to fail")
        self.orders.append(order)

    async def check(self) -> None:
        if self.failing:
            raise PublishUnknown("memory", "it is told to fail")

    def ids(self) -> list[str]:
        return [order.order_id for order in self.orders]


@dataclass(slots=True)
class RunningFront:
    served: ServedFront
    publisher: MemoryPublisher
    ledger: Ledger
    book: SaleBook
    http: aiohttp.ClientSession
    channel: grpc.aio.Channel

    async def request(self, method: str, path: str, **arguments: Any) -> tuple[int, dict[str, Any], Any]:
        """Status, JSON document and headers."""
        async with self.http.request(method, path, **arguments) as response:
            assert response.content_type in ("application/json", "application/problem+json"), response.content_type
            return response.status, await response.json(content_type=None), response.headers

    async def order(self, *, key: str | None = None, **body: Any) -> tuple[int, dict[str, Any]]:
        headers = {} if key is None else {"Idempotency-Key": key}
        status, document, _ = await self.request("POST", "/v1/orders", json=body, headers=headers)
        return status, document

    async def open_sale(self, product_id: int, *, stock: int = 10, **terms: Any) -> dict[str, Any]:
        """A sale made by the operator's API; on since long ago unless `terms` say otherwise."""
        body = {"product_id": product_id, "stock": stock, "starts_at_ms": 1_000, "ends_at_ms": 4_000_000_000_000}
        status, sale, _ = await self.request("POST", "/v1/sales", json=body | terms, headers=OPERATOR)
        assert status == 201, sale
        return sale


@asynccontextmanager
async def running_product(database_url: str, *, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    settings = ProductSettings(grpc=address, ops="127.0.0.1:0", database_url=SecretStr(database_url))
    await upgrade("product", settings.database_url.get_secret_value())
    async with serve_product(settings) as product:
        yield product.address


@asynccontextmanager
async def running_front(
    redis: Backend,
    product_address: str,
    *,
    publisher: MemoryPublisher | None = None,
    ledger: dict[str, int] | None = None,
    drain: Drain | None = None,
    **front: Any,
) -> AsyncIterator[RunningFront]:
    """`front` and `ledger` are settings that differ from the defaults."""
    values: dict[str, Any] = {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "operator_token": TOKEN}
    settings = FrontSettings.model_validate(values | front)
    # Nothing is due again within a test, unless it asks for that.
    ledger_settings = LedgerSettings(**({"republish_after_ms": 3_600_000} | (ledger or {})))
    records = publisher or MemoryPublisher()
    async with AsyncExitStack() as stack:
        redis_settings = RedisSettings(url=SecretStr(redis.url), run_id_check=redis.run_id_check)
        admission = await stack.enter_async_context(
            open_admission(
                redis_settings,
                ledger_settings,
                batch_max=settings.admission_batch_max,
                queue_max=settings.admission_queue_max,
            )
        )
        product = await stack.enter_async_context(grpc.aio.insecure_channel(product_address))
        served = await stack.enter_async_context(
            serve_front(
                settings,
                admission=admission,
                publisher=records,
                product=product,
                product_address=product_address,
                drain=drain,
            )
        )
        http = await stack.enter_async_context(aiohttp.ClientSession(f"http://{served.http_address}"))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(served.grpc_address))
        yield RunningFront(served, records, admission.ledger, admission.sales, http, channel)
