"""Who is turned away before admission, at the cost of a few comparisons: no call of Redis or Kafka is made for it.

Too many requests of a buyer, or of all; more orders under way than the front carries; and orders that could not be
published, because Kafka is slow or known to be down: admitted, they would only be told that they are pending, and tie
up units that nobody gets.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from seckill.circuits import Breaker
from seckill.domain.circuit import CircuitState
from seckill.domain.outcomes import Refused
from seckill.domain.reasons import Refusal
from seckill.front.limits import RateLimits
from seckill.front.metrics import TURNED_AWAY


@dataclass(frozen=True, slots=True)
class Load:
    """What a front has in hand: orders in one of its steps, and how long the oldest of them has waited for Kafka."""

    orders: int
    oldest_publish_s: float


@dataclass(frozen=True, slots=True)
class Down:
    """Redis or Kafka is known to be down: nothing was tried."""

    dependency: str


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """`orders_max`: under way at once; `publish_stalled_ms`: nobody is let in while one waits longer for Kafka."""

    orders_max: int
    publish_stalled_ms: int


class Door:
    """`kafka` and `redis`: callers report to them what became of their calls. `close` ends their probing."""

    def __init__(self, rates: RateLimits, limits: DoorLimits, *, kafka: Breaker, redis: Breaker) -> None:
        self._rates = rates
        self._limits = limits
        self.kafka = kafka
        self.redis = redis

    def turned_away(self, user_id: int, load: Load) -> Refused | Down | None:
        """Why this order goes no further; None: it may."""
        if exceeded := self._rates.take(user_id, time.monotonic_ns()):
            return _refused(exceeded, "user_rate" if exceeded is Refusal.RATE_LIMITED else "rate")
        for breaker in (self.redis, self.kafka):
            if breaker.state is CircuitState.OPEN or (breaker.state is CircuitState.HALF_OPEN and load.orders):
                TURNED_AWAY.labels(f"{breaker.dependency}_down").inc()
                return Down(breaker.dependency)
        if load.orders >= self._limits.orders_max:
            return _refused(Refusal.OVERLOADED, "under_way")
        if load.oldest_publish_s * 1_000 > self._limits.publish_stalled_ms:
            return _refused(Refusal.OVERLOADED, "publish_stalled")
        return None

    async def check(self) -> None:
        """For readiness: raises CircuitOpen while nobody is let in."""
        await asyncio.gather(self.redis.check(), self.kafka.check())

    async def close(self) -> None:
        await asyncio.gather(self.redis.close(), self.kafka.close())


def _refused(code: Refusal, why: str) -> Refused:
    TURNED_AWAY.labels(why).inc()
    return Refused(code)
