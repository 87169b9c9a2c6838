"""The dead-letter tool: what opens its desk, and the role that keeps its index and answers over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TypeVar

from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession

from consumers.dead_letter import KeeperLimits, LetterKeeper
from seckill.admission import open_admission
from seckill.audit.stores import open_stores
from seckill.audit.timeline import Event, order_events
from seckill.checkout.reservations import Reservations
from seckill.clients import open_channel
from seckill.dlq.desk import DeskStores, LetterDesk
from seckill.dlq.finishing import Finisher, InTransaction
from seckill.dlq.http_api import LettersApi, create_letters_app
from seckill.dlq.metrics import show_letters
from seckill.dlq.model import Filter
from seckill.dlq.topic import LetterTopic
from seckill.doctor.start import (
    DatabaseUnavailable,
    opening_database,
    refuse_strangers_of_front,
    require_database,
)
from seckill.domain.order import Sale
from seckill.draining import Drain
from seckill.dtm.barrier import Raced, in_transaction
from seckill.dtm.database import create_engine, session_factory
from seckill.front.product_client import ProductClient
from seckill.messaging.consumer import open_consumer
from seckill.messaging.envelope import Record
from seckill.messaging.publisher import open_publisher
from seckill.messaging.reading import Kept, read_at, read_since
from seckill.ops import Readiness, serve_http
from seckill.schema import require, setting_of
from seckill.security import database_context
from seckill.settings import Settings
from seckill.wiring.role import Role

T = TypeVar("T")

INDEX = "dead_letters"


@asynccontextmanager
async def open_letter_desk(settings: Settings, drain: Drain | None = None) -> AsyncIterator[LetterDesk]:
    """The desk on the stores of the settings; Redis and product are connected to when they are first needed.

    Raises DatabaseUnavailable, SchemaOutdated, PublishUnknown and TopicMissing.
    """
    kafka = settings.kafka
    async with AsyncExitStack() as stack:
        do = await stack.enter_async_context(_open_index(settings))
        publisher = await stack.enter_async_context(open_publisher(kafka, drain))
        await publisher.require_topics({"kafka.topic": kafka.topic, "kafka.dead_letter_topic": kafka.dead_letter_topic})
        admission = await stack.enter_async_context(open_admission(settings.redis, settings.ledger))
        channel = await stack.enter_async_context(open_channel(settings.product.grpc, settings.tls))
        address = settings.product.grpc
        reservations = Reservations(channel, address=address, timeout_ms=settings.dtm.request_timeout_ms)
        topic = LetterTopic(partial(read_at, kafka), main_topic=kafka.topic)
        stores = DeskStores(
            reservations=reservations,
            parked=admission.parked,
            current_sale=partial(_current_sale, ProductClient(channel, address=address)),
            tell=partial(_tell, settings),
            read_all=partial(_read_all, settings),
        )
        finisher = Finisher(
            in_transaction=do,
            topic=topic,
            reservations=reservations,
            parked=admission.parked,
            publisher=publisher,
            main_topic=kafka.topic,
        )
        yield LetterDesk(
            do,
            topic,
            stores,
            finisher,
            topic_name=kafka.dead_letter_topic,
            replays_max=settings.dead_letters.replays_max,
        )


@asynccontextmanager
async def _open_index(settings: Settings) -> AsyncIterator[InTransaction]:
    """Transactions of the dead-letter database, which has the newest schema."""
    section = settings.dead_letters
    url = section.database_url.get_secret_value()
    engine = create_engine(
        url, pool_size=section.pool_size, lock_wait_s=section.lock_wait_s, tls=database_context(INDEX, section)
    )
    sessions = session_factory(engine)

    async def do(work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        try:
            async with opening_database(setting_of(INDEX), url):
                return await in_transaction(sessions, work)
        except (PoolTimeout, Raced) as error:  # it stalls, or others are always quicker: both may pass
            detail = f"it was waited for in vain ({type(error).__name__})"
            raise DatabaseUnavailable(setting_of(INDEX), url, detail) from error

    try:
        async with opening_database(setting_of(INDEX), url):
            await require(INDEX, engine)
        yield do
    finally:
        await engine.dispose()


async def _current_sale(products: ProductClient, product_id: int) -> Sale | None:
    return next(iter(await products.list_sales(product_id=product_id)), None)


async def _tell(settings: Settings, order_id: str) -> Sequence[Event]:
    async with open_stores(settings) as stores:
        return await order_events(stores, order_id)


async def _read_all(settings: Settings, take: Callable[[Sequence[Record]], Awaitable[None]]) -> None:
    async def records_of(kept: Sequence[Kept]) -> None:
        await take([each.record for each in kept])

    await read_since(settings.kafka, settings.kafka.dead_letter_topic, 0, records_of)


@asynccontextmanager
async def open_dead_letters(settings: Settings, drain: Drain | None = None) -> AsyncIterator[Role]:
    """The index of the dead-letter topic, kept, and the letters' HTTP API. Redis and product may come later.

    Raises DatabaseUnavailable, SchemaOutdated, PublishUnknown, TopicMissing and Unfit.
    """
    drain = drain or Drain(settings.dead_letters.drain_timeout_ms)
    section = settings.dead_letters
    await require_database(INDEX, section.database_url.get_secret_value(), section)
    await refuse_strangers_of_front(settings)
    async with AsyncExitStack() as stack:
        desk = await stack.enter_async_context(open_letter_desk(settings, drain))
        kafka = settings.kafka
        consumer = await stack.enter_async_context(open_consumer(kafka, drain, group=kafka.dead_letter_group))
        limits = KeeperLimits(section.look_every_ms, settings.worker.poll_timeout_ms, kafka.request_timeout_ms)
        keeper = LetterKeeper(consumer, desk, limits, after_look=partial(show_letters, desk))
        readiness = Readiness(INDEX, {"database": partial(_check_index, desk)})
        drain.when_begun(readiness.stop)
        api = LettersApi(
            desk, readiness, section.operator_token, section.replays_per_s, body_bytes_max=kafka.record_bytes_max
        )
        http = await stack.enter_async_context(serve_http(create_letters_app(api), section.http, drain=drain))
        task = asyncio.create_task(keeper.run(kafka.dead_letter_topic), name=INDEX)
        try:
            yield Role(INDEX, {"dead_letters.http": http}, drain, task)
        finally:
            drain.begin()
            keeper.stop()
            _, unfinished = await asyncio.wait({task}, timeout=drain.work_left_s())
            if unfinished:  # it may be cut off anywhere: what is not committed is read again, what was begun resumed
                task.cancel()
                await asyncio.wait({task})


async def _check_index(desk: LetterDesk) -> None:
    await desk.find(Filter(limit=1))
