"""The worker as a role, with retry topics: what heals by itself, what does not, and what an operator holds back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import grpc
from prometheus_client import REGISTRY

from seckill.domain.order import Order, Sale
from seckill.domain.outcomes import OrderResult, OrderStatus
from seckill.messaging.envelope import ORIGIN_HEADER
from seckill.messaging.publisher import Publisher, open_publisher
from seckill.settings import Settings
from seckill.wiring import ROLES, with_values
from tests.integration.test_carrier import free_order, letters
from tests.support.backbone import Backbone
from tests.support.recorder import until
from tests.support.relays import Poison, Relay, relay_to

TRY = "CheckProductStock"


def put_off_so_far(tier: int, reason: str) -> float:
    return REGISTRY.get_sample_value("seckill_retries_total", {"tier": str(tier), "reason": reason}) or 0.0


@dataclass(frozen=True, slots=True)
class Path:
    """A running worker, its product service behind a relay, and somebody who publishes."""

    backbone: Backbone
    settings: Settings
    sale: Sale
    product: Relay
    publisher: Publisher

    async def send(self, user_id: int) -> Order:
        order = await self.backbone.admit(self.sale, user_id)
        await self.publisher.publish(order)
        return order

    async def end(self, order: Order) -> OrderResult | None:
        return await self.backbone.ledger.wait_result(order.order_id, timeout_ms=30_000)


@asynccontextmanager
async def retry_path(backbone: Backbone, *delays_ms: int) -> AsyncIterator[Path]:
    async with AsyncExitStack() as stack:
        product = await stack.enter_async_context(relay_to(backbone.settings.product.grpc))
        over = {"product": {"grpc": product.address}, "retry": {"topic_delays_ms": delays_ms}}
        settings = with_values(backbone.settings, over)
        publisher = await stack.enter_async_context(open_publisher(settings.kafka))
        sale = await backbone.open_sale(stock=20)
        await stack.enter_async_context(ROLES["worker"](settings))
        yield Path(backbone, settings, sale, product, publisher)


async def test_the_retry_path(backbone: Backbone) -> None:
    """What fails is put off while others confirm, and confirms when its service has recovered; what goes on failing
    is a letter that tells the whole story; what an operator holds back is admitted once it may be.
    """
    async with retry_path(backbone, 2_000, 200) as path:
        await heals(path)
        await goes_on_failing(path)
        await is_held_back(path)


async def heals(path: Path) -> None:
    before = put_off_so_far(0, "ProductUnavailable")
    ill = await path.backbone.admit(path.sale, 1)
    path.product.poison[TRY] = Poison(ill.key, grpc.StatusCode.INTERNAL)
    await path.publisher.publish(ill)
    good = await path.send(2)
    assert await path.end(good) == OrderResult(good.order_id, OrderStatus.CONFIRMED)
    await until(lambda: put_off_so_far(0, "ProductUnavailable") == before + 1)
    assert (await path.backbone.ledger.results([ill.order_id]))[ill.order_id].status is OrderStatus.PROCESSING
    path.product.poison.clear()
    assert await path.end(ill) == OrderResult(ill.order_id, OrderStatus.CONFIRMED)
    assert await letters(path.backbone) == []


async def goes_on_failing(path: Path) -> None:
    kafka = path.settings.kafka
    ill = await path.backbone.admit(path.sale, 3)
    path.product.poison[TRY] = Poison(ill.key, grpc.StatusCode.INTERNAL)
    await path.publisher.publish(ill)
    assert await path.end(ill) == OrderResult(ill.order_id, OrderStatus.DELAYED)
    (letter,) = await letters(path.backbone)
    assert (letter["seckill-dlq-reason"], letter["seckill-dlq-attempts"]) == ("RETRIES_EXHAUSTED", "9")
    assert int(letter["seckill-dlq-last-failed-ms"]) - int(letter["seckill-dlq-first-failed-ms"]) > 2_200
    assert letter["__dlq.errors.topic"] == f"{kafka.topic}-retry-1"
    assert letter[ORIGIN_HEADER].startswith(f"{kafka.topic}/")
    path.product.poison.clear()


async def is_held_back(path: Path) -> None:
    before = put_off_so_far(0, "AdmissionClosed")
    await path.backbone.book.set_state(path.sale, "paused")
    order = free_order(path.sale.product_id, 4)
    await path.publisher.publish(order)
    await until(lambda: put_off_so_far(0, "AdmissionClosed") == before + 1)
    await path.backbone.book.set_state(replace(path.sale, state="open"), "open")
    async with asyncio.timeout(30):
        while order.order_id not in await path.backbone.ledger.results([order.order_id]):
            await asyncio.sleep(0.05)
    assert await path.end(order) == OrderResult(order.order_id, OrderStatus.CONFIRMED)
