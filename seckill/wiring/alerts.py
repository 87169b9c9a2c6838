"""The role that tells people what does not heal by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from consumers.alert import AlertWatch
from seckill.alerts.audits import Auditor
from seckill.alerts.book import AlertBook
from seckill.alerts.courier import Patience
from seckill.alerts.engine import Pace
from seckill.alerts.findings import Thresholds
from seckill.alerts.readers import LagReader, LetterReader, TransactionReader, clock_ms
from seckill.alerts.scrape import Place, RoleMetrics
from seckill.alerts.snapshot import Source
from seckill.alerts.sources import Reader, Sources
from seckill.alerts.targets import AppriseTarget, UnknownTarget
from seckill.alerts.targets import open_targets as targets_of
from seckill.audit.live import audit
from seckill.audit.reading import Scope, Walk
from seckill.audit.rules import Verdict
from seckill.audit.stores import open_stores
from seckill.client import front_url
from seckill.clients import open_dtm
from seckill.doctor.examine import longest_retry_ms
from seckill.doctor.start import opening_database, require_database
from seckill.draining import Drain
from seckill.dtm.database import create_engine, session_factory
from seckill.dtm.health import check_database
from seckill.messaging.retry_topics import retry_tiers
from seckill.ops import Readiness, serve_ops
from seckill.schema import require
from seckill.security import database_context, front_context
from seckill.settings import AlertSettings, RetrySettings, Settings, SettingsError
from seckill.wiring.role import Role

READ_WITHIN_S = 10.0
"""What a source has for its part of a look."""

KAFKA_WITHIN_MS = 3_000
"""What each of the three questions to Kafka has of that: one for each group."""

AUDIT_WITHIN_S = 900.0
AUDIT_PAUSE_S = 2.0
SLOW_AFTER_MS_MIN = 300_000
RESULTS_AT_ONCE = 50_000
"""As `seckill audit`; of what buyers are told, one audit compares so much, and the next one goes on there."""


def open_targets(settings: AlertSettings) -> list[AppriseTarget]:
    """Whom the settings name. Raises SettingsError, which shows no URL."""
    try:
        return targets_of([url.get_secret_value() for url in settings.targets])
    except UnknownTarget as error:
        raise SettingsError(str(error)) from error


def thresholds_of(settings: AlertSettings) -> Thresholds:
    return Thresholds(
        letters_per_minute_max=settings.letters_per_minute_max,
        retry_backlog_max=settings.retry_backlog_max,
        lag_max=settings.lag_max,
        branch_attempts_max=settings.branch_attempts_max,
        stuck_after_ms=settings.stuck_after_ms,
    )


def slow_after_ms(retry: RetrySettings) -> int:
    """From when on a pending order is told as slow: not while it only waits for its next attempt."""
    return max(SLOW_AFTER_MS_MIN, longest_retry_ms(retry))


def metrics_places(settings: Settings) -> list[Place]:
    """Every role's metrics: those that the settings name, else all that their sections name.

    In the embedded profile all roles are one process, which shows the same metrics everywhere.
    """
    if settings.alerts.metrics_from:
        return [Place(address, address) for address in settings.alerts.metrics_from]
    worker = Place("worker", settings.worker.ops)
    if settings.profile == "embedded":
        return [worker]
    return [
        Place("front", front_url(settings.front.http, https=settings.front.https)),
        Place("product", settings.product.ops),
        Place("order", settings.order.ops),
        worker,
        Place("reconcile", settings.reconcile.ops),
        Place("dead-letters", settings.dead_letters.http),
        # Of the name that its transactions are asked under: who is silent for both is told once. A DTM server shows its
        # metrics elsewhere.
        Place(Source.TRANSACTIONS.value, settings.dtm.http, dispensable=True),
    ]


@asynccontextmanager
async def open_sources(settings: Settings, sessions: async_sessionmaker[AsyncSession]) -> AsyncIterator[Sources]:
    """Everything that is looked at; it connects with the first look."""
    kafka = settings.kafka.model_copy(
        update={"request_timeout_ms": min(KAFKA_WITHIN_MS, settings.kafka.request_timeout_ms)}
    )
    scope = Scope(results=Walk(RESULTS_AT_ONCE))  # kept, so that each audit goes on where the last one stopped

    async def audited() -> Verdict:
        async with open_stores(settings) as stores:
            await stores.admission.sales.check()
            return await audit(stores, scope, pause_s=AUDIT_PAUSE_S, slow_after_ms=slow_after_ms(settings.retry))

    every_ms = settings.alerts.audit_every_ms
    auditor = Auditor(audited, every_ms=every_ms, within_s=AUDIT_WITHIN_S, clock_ms=clock_ms)
    async with open_dtm(settings) as client, aclosing(auditor):
        readers: dict[Source, Reader] = {
            Source.LETTERS: LetterReader(sessions),
            Source.LAG: LagReader(kafka, retry_tiers(settings.kafka, settings.retry)),
            Source.TRANSACTIONS: TransactionReader(client, first_interval_s=settings.dtm.retry_interval_s),
            Source.ROLES: RoleMetrics(
                metrics_places(settings), tls=front_context(settings.front), within_s=READ_WITHIN_S / 2
            ),
            Source.AUDIT: auditor,
        }
        yield Sources(readers, within_s=READ_WITHIN_S)


@asynccontextmanager
async def open_letter_sessions(settings: Settings) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    """Sessions on the database of dead letters. Raises DatabaseUnavailable, Unfit and SchemaOutdated."""
    section = settings.dead_letters
    url = section.database_url.get_secret_value()
    await require_database("dead_letters", url, section)
    tls = database_context("dead_letters", section)
    engine = create_engine(url, pool_size=2, lock_wait_s=section.lock_wait_s, tls=tls)
    try:
        async with opening_database("dead_letters.database_url", url):
            await require("dead_letters", engine)
        yield session_factory(engine)
    finally:
        await engine.dispose()


@asynccontextmanager
async def open_alerts(settings: Settings, drain: Drain | None = None) -> AsyncIterator[Role]:
    """Raises DatabaseUnavailable, Unfit and SchemaOutdated for the database of dead letters, and SettingsError.

    Nothing else has to answer at start: telling who is down is what this role is for.
    """
    drain = drain or Drain(settings.alerts.drain_timeout_ms)
    targets = open_targets(settings.alerts)
    async with AsyncExitStack() as stack:
        sessions = await stack.enter_async_context(open_letter_sessions(settings))
        sources = await stack.enter_async_context(open_sources(settings, sessions))
        watch = _watch(settings.alerts, sources, AlertBook(sessions), targets)
        await watch.load()
        readiness = Readiness("alerts", {"database": lambda: check_database(sessions)})
        drain.when_begun(readiness.stop)
        ops = await stack.enter_async_context(serve_ops(settings.alerts.ops, readiness, drain))
        looking = asyncio.create_task(watch.run(), name="alerts")
        delivering = asyncio.create_task(watch.deliver(), name="alerts-delivery")
        either = asyncio.create_task(_first_to_end(looking, delivering), name="alerts-either")
        try:
            yield Role("alerts", {"alerts.ops": ops}, drain, either)
        finally:
            either.cancel()
            drain.begin()
            watch.stop()
            looking.cancel()  # it may be cut off anywhere: the next look sees what this one would have
            _, unfinished = await asyncio.wait({looking, delivering}, timeout=drain.work_left_s())
            for task in unfinished:  # what a target has not taken by now is written down as such
                task.cancel()
            if unfinished:
                await asyncio.wait(unfinished)


async def _first_to_end(*tasks: asyncio.Task[None]) -> None:
    """Ends as the first of them does."""
    ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        task.result()


def _watch(settings: AlertSettings, sources: Sources, book: AlertBook, targets: Sequence[AppriseTarget]) -> AlertWatch:
    return AlertWatch(
        sources.look,
        targets=targets,
        book=book,
        thresholds=thresholds_of(settings),
        pace=Pace(settings.quiet_period_ms, settings.resolved_after_ms),
        patience=Patience(waiting_max=settings.queue_max, slow_after_ms=settings.send_timeout_ms),
        every_ms=settings.every_ms,
        clock_ms=clock_ms,
    )
