"""Reads what the stores say: both SQL databases, Redis, and the dead-letter topic. Reads only; decides nothing.

Everything of the chosen sales is held in memory at once: for a demo's or a test's size, not for years of orders.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from sqlalchemy import Select, Table, make_url, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from seckill.admission import Admission, open_admission
from seckill.demo.audit import Facts, LedgerRow, OrderRow, RedisSale, ReservationRow, SaleRow, State
from seckill.demo.plan import Latency, latency
from seckill.doctor.start import opening_database
from seckill.domain.errors import InvalidOrder
from seckill.domain.order import OrderId, order_id_from_key
from seckill.domain.outcomes import OrderStatus
from seckill.dtm.database import create_engine, fail_in_place
from seckill.messaging.envelope import decode
from seckill.messaging.lag import consumer_lag, read_topic
from seckill.order import tables as order_tables
from seckill.order.types import OrderState
from seckill.product import tables as product_tables
from seckill.product.decide import State as RowState
from seckill.schema import setting_of
from seckill.security import database_context
from seckill.settings import ServiceSettings, Settings

RESULTS_READ = 1_000
"""Order ids asked of Redis at a time."""

_STATES = {
    RowState.FROZEN: State.FROZEN,
    RowState.SOLD: State.SOLD,
    RowState.RELEASED: State.RELEASED,
    RowState.REJECTED: State.REJECTED,
}


@dataclass(frozen=True, slots=True)
class Stores:
    settings: Settings
    admission: Admission
    product: AsyncEngine
    order: AsyncEngine


@asynccontextmanager
async def open_stores(settings: Settings) -> AsyncIterator[Stores]:
    """Connects on first use."""
    product, order = _engine("product", settings.product), _engine("order", settings.order)
    try:
        async with open_admission(settings.redis, settings.ledger) as admission:
            yield Stores(settings, admission, product, order)
    finally:
        await product.dispose()
        await order.dispose()


async def unrest(stores: Stores, product_ids: Collection[int] | None = None) -> str:
    """What is still under way, in words; empty at rest. Raises AdmissionUnavailable or PublishUnknown."""
    ledger = stores.admission.ledger
    pending = 0
    for product_id in await ledger.products() if product_ids is None else product_ids:
        stats = await ledger.stats(product_id)
        pending += stats.entries - stats.parked
    if pending:
        return f"{pending} orders pending in the ledger"
    lag = sum(each.lag for each in await consumer_lag(stores.settings.kafka))
    return f"{lag} records not yet consumed" if lag else ""


async def read_facts(
    stores: Stores, *, accepted: Iterable[str] = (), product_ids: Collection[int] | None = None
) -> Facts:
    """Everything that the audit judges; of all products, or of some. Raises what the stores' clients raise."""
    sales, reservations, product_decisions, foreign, pruned = await _read_product(stores, product_ids)
    orders, order_decisions, foreign_there = await _read_order(stores, {sale.sale_id for sale in sales})
    foreign |= foreign_there
    products = sorted({sale.product_id for sale in sales})
    views = [(product_id, await stores.admission.sales.read(product_id)) for product_id in products]
    entries = [entry for product_id in products for entry in await stores.admission.ledger.entries(product_id)]
    known = frozenset(accepted)
    return Facts(
        sales=sales,
        reservations=reservations,
        orders=orders,
        product_decisions={gid: op for gid, op in product_decisions.items() if gid not in foreign},
        order_decisions={gid: op for gid, op in order_decisions.items() if gid not in foreign},
        redis=[
            RedisSale(view.sale_id, view.stock, view.admitted)
            for _, view in views
            if view is not None and view.sale_id not in pruned
        ],
        ledger=[
            LedgerRow(each.order.order_id, each.order.sale_id, each.order.quantity, each.state == "parked")
            for each in entries
        ],
        told=await _told(stores, sorted(known | {row.order_id for row in reservations})),
        letters=await _letters(stores),
        accepted=known,
        pruned_sales=len(pruned),
    )


async def confirm_latency(stores: Stores, product_ids: Collection[int]) -> Latency:
    """From admission to the reservation's last change, of sold ones. Both times are whole milliseconds."""
    table = product_tables.stock_reservation
    of_sold = table.c.product_id.in_(product_ids) & (table.c.state == RowState.SOLD)
    async with _reading(stores, "product") as connection:
        rows = await connection.execute(select(table.c.updated_at_ms - table.c.admitted_at_ms).where(of_sold))
        return latency([float(row[0]) for row in rows])


# --- SQL -----------------------------------------------------------------------------------------------------------


