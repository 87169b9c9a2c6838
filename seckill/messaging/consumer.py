"""A consumer of a group, set so that it stays a member while its worker waits, and ends within a bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from aiokafka import AIOKafkaConsumer

from seckill.domain.errors import PublishUnknown
from seckill.draining import Drain
from seckill.messaging.clients import make_consumer
from seckill.messaging.connection import start
from seckill.settings import KafkaSettings

log = structlog.get_logger()

STOP_LIMITS_S = (5, 1, 1)

UNPOLLED_MS_MAX = 2**31 - 1
"""How long a consumer may not poll before it leaves the group: as good as for ever."""

REJOIN_MARGIN_MS = 5_000
"""How much longer than a session a consumer waits for an answer of the group, as Kafka's own client does."""


@asynccontextmanager
async def open_consumer(
    settings: KafkaSettings, drain: Drain | None = None, *, group: str | None = None
) -> AsyncIterator[AIOKafkaConsumer]:
    """A started consumer of the group (by default the one of the main topic), subscribed to nothing yet.

    Raises PublishUnknown when no broker answers.
    """
    consumer = make_consumer(
        settings,
        group_id=group or settings.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        # A JoinGroup is answered once every member has come back or its session is over. Giving up before that would
        # join again as yet another member, and put off the end of the rebalance for ever.
        request_timeout_ms=max(settings.request_timeout_ms, settings.session_timeout_ms + REJOIN_MARGIN_MS),
        session_timeout_ms=settings.session_timeout_ms,
        heartbeat_interval_ms=settings.session_timeout_ms // 10,
        # A worker that waits for a dead dependency with its hands full does not poll, and is alive all the same. Had it
        # left the group for that, aiokafka would want a poll before it joins again, and the worker an assignment.
        max_poll_interval_ms=UNPOLLED_MS_MAX,
        rebalance_timeout_ms=settings.session_timeout_ms,
    )
    try:
        await start(consumer, settings)
    except PublishUnknown:
        await _stop_consumer(consumer)
        raise
    try:
        yield consumer
    finally:
        await _stop_consumer(consumer, drain)


async def _stop_consumer(consumer: AIOKafkaConsumer, drain: Drain | None = None) -> None:
    """Leaves the group. `stop()` can hang while Kafka is down or forms the group, so it is bounded.

    It takes one cancellation for the end of its joining and goes on to leave, so that it may need a second one.
    """
    stopping = asyncio.create_task(consumer.stop())
    for limit_s in STOP_LIMITS_S:
        await asyncio.wait({stopping}, timeout=drain.closing_s(limit_s) if drain else limit_s)
        if stopping.done():
            break
        stopping.cancel()
    if not stopping.done() or stopping.cancelled():
        log.warning("consumer_stop_incomplete", error="no answer in time")
    elif error := stopping.exception():
        log.warning("consumer_stop_incomplete", error=f"{type(error).__name__}: {error}")
