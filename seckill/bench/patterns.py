"""The transaction patterns beside each other: the same orders through each, so many global transactions at a time.

What is measured is the checkout as the worker has it, over gRPC to product and order roles of their own and to the
coordinator. Kafka, admission and settling are the same for every pattern, and left out. After the last cell it is
counted in both databases whether the orders came to what the checkout said.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog
from pydantic import SecretStr
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from seckill.bench.backlog import with_overrides
from seckill.bench.holding import Watch, held_so_far, open_watch
from seckill.bench.pattern_figures import Cell, CellResult, PatternsResult, planned, weighed
from seckill.bench.pattern_load import Accounts, Buyers, run_load
from seckill.bench.roles import free_addresses, running_role
from seckill.checkout.plan import Checkout
from seckill.checkout.prepared import PreparedBranches
from seckill.checkout.reservations import Reservations
from seckill.doctor.start import require_database
from seckill.domain.errors import CoordinatorUnavailable
from seckill.dtm.client import DtmClient
from seckill.dtm.database import MYSQL, create_engine
from seckill.dtm.errors import CallFailed
from seckill.front.product_client import ProductClient
from seckill.schema import upgrade
from seckill.security import database_context
from seckill.settings import Settings
from seckill.wiring import open_channel, open_dtm, with_values
from seckill.wiring.checkout import checkout_of

ADDRESSES = ("product.grpc", "product.ops", "order.grpc", "order.ops", "coordinator.grpc", "coordinator.http")
SERVICES = ("product", "order")

log = structlog.get_logger()

WARM_UP_S = 0.3
WARM_UP_MAX = 8
"""Before each cell so many transactions at a time, at most: connections are made, statements are compiled."""

COUNT_TIMEOUT_S = 60
"""For counting the rows of orders, of which a database may hold many."""


@dataclass(frozen=True, slots=True)
class PatternsOptions:
    """`groups`: also groups of worker.batch_max orders, where a pattern has them."""

    patterns: Sequence[str]
    concurrencies: Sequence[int]
    products: Sequence[int]
    seconds: float  # of each cell
    groups: bool = True
    own_coordinator: bool = False


@dataclass(frozen=True, slots=True)
class Bench:
    """What a cell is measured with."""

    checkouts: Mapping[str, Checkout]
    accounts: Accounts
    watch: Watch
    ops: Sequence[str]

    async def measure(self, cell: Cell, *, seconds: float) -> CellResult:
        buyers = Buyers(await self.accounts.open_sales(cell.products))
        checkout = self.checkouts[cell.pattern]
        warm_up = replace(cell, concurrency=min(cell.concurrency, WARM_UP_MAX))
        warmed = await run_load(checkout, buyers, warm_up, seconds=WARM_UP_S)
        warmed.require_confirmed(warm_up)
        self.accounts.add(warmed)
        before = await held_so_far(self.ops)
        async with self.watch.looking() as looks:
            load = await run_load(checkout, buyers, cell, seconds=seconds)
        held = await held_so_far(self.ops) - before
        self.accounts.add(load)
        if load.unfinished:
            await self.accounts.at_rest()  # what is still held would count, and hinder, in the next cell
        return CellResult(
            cell,
            seconds=load.seconds,
            confirmed=load.confirmed,
            not_confirmed=load.why,
            latencies_ms=load.latencies_ms,
            held=held,
            transactions=weighed(looks),
        )


async def run_patterns(
    settings: Settings,
    options: PatternsOptions,
    result: PatternsResult,
    *,
    config: Path | None = None,
    measured: Callable[[CellResult], None],
) -> None:
    """Fills `result` cell by cell. Raises RoleFailed, DatabaseUnavailable, CoordinatorUnavailable, MetricsUnread, and
    the error of an order when none at all is confirmed before a cell.
    """
    async with AsyncExitStack() as stack:
        settings = await _open_roles(stack, settings, options, config)
        bench = await stack.enter_async_context(_open_bench(settings, options))
        result.blind = bench.watch.blind
        group = settings.worker.batch_max if options.groups else 1
        for cell in planned(
            options.patterns,
            options.concurrencies,
            options.products,
            group=group,
            inflight_max=settings.worker.inflight_max,
        ):
            result.cells.append(await bench.measure(cell, seconds=options.seconds))
            log.info("cell_measured", **asdict(cell))
            measured(result.cells[-1])
        result.sums = await bench.accounts.sums()


def left_out(settings: Settings, patterns: Sequence[str]) -> dict[str, str]:
    """The patterns that these databases do not have, and why."""
    urls = [make_url(getattr(settings, name).database_url.get_secret_value()) for name in SERVICES]
    if "xa" in patterns and any(url.get_backend_name() not in MYSQL for url in urls):
        return {"xa": "XA transactions need MySQL or MariaDB"}
    return {}


async def _open_roles(
    stack: AsyncExitStack, settings: Settings, options: PatternsOptions, config: Path | None
) -> Settings:
    """Product and order, and our coordinator where it is asked for; the settings that name them."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seckill-bench-")))
    addresses = free_addresses(ADDRESSES)
    own_coordinator = options.own_coordinator or settings.profile == "embedded"
    if own_coordinator:
        addresses |= {"dtm.grpc": addresses["coordinator.grpc"], "dtm.http": addresses["coordinator.http"]}
    names = (*(("coordinator",) if own_coordinator else ()), *SERVICES)
    urls: dict[str, str] = {}
    if settings.profile == "embedded":
        urls = await _make_databases(folder, names)
        settings = with_values(settings, {name: {"database_url": SecretStr(url)} for name, url in urls.items()})
    settings = with_overrides(settings, addresses)
    for name in names:
        section = getattr(settings, name)
        await require_database(name, section.database_url.get_secret_value(), section)
    overrides = addresses | {f"{name}.database_url": url for name, url in urls.items()}
    for name in names:
        await stack.enter_async_context(running_role(name, folder, config, overrides))
    return settings


