"""Writing records: acknowledged by all in-sync replicas, idempotent, bounded in time.

A time-out is unknown, never a failure: the record may be in the topic.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidProducerEpoch,
    KafkaError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    UnknownProducerId,
)

from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import PublishUnknown, RecordTooLarge
from seckill.domain.order import Order
from seckill.draining import Drain
from seckill.messaging.clients import ended_task_of, make_producer
from seckill.messaging.connection import start
from seckill.messaging.envelope import Headers, encode
from seckill.messaging.topics import LETTER_BYTES_MAX, require_topics
from seckill.settings import KafkaSettings

log = structlog.get_logger()


_SEQUENCE_LOST = (
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    InvalidProducerEpoch,
    ProducerFenced,
    UnknownProducerId,
)
"""Answers of a broker after which it takes nothing more from this producer, on one partition or on all. The first: the
client has counted the record that was refused, the broker has not, so that whatever comes next is out of order.
"""


class Publisher:
    """Publishes orders to the topic, and any record to any topic. Made by `open_publisher`."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer
        self._spent = ""  # why the producer is of no use any more
        self._replacing: asyncio.Task[None] | None = None
        self._stopping: set[asyncio.Task[None]] = set()  # those that were replaced

    async def start(self) -> None:
        """Raises PublishUnknown when no broker answers."""
        self._producer = await _started(self._settings)

    async def stop(self, *, within_s: float) -> None:
        """Sends what is buffered, if that is done in time."""
        if self._replacing is not None:
            self._replacing.cancel()
            await asyncio.wait({self._replacing}, timeout=within_s)
        await asyncio.gather(_stop(self._producer, within_s=within_s), *self._stopping)

    async def publish(self, order: Order) -> None:
        """Returns once Kafka has acknowledged the order (`acks=all`). Raises PublishUnknown."""
        await self.send(self._settings.topic, key=order.order_id.encode(), value=encode(order))
        reach(CrashPoint.PUBLISHED)

    async def send(self, topic: str, *, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        """Returns once Kafka has acknowledged the record. Raises PublishUnknown, and RecordTooLarge."""
        try:
            async with asyncio.timeout(self._settings.request_timeout_ms / 1000):
                producer = await self._usable()
                sent = await producer.send(topic, key=key, value=value, headers=list(headers))
                sent.add_done_callback(partial(self._note, producer))
                # Shielded: a caller that stops waiting must not cancel a record that is on its way.
                await asyncio.shield(sent)
        except TimeoutError as error:
            limit_ms = self._settings.request_timeout_ms
            raise PublishUnknown(self._settings.bootstrap, f"no acknowledgement within {limit_ms} ms") from error
        except MessageSizeTooLargeError as error:
            raise RecordTooLarge(topic, len(value or b"")) from error
        except KafkaError as error:
            raise PublishUnknown(self._settings.bootstrap, f"{type(error).__name__}: {error}") from error

    async def require_topics(self, names: Mapping[str, str]) -> None:
        """Raises TopicMissing, and PublishUnknown when no broker answers; `names` are topics by their settings."""
        await require_topics(self._producer.client, self._settings.bootstrap, names)

    async def check(self) -> None:
        """Raises PublishUnknown when no broker answers."""
        try:
            async with asyncio.timeout(self._settings.request_timeout_ms / 1000):
                producer = await self._usable()
                await producer.client.fetch_all_metadata()
        except TimeoutError as error:
            raise PublishUnknown(self._settings.bootstrap, "no answer in time") from error
        except KafkaError as error:
            raise PublishUnknown(self._settings.bootstrap, f"{type(error).__name__}: {error}") from error

    # --- a producer that is of no use any more ---------------------------------------------------------------------

    def _note(self, producer: AIOKafkaProducer, sent: asyncio.Future[Any]) -> None:
        error = None if sent.cancelled() else sent.exception()
        if isinstance(error, _SEQUENCE_LOST) and producer is self._producer:
            self._spent = f"{type(error).__name__}: {error}"

    async def _usable(self) -> AIOKafkaProducer:
        """The producer, or another one for it. Raises PublishUnknown."""
        self._spent = self._spent or ended_task_of(self._producer)
        if self._spent:
            self._replacing = self._replacing or asyncio.create_task(self._replace())
            await asyncio.shield(self._replacing)  # it is everybody's
            if self._spent:
                raise PublishUnknown(self._settings.bootstrap, self._spent)
        return self._producer

    async def _replace(self) -> None:
        spent, why = self._producer, self._spent
        try:
            self._producer = await _started(self._settings)
        except PublishUnknown as error:
            log.warning("producer_not_replaced", why=why, error=str(error))
            return
        finally:
            self._replacing = None
        self._spent = ""
        log.warning("producer_replaced", why=why)
        stopping = asyncio.create_task(_stop(spent))
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)


@asynccontextmanager
async def open_publisher(settings: KafkaSettings, drain: Drain | None = None) -> AsyncIterator[Publisher]:
    """A connected publisher; on leaving it sends what is buffered, in the time that `drain` gives.

    Raises PublishUnknown when no broker answers.
    """
    publisher = Publisher(settings)
    await publisher.start()
    try:
        yield publisher
    finally:
        request_s = settings.request_timeout_ms / 1000
        await publisher.stop(within_s=drain.closing_s(request_s) if drain else request_s)


async def _started(settings: KafkaSettings) -> AIOKafkaProducer:
    producer = make_producer(
        settings,
        acks="all",
        enable_idempotence=True,
        linger_ms=settings.linger_ms,
        request_timeout_ms=settings.request_timeout_ms,
        max_request_size=settings.record_bytes_max + LETTER_BYTES_MAX,
    )
    try:
        await start(producer, settings)
    except BaseException:
        await _stop(producer)
        raise
    return producer


async def _stop(producer: AIOKafkaProducer, *, within_s: float = 2.0) -> None:
    """Flushes and closes; `stop()` can hang while Kafka is down, so it is bounded."""
    try:
        async with asyncio.timeout(within_s):
            await producer.stop()
    except (TimeoutError, KafkaError, RuntimeError) as error:  # the last: what one of its tasks has died of
        log.warning("producer_stop_incomplete", error=str(error) or type(error).__name__)
