"""Writing records: acknowledged by all in-sync replicas, idempotent, bounded in time.

A time-out is unknown, never a failure: the record may be in the topic.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from seckill.crashpoints import CrashPoint, reach
from seckill.domain.errors import PublishUnknown, RecordTooLarge
from seckill.domain.order import Order
from seckill.draining import Drain
from seckill.messaging.connection import connection, start
from seckill.messaging.envelope import Headers, encode
from seckill.messaging.topics import LETTER_BYTES_MAX, require_topics
from seckill.settings import KafkaSettings

log = structlog.get_logger()


class Publisher:
    """Publishes orders to the topic, and any record to any topic. Made by `open_publisher`."""

    def __init__(self, producer: AIOKafkaProducer, settings: KafkaSettings) -> None:
        self._producer = producer
        self._settings = settings

    async def publish(self, order: Order) -> None:
        """Returns once Kafka has acknowledged the order (`acks=all`). Raises PublishUnknown."""
        await self.send(self._settings.topic, key=order.order_id.encode(), value=encode(order))
        reach(CrashPoint.PUBLISHED)

    async def send(self, topic: str, *, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        """Returns once Kafka has acknowledged the record. Raises PublishUnknown, and RecordTooLarge."""
        try:
            async with asyncio.timeout(self._settings.request_timeout_ms / 1000):
                sent = await self._producer.send(topic, key=key, value=value, headers=list(headers))
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
                await self._producer.client.fetch_all_metadata()
        except TimeoutError as error:
            raise PublishUnknown(self._settings.bootstrap, "no answer in time") from error
        except KafkaError as error:
            raise PublishUnknown(self._settings.bootstrap, f"{type(error).__name__}: {error}") from error


@asynccontextmanager
async def open_publisher(settings: KafkaSettings, drain: Drain | None = None) -> AsyncIterator[Publisher]:
    """A connected publisher; on leaving it sends what is buffered, in the time that `drain` gives.

    Raises PublishUnknown when no broker answers.
    """
    producer = AIOKafkaProducer(
        **connection(settings),
        acks="all",
        enable_idempotence=True,
        linger_ms=settings.linger_ms,
        request_timeout_ms=settings.request_timeout_ms,
        max_request_size=settings.record_bytes_max + LETTER_BYTES_MAX,
    )
    try:
        await start(producer, settings)
    except PublishUnknown:
        await _stop(producer)
        raise
    try:
        yield Publisher(producer, settings)
    finally:
        request_s = settings.request_timeout_ms / 1000
        await _stop(producer, within_s=drain.closing_s(request_s) if drain else request_s)


async def _stop(producer: AIOKafkaProducer, *, within_s: float = 2.0) -> None:
    """Flushes and closes; `stop()` can hang while Kafka is down, so it is bounded."""
    try:
        async with asyncio.timeout(within_s):
            await producer.stop()
    except (TimeoutError, KafkaError) as error:
        log.warning("producer_stop_incomplete", error=str(error) or type(error).__name__)
