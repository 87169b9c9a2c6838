"""Waiting for results: one poll for all waiters, however many requests wait for however many orders."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from seckill.domain.errors import AdmissionUnavailable
from seckill.domain.order import OrderId
from seckill.domain.outcomes import OrderResult, OrderStatus

log = structlog.get_logger(__name__)

POLL_EVERY_MS = 20
"""Time between two polls; longer when a poll itself takes longer, so that polling takes at most half of the time."""

WAITERS_MAX = 10_000
"""Requests that may wait at once; those above it are answered with what is known now."""

LookUp = Callable[[Sequence[OrderId]], Awaitable[dict[OrderId, OrderResult]]]


class ResultWatch:
    """Polls `look_up` for all orders that someone waits for; runs only while someone does."""

    def __init__(self, look_up: LookUp) -> None:
        self._look_up = look_up
        self._waiters: dict[asyncio.Future[OrderResult], OrderId] = {}
        self._polling: asyncio.Task[None] | None = None
        self._stopped = False

    async def wait(self, order_id: OrderId, *, timeout_ms: int) -> OrderResult | None:
        """The first result that is not PROCESSING, or what is known when the time is up (None: nothing)."""
        if len(self._waiters) < WAITERS_MAX and not self._stopped:
            future: asyncio.Future[OrderResult] = asyncio.get_running_loop().create_future()
            self._waiters[future] = order_id
            if self._polling is None:
                self._polling = asyncio.create_task(self._poll(), name="result-watch")
            try:
                async with asyncio.timeout(timeout_ms / 1_000):
                    return await future
            except TimeoutError:
                pass  # the answer below is as of now
            finally:
                self._waiters.pop(future, None)
        return (await self._look_up([order_id])).get(order_id)

    def stop(self) -> None:
        """From now on nobody waits: whoever does is answered with what is known."""
        self._stopped = True
        for future in self._waiters:
            if not future.done():
                future.set_exception(TimeoutError())

    async def close(self) -> None:
        """Ends the polling; who still waits gets what is known when the time is up."""
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait([self._polling])
            self._polling = None

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiters:
                started = loop.time()
                try:
                    self._wake(await self._look_up(list(set(self._waiters.values()))))
                except AdmissionUnavailable as error:
                    log.warning("result_poll_failed", error=str(error), waiters=len(self._waiters))
                await asyncio.sleep(max(POLL_EVERY_MS / 1_000, loop.time() - started))
        finally:
            self._polling = None

    def _wake(self, results: dict[OrderId, OrderResult]) -> None:
        for future, order_id in self._waiters.items():
            result = results.get(order_id)
            if result is not None and result.status is not OrderStatus.PROCESSING and not future.done():
                future.set_result(result)
