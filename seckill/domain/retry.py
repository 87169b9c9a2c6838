"""Whether to try again: a value, decided without I/O from the attempt and the error's type."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from seckill.domain.errors import SeckillError
from seckill.domain.reasons import DeadLetterReason


@dataclass(frozen=True, slots=True)
class Retry:
    delay_ms: int


@dataclass(frozen=True, slots=True)
class Dead:
    reason: DeadLetterReason


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with full jitter (M. Brooker, "Exponential Backoff And Jitter", AWS, 2015), bounded."""

    attempts_max: int
    base_ms: int
    cap_ms: int
    jitter: random.Random = field(default_factory=random.Random, compare=False)

    def decide(self, *, attempt: int, error: Exception) -> Retry | Dead:
        """`attempt` counts from 1 and is the one that just failed with `error`."""
        if not isinstance(error, SeckillError):
            return Dead(DeadLetterReason.UNEXPECTED)
        if not error.retryable or attempt >= self.attempts_max:
            return Dead(error.dead_letter_reason)
        ceiling_ms = min(self.cap_ms, self.base_ms * 2 ** (attempt - 1))
        return Retry(self.jitter.randint(ceiling_ms // 2, ceiling_ms))
