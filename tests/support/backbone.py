"""Product, order and who coordinates them, and what a test needs to fill and read them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from seckill.admission import open_admission
from seckill.admission.gate import AdmissionGate, Wanted
from seckill.admission.keys import sale_keys
from seckill.admission.ledger import Ledger
from seckill.admission.rebuild import RebuildBook
from seckill.admission.sales import SaleBook
from seckill.domain.order import Order, Sale
from seckill.domain.outcomes import Admitted
from seckill.product.sales import CLOSED
from seckill.settings import Settings, load_settings
from seckill.wire import product_pb2, product_pb2_grpc
from seckill.wiring import ROLES, open_channel, with_values
from tests.support.redis_servers import raw_redis
from tests.support.sides import Side

FAR_FUTURE_MS = 4_000_000_000_000


@dataclass
class Backbone:
    """The running services, and what a test needs to fill and to read them."""

    settings: Settings
    ledger: Ledger
    gate: AdmissionGate
    book: SaleBook
    rebuilds: RebuildBook
    sales: product_pb2_grpc.SalesAsyncStub
    running: dict[str, AsyncExitStack] = field(default_factory=dict)

    async def open_sale(self, *, stock: int, per_user_limit: int = 1, product_id: int | None = None) -> Sale:
        """A sale of a product that no other test uses, open and warmed."""
        row = await self.sales.CreateSale(
            product_pb2.CreateSaleRequest(
                change_id=uuid4().hex,
                product_id=product_id or uuid4().int % 10**12 + 1,
                name="lamp",
                starts_at_ms=1,
                ends_at_ms=FAR_FUTURE_MS,
                per_user_limit=per_user_limit,
                stock=stock,
            )
        )
        sale = sale_of(row)
        await self.book.warm(sale)
        return sale

    async def read_sale(self, sale: Sale) -> Sale:
        return sale_of(await self.sales.GetSale(product_pb2.GetSaleRequest(sale_id=sale.sale_id)))

    async def replace_sale(self, sale: Sale, *, stock: int) -> Sale:
        """The sale is closed, and another one of the same product opened."""
        row = await self.sales.SetSaleState(product_pb2.SetSaleStateRequest(sale_id=sale.sale_id, state=CLOSED))
        await self.book.set_state(sale, row.state)
        return await self.open_sale(stock=stock, product_id=sale.product_id)

    async def restock(self, sale: Sale, units: int) -> None:
        """As an operator raises a sale: the row, then Redis."""
        change_id = uuid4().hex
        change = product_pb2.UpdateSaleRequest(change_id=change_id, sale_id=sale.sale_id, stock_delta=units)
        await self.sales.UpdateSale(change)
        await self.book.add_units(sale, change_id, units)

    def forget_result(self, order: Order) -> None:
        """What Redis does by itself when the time of the order's result is over."""
        with raw_redis(self.settings.redis.url.get_secret_value()) as redis:
            redis.delete(sale_keys(order.product_id, order.sale_id).result(order.order_id))

    async def admit(self, sale: Sale, user_id: int, *, quantity: int = 1) -> Order:
        """An order as the front would publish it."""
        answer = await self.gate.admit(Wanted(sale.product_id, user_id, quantity))
        assert isinstance(answer, Admitted), answer
        return Order(
            answer.order_id, answer.sale_id, user_id, sale.product_id, quantity,
            answer.admitted_at_ms, answer.admission_number,
        )  # fmt: skip

    async def query(self, service: str, statement: str, **values: object) -> list[tuple[object, ...]]:
        """Rows of a service's own database; a statement that changes something is committed."""
        section = getattr(self.settings, service)
        engine = create_async_engine(section.database_url.get_secret_value(), poolclass=NullPool)
        try:
            async with engine.begin() as connection:
                result = await connection.execute(text(statement), values)
                return [tuple(row) for row in result.all()] if result.returns_rows else []
        finally:
            await engine.dispose()

    async def stop(self, role: str) -> None:
        await self.running.pop(role).aclose()

    async def start(self, role: str) -> None:
        """Starts (again) on the address that it had."""
        stack = AsyncExitStack()
        await stack.enter_async_context(ROLES[role](self.settings))
        self.running[role] = stack


