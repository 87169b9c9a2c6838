"""The whole pipeline in the test's process, as a buyer meets it: front, worker, services, and a relay before each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from seckill.embedded import embedded_redis
from seckill.settings import Settings
from seckill.wiring import ROLES, Role, with_values
from tests.support.backbone import Backbone, open_backbone
from tests.support.relays import Relay, relay_to
from tests.support.sides import Side

REDIS_DATABASE = 4
"""Of a real Redis server: a front publishes whatever is due in the Redis that it is given, other tests' orders too."""

WAIT_S = 30


@dataclass(frozen=True, slots=True)
class Pipeline:
    """`settings` name the relays, where worker and coordinator find the services."""

    backbone: Backbone
    settings: Settings
    product: Relay
    order: Relay
    http: aiohttp.ClientSession

    def worker(self, settings: Settings | None = None) -> AbstractAsyncContextManager[Role]:
        return ROLES["worker"](settings or self.settings)

    async def post(self, *, user_id: int, product_id: int, key: str | None = None) -> tuple[int, dict[str, Any]]:
        """A buyer's order, with an idempotency key if there is one: HTTP status and document."""
        body = {"user_id": user_id, "product_id": product_id}
        headers = {} if key is None else {"Idempotency-Key": key}
        async with self.http.post("/v1/orders", json=body, headers=headers) as response:
            return response.status, await response.json(content_type=None)

    async def accepted(self, *, user_id: int, product_id: int) -> str:
        """The id of an order that was answered 202."""
        status, document = await self.post(user_id=user_id, product_id=product_id)
        assert status == 202, document
        return str(document["order_id"])

    async def end(self, order_id: str) -> tuple[str, str]:
        """Status and reason of an order, as its buyer is told after waiting for its end."""
        async with self.http.get(f"/v1/orders/{order_id}", params={"wait": WAIT_S}) as response:
            document = await response.json(content_type=None)
            assert response.status == 200, document
            return document["status"], document.get("reason") or ""

    async def gids(self) -> list[str]:
        """Every transaction that has reached the product service, in order."""
        rows = await self.backbone.query("product", "SELECT gid FROM barrier GROUP BY gid ORDER BY min(id)")
        return [str(gid) for (gid,) in rows]

    async def barrier(self, service: str, gid: str) -> list[tuple[object, ...]]:
        """Operation and who wrote the row, in the order of the rows."""
        return await self.backbone.query(
            service, "SELECT op, reason FROM barrier WHERE gid = :gid ORDER BY id", gid=gid
        )


@asynccontextmanager
async def own_redis(side: Side) -> AsyncIterator[Side]:
    """The same side with a Redis that is empty, and that nobody else uses."""
    if side.kind == "real":
        yield replace(side, redis=side.empty_redis(REDIS_DATABASE))
    else:
        with embedded_redis() as url:
            yield replace(side, redis=url)


@asynccontextmanager
async def open_pipeline(
    side: Side, folder: Path, over: Mapping[str, Mapping[str, Any]] | None = None
) -> AsyncIterator[Pipeline]:
    """Everything but the worker is running. `over` are settings that differ from those of `backbone_settings`."""
    async with (
        own_redis(side) as own,
        open_backbone(own, folder) as backbone,
        relay_to(backbone.settings.product.grpc) as product,
        relay_to(backbone.settings.order.grpc) as order,
    ):
        settings = with_values(
            backbone.settings, {"product": {"grpc": product.address}, "order": {"grpc": order.address}}
        )
        settings = with_values(settings, over or {})
        async with (
            ROLES["front"](settings) as front,
            aiohttp.ClientSession(f"http://{front.addresses['front.http']}") as http,
        ):
            yield Pipeline(backbone, settings, product, order, http)