async def _make_databases(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """SQLite files that last as long as the measurement."""
    urls = {name: f"sqlite+aiosqlite:///{folder / name}.db" for name in names}
    for name, url in urls.items():
        await upgrade(name, url)
    return urls


@asynccontextmanager
async def _open_bench(settings: Settings, options: PatternsOptions) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_dtm(settings))
        await _require_coordinator(client)
        product = await stack.enter_async_context(open_channel(settings.product.grpc, settings.tls))
        order = await stack.enter_async_context(open_channel(settings.order.grpc, settings.tls))
        timeout_ms = settings.dtm.request_timeout_ms
        reservations = Reservations(product, address=settings.product.grpc, timeout_ms=timeout_ms)
        prepared = PreparedBranches(
            product, order, product_address=settings.product.grpc, order_address=settings.order.grpc,
            timeout_ms=timeout_ms,
        )  # fmt: skip
        accounts = Accounts(
            ProductClient(product, address=settings.product.grpc),
            reservations,
            await stack.enter_async_context(_order_database(settings)),
            prepared if "xa" in options.patterns else None,
        )
        stack.push_async_callback(accounts.close_sales)
        checkouts = {
            pattern: checkout_of(
                _carrying(settings, pattern, options), client, reservations, product=product, order=order
            )
            for pattern in options.patterns
        }
        watch = await stack.enter_async_context(open_watch(settings))
        yield Bench(checkouts, accounts, watch, (settings.product.ops, settings.order.ops))


def _carrying(settings: Settings, pattern: str, options: PatternsOptions) -> Settings:
    """As for a worker of that pattern that lets every transaction begin at once."""
    return with_values(settings, {"transaction": {"pattern": pattern, "concurrency_max": max(options.concurrencies)}})


@asynccontextmanager
async def _order_database(settings: Settings) -> AsyncIterator[AsyncEngine]:
    url = settings.order.database_url.get_secret_value()
    tls = database_context("order", settings.order)
    engine = create_engine(url, pool_size=1, lock_wait_s=3, read_timeout_s=COUNT_TIMEOUT_S, tls=tls)
    try:
        yield engine
    finally:
        await engine.dispose()


async def _require_coordinator(client: DtmClient) -> None:
    try:
        await client.new_gid()
    except CallFailed as error:
        raise CoordinatorUnavailable(client.address, f"{error.code.name} {error.detail}") from None
