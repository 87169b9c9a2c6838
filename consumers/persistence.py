"""Steps that are repeated until they are done: routing is never given up, only cut off by a stop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from seckill.domain.errors import SeckillError

log = structlog.get_logger()

T = TypeVar("T")


async def until_done(step: Callable[[], Awaitable[T]]) -> T:
    """Repeats an idempotent step until Redis or Kafka takes it. Raises only what trying again cannot mend."""
    retrying = AsyncRetrying(
        wait=wait_random_exponential(multiplier=0.1, max=5),
        retry=retry_if_exception(lambda error: isinstance(error, SeckillError) and error.retryable),
        before_sleep=_log_wait,
    )
    async for attempt in retrying:
        with attempt:
            return await step()
    raise AssertionError("unreachable: the retrying above has no end")


def _log_wait(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("routing_waits", attempt=state.attempt_number, error=str(error))