async def _read_product(
    stores: Stores, product_ids: Collection[int] | None
) -> tuple[list[SaleRow], list[ReservationRow], dict[str, str], set[str], set[int]]:
    """Rows of the chosen products, every gid's decision, the gids that are none of theirs, and the sales that were
    pruned: nothing of these can be judged, so nothing else here speaks of them.
    """
    sale, reservation = product_tables.sale, product_tables.stock_reservation
    async with _reading(stores, "product") as connection:
        of_sales = _of_products(select(sale), sale, product_ids)
        of_orders = _of_products(select(reservation), reservation, product_ids)
        sale_rows = list(await connection.execute(of_sales))
        pruned = {row.sale_id for row in sale_rows if row.pruned_at_ms is not None}
        sales = [
            SaleRow(
                sale_id=row.sale_id,
                product_id=row.product_id,
                initial=row.initial,
                stock=row.stock,
                frozen=row.frozen,
                sold=row.sold,
                per_user_limit=row.per_user_limit,
            )
            for row in sale_rows
            if row.sale_id not in pruned
        ]
        rows = list(await connection.execute(of_orders))
        decisions = await _decisions(connection, product_tables.metadata.tables["decision"])
        gids = select(reservation.c.gid, reservation.c.product_id, reservation.c.sale_id).distinct()
        owners = list(await connection.execute(gids))
    # Sale 0 is a product's own stock, which callers that know nothing of sales use: not part of any sale.
    chosen = {row.product_id for row in owners} if product_ids is None else set(product_ids)
    foreign = {row.gid for row in owners if row.sale_id in pruned | {0} or row.product_id not in chosen}
    reservations = [
        ReservationRow(
            order_id=order_id_from_key(row.product_id, row.order_id),
            sale_id=row.sale_id,
            user_id=row.user_id,
            quantity=row.quantity,
            state=_STATES[RowState(row.state)],
            reason=row.reason,
            gid=row.gid,
        )
        for row in rows
        # An order that came past the front and was refused has no sale and no gid.
        if row.sale_id not in pruned and (row.sale_id or not row.gid)
    ]
    return sales, reservations, decisions, foreign, pruned


async def _read_order(stores: Stores, sale_ids: set[int]) -> tuple[list[OrderRow], dict[str, str], set[str]]:
    async with _reading(stores, "order") as connection:
        rows = list(await connection.execute(select(order_tables.orders)))
        decisions = await _decisions(connection, order_tables.metadata.tables["decision"])
    foreign = {row.gid for row in rows if row.sale_id not in sale_ids}
    orders = [
        OrderRow(
            order_id=order_id_from_key(row.product_id, row.order_id),
            sale_id=row.sale_id,
            user_id=row.user_id,
            quantity=row.quantity,
            confirmed=row.status == OrderState.CONFIRMED,
            gid=row.gid,
        )
        for row in rows
        if row.sale_id in sale_ids
    ]
    return orders, decisions, foreign


async def _decisions(connection: AsyncConnection, table: Table) -> dict[str, str]:
    return {row.gid: row.op for row in await connection.execute(select(table.c.gid, table.c.op))}


def _of_products(
    query: Select[tuple[object, ...]], table: Table, product_ids: Collection[int] | None
) -> Select[tuple[object, ...]]:
    return query if product_ids is None else query.where(table.c.product_id.in_(product_ids))


def _engine(section: str, settings: ServiceSettings) -> AsyncEngine:
    """An engine for reading, each time one moment. SQLite is told so: it would make the file of a mistyped path."""
    url = make_url(settings.database_url.get_secret_value())
    if url.get_backend_name() == "sqlite" and url.database:
        url = url.set(database=f"file:{quote(url.database)}", query={"mode": "ro", "uri": "true"})
        engine = create_async_engine(url, pool_size=1)
        fail_in_place(engine)
        return engine
    tls = database_context(section, settings)
    engine = create_engine(url.render_as_string(hide_password=False), pool_size=1, lock_wait_s=3, tls=tls)
    return engine if url.get_backend_name() == "sqlite" else engine.execution_options(isolation_level="REPEATABLE READ")


@asynccontextmanager
async def _reading(stores: Stores, name: Literal["product", "order"]) -> AsyncIterator[AsyncConnection]:
    """Raises DatabaseUnavailable."""
    engine: AsyncEngine = getattr(stores, name)
    section: ServiceSettings = getattr(stores.settings, name)
    async with (
        opening_database(setting_of(name), section.database_url.get_secret_value()),
        engine.connect() as connection,
    ):
        yield connection


# --- Redis and Kafka -----------------------------------------------------------------------------------------------


async def _told(stores: Stores, order_ids: Sequence[str]) -> dict[str, tuple[str, str]]:
    told: dict[str, tuple[str, str]] = {}
    for start in range(0, len(order_ids), RESULTS_READ):
        part = [OrderId(order_id) for order_id in order_ids[start : start + RESULTS_READ]]
        for order_id, result in (await stores.admission.ledger.results(part)).items():
            if result.status in (OrderStatus.CONFIRMED, OrderStatus.REJECTED):
                told[order_id] = (result.status.value, result.reason)
    return told


async def _letters(stores: Stores) -> frozenset[str]:
    """Order ids in the dead-letter topic. A letter that holds no order stands for none."""
    found: set[str] = set()
    for record in await read_topic(stores.settings.kafka, stores.settings.kafka.dead_letter_topic):
        try:
            found |= {order.order_id for order in decode(record)}
        except InvalidOrder:
            continue
    return frozenset(found)