def sale_of(row: product_pb2.Sale) -> Sale:
    return Sale(
        row.sale_id, row.product_id, row.name, row.starts_at_ms, row.ends_at_ms, row.per_user_limit,
        row.price_cents, row.state, row.initial, row.stock, row.frozen, row.sold, row.created_at_ms,
    )  # fmt: skip


async def backbone_settings(side: Side, folder: Path, *, own_coordinator: bool = False) -> Settings:
    """Everything on free ports, in databases and topics of its own; short times, so that tests need not wait.

    On the real side DTM coordinates, unless `own_coordinator` asks for ours (on MariaDB, there), which can be stopped.
    """
    free = "127.0.0.1:0"
    run = uuid4().hex[:8]
    dtm: dict[str, Any] = {
        "timeout_to_fail_s": 1,
        "retry_interval_s": 1,
        "branch_timeout_s": 1,
        "try_timeout_ms": 1_500,
    }
    if side.dtm is not None and not own_coordinator:
        dtm |= {"grpc": side.dtm.grpc, "http": side.dtm.http}
    databases = {name: SecretStr(await side.database(name, folder)) for name in ("product", "order", "coordinator")}
    settings = with_values(
        load_settings(),
        {
            "redis": {"url": SecretStr(side.redis), "run_id_check": side.run_id_check},
            "kafka": {
                "bootstrap": side.kafka,
                "topic": f"orders-{run}",
                "dead_letter_topic": f"orders-{run}-dlt",
                "group": f"group-{run}",
            },
            "product": {"grpc": free, "ops": free, "database_url": databases["product"]},
            "order": {"grpc": free, "ops": free, "database_url": databases["order"]},
            "coordinator": {"grpc": free, "http": free, "database_url": databases["coordinator"]}
            | {"cron_interval_ms": 100},
            "dtm": dtm,
            "front": {"http": free, "grpc": free},
            "worker": {"ops": free, "drain_timeout_ms": 3_000},
            "reconcile": {"ops": free, "orphan_after_ms": 1_000},
            # Without retry topics: what fails three times is a letter. Who looks at retrying says otherwise.
            "retry": {"attempts_max": 3, "base_ms": 10, "cap_ms": 50, "topic_delays_ms": ()},
        },
    )
    await side.make_pipeline_topics(settings.kafka)
    return settings


@asynccontextmanager
async def open_backbone(side: Side, folder: Path, *, own_coordinator: bool = False) -> AsyncIterator[Backbone]:
    settings = await backbone_settings(side, folder, own_coordinator=own_coordinator)
    ours = side.dtm is None or own_coordinator
    running: dict[str, AsyncExitStack] = {}
    async with AsyncExitStack() as stack:
        for name in ("coordinator", "product", "order") if ours else ("product", "order"):
            opened = AsyncExitStack()
            role = await opened.enter_async_context(ROLES[name](settings))
            running[name] = opened
            over: dict[str, dict[str, str]] = {}
            for key, address in role.addresses.items():
                over.setdefault(name, {})[key.partition(".")[2]] = address
            if name == "coordinator":
                over["dtm"] = dict(over[name])
            settings = with_values(settings, over)
        admission = await stack.enter_async_context(open_admission(settings.redis, settings.ledger))
        channel = await stack.enter_async_context(open_channel(settings.product.grpc))
        sales = product_pb2_grpc.SalesStub(channel)
        try:
            yield Backbone(
                settings, admission.ledger, admission.gate, admission.sales, admission.rebuilds, sales, running
            )
        finally:
            for opened in reversed(running.values()):
                await opened.aclose()
