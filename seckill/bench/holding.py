"""What the patterns hold in the databases while they run: connections, as the services count them, and transactions, as
MySQL or MariaDB lists them.

A prepared XA transaction has no connection any more and keeps its row locks all the same: the list of transactions has
it, as one without a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from seckill.bench.pattern_figures import Held, Look
from seckill.doctor.start import DatabaseUnavailable, opening_database
from seckill.domain.errors import SeckillError
from seckill.dtm.database import MYSQL, create_engine
from seckill.security import database_context
from seckill.settings import Settings

LOOK_EVERY_S = 0.12
"""InnoDB makes its list anew when it was read last more than 0.1 s ago, and shows the old one until then."""

METRICS_TIMEOUT_S = 5.0

HELD_METRIC = "seckill_database_connection_held_seconds"
OPENED_METRIC = "seckill_database_connections_opened_total"

# Not joined: that takes a temporary table on the server's disk, for each look.
_TRANSACTIONS = text("SELECT trx_mysql_thread_id, trx_state FROM information_schema.innodb_trx")
_CONNECTIONS = text("SHOW PROCESSLIST")  # Id, User, Host, db, …


class MetricsUnread(SeckillError):
    """A role's metrics could not be read."""


# --- connections -----------------------------------------------------------------------------------------------------


async def held_so_far(addresses: Collection[str]) -> Held:
    """Of all these roles (`host:port` of their ops) together, since they started. Raises MetricsUnread."""
    timeout = aiohttp.ClientTimeout(total=METRICS_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        return sum([held_of(await _metrics(session, address)) for address in addresses], Held(0, 0, 0))


def held_of(metrics: str) -> Held:
    """From the text of a role's metrics, all its databases together. Pure."""
    found = {f"{HELD_METRIC}_count": 0.0, f"{HELD_METRIC}_sum": 0.0, OPENED_METRIC: 0.0}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name in found:
                found[sample.name] += sample.value
    count, seconds, opened = found.values()
    return Held(count, seconds, opened)


async def _metrics(session: aiohttp.ClientSession, address: str) -> str:
    try:
        async with session.get(f"http://{address}/metrics") as response:
            if response.status != HTTPStatus.OK:
                raise MetricsUnread(f"{address} answers HTTP {response.status}")
            return await response.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise MetricsUnread(f"{address}: {error!r}") from error


# --- transactions ----------------------------------------------------------------------------------------------------


class Watch:
    """Looks at the open transactions of the product and order databases, on one server or two.

    `blind` says why it sees none: SQLite has no such list, and MySQL or MariaDB shows it with the privilege PROCESS.
    """

    def __init__(self, servers: Mapping[str, AsyncEngine], databases: Collection[str]) -> None:
        """`servers` by the setting that names each; `databases`: those whose transactions count."""
        self._servers = servers
        self._databases = databases
        self.blind = "" if servers else "SQLite keeps no list of its transactions"

    async def try_once(self) -> None:
        """Finds out whether the list may be read."""
        try:
            await self._look()
        except DatabaseUnavailable as error:
            self.blind = f"the list of transactions cannot be read: {error}"

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[list[Look]]:
        """Looks while the block runs. The list grows meanwhile, and stays empty if blind."""
        looks: list[Look] = []
        enough = asyncio.Event()
        looking = asyncio.create_task(self._look_on(looks, enough))
        try:
            yield looks
        finally:
            enough.set()  # no cancellation: it would cut off a statement, and with it the connection
            await looking

    async def _look_on(self, looks: list[Look], enough: asyncio.Event) -> None:
        while not self.blind and not enough.is_set():
            looks.append(await self._look())
            with suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), LOOK_EVERY_S)

    async def _look(self) -> Look:
        states: list[tuple[int, str]] = []
        for setting, server in self._servers.items():
            url = server.url.render_as_string(hide_password=False)
            async with opening_database(setting, url), server.connect() as connection:
                threads = {0} | {row[0] for row in await connection.execute(_CONNECTIONS) if row[3] in self._databases}
                found = await connection.execute(_TRANSACTIONS)
                states += [(thread, state) for thread, state in found if thread in threads]
        return look_of(states)


def look_of(transactions: Sequence[tuple[int, str]]) -> Look:
    """Of the transactions as InnoDB lists them: thread (0: it has no connection) and state."""
    return Look(
        time.perf_counter(),
        open=len(transactions),
        prepared=sum(thread == 0 for thread, _ in transactions),
        waiting=sum(state == "LOCK WAIT" for _, state in transactions),
    )


@asynccontextmanager
async def open_watch(settings: Settings) -> AsyncIterator[Watch]:
    servers: dict[str, AsyncEngine] = {}
    databases, seen = [], set()
    for section in ("product", "order"):
        service = getattr(settings, section)
        url = make_url(service.database_url.get_secret_value())
        databases.append(url.database or "")
        if url.get_backend_name() in MYSQL and (url.host, url.port) not in seen:
            seen.add((url.host, url.port))
            servers[f"{section}.database_url"] = create_engine(
                url.render_as_string(hide_password=False), pool_size=1, lock_wait_s=3,
                tls=database_context(section, service),
            ).execution_options(isolation_level="AUTOCOMMIT")  # fmt: skip
    watch = Watch(servers, databases)
    try:
        await watch.try_once()
        yield watch
    finally:
        for server in servers.values():
            await server.dispose()
