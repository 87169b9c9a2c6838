"""The stores as the audit opens them: for reading only, one connection to each. Decides nothing."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

import tenacity
from sqlalchemy import event, make_url
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from seckill.admission import Admission, RedisLink, open_admission
from seckill.admission.inspection import Inspection
from seckill.doctor.start import opening_database
from seckill.dtm.database import create_engine, fail_in_place
from seckill.messaging.lag import consumer_lag
from seckill.messaging.retry_topics import retry_tiers
from seckill.schema import setting_of
from seckill.security import database_context
from seckill.settings import ServiceSettings, Settings

REST_EVERY_S = 0.1
STATEMENT_TIMEOUT_S = 30
"""No single statement of an audit may take longer, on a server that can be told so."""

Database = Literal["product", "order"]


@dataclass(frozen=True, slots=True)
class Stores:
    settings: Settings
    admission: Admission
    inspection: Inspection
    product: AsyncEngine
    order: AsyncEngine


@asynccontextmanager
async def open_stores(settings: Settings) -> AsyncIterator[Stores]:
    """Connects on first use."""
    product, order = _engine("product", settings.product), _engine("order", settings.order)
    link = RedisLink(settings.redis)
    try:
        async with open_admission(settings.redis, settings.ledger) as admission:
            yield Stores(settings, admission, Inspection(link), product, order)
    finally:
        await link.close()
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
    kafka, retry = stores.settings.kafka, stores.settings.retry
    lag = sum(each.lag for each in await consumer_lag(kafka, retry_tiers(kafka, retry)))
    return f"{lag} records not yet consumed" if lag else ""


async def rest(stores: Stores, product_ids: Collection[int] | None = None, *, timeout_s: float) -> str:
    """Waits until nothing is under way; what still is when the time is up, in words."""
    until_rest = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_result(bool),
        wait=tenacity.wait_fixed(REST_EVERY_S),
        stop=tenacity.stop_after_delay(timeout_s),
        retry_error_callback=lambda state: f"{state.outcome.result()} after {timeout_s:g} s" if state.outcome else "",
    )
    unfinished: str = await until_rest(unrest, stores, product_ids)
    return unfinished


@asynccontextmanager
async def snapshot(stores: Stores, name: Database) -> AsyncIterator[AsyncConnection]:
    """A connection whose statements all see the moment of the first one. Locks nothing. Raises DatabaseUnavailable."""
    engine: AsyncEngine = getattr(stores, name)
    section: ServiceSettings = getattr(stores.settings, name)
    async with (
        opening_database(setting_of(name), section.database_url.get_secret_value()),
        engine.connect() as connection,
    ):
        yield connection


def _engine(section: str, settings: ServiceSettings) -> AsyncEngine:
    """An engine for reading. SQLite is told so: it would make the file of a mistyped path."""
    url = make_url(settings.database_url.get_secret_value())
    if url.get_backend_name() == "sqlite" and url.database:
        url = url.set(database=f"file:{quote(url.database)}", query={"mode": "ro", "uri": "true"})
        engine = create_async_engine(url, pool_size=1)
        fail_in_place(engine)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_snapshot)
        return engine
    tls = database_context(section, settings)
    engine = create_engine(
        url.render_as_string(hide_password=False), pool_size=1, lock_wait_s=3, read_timeout_s=STATEMENT_TIMEOUT_S,
        tls=tls,
    )  # fmt: skip
    return engine if url.get_backend_name() == "sqlite" else engine.execution_options(isolation_level="REPEATABLE READ")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver would begin no transaction for what only reads
    connection.create_function("fingerprint", -1, _fingerprint, deterministic=True)


def _begin_snapshot(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN DEFERRED")


def _fingerprint(*values: Any) -> int:
    """48 bits of a row, as `sums.py` has MariaDB compute them: of the same values on both sides, never stored."""
    return int.from_bytes(hashlib.md5(repr(values).encode(), usedforsecurity=False).digest()[:6])
