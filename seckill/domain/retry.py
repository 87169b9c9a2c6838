"""Whether to try again: a value, decided without I/O from the attempt, the tier and the error's type.

in place, after jittered pauses ─▶ tier 0 ─▶ in place ─▶ tier 1 ─▶ … ─▶ dead letter
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from seckill.domain.errors import SeckillError
from seckill.domain.reasons import DeadLetterReason

PIECES_MIN = 8
"""Into how many pieces, at least, a group is cut whose last attempt failed."""

TIER_JITTER = 0.1
"""Part of a tier's delay that jitter adds at most. Little, and never less than the delay: records of a partition wait
in line, and one behind a later one waits that much longer."""


@dataclass(frozen=True, slots=True)
class Retry:
    """In place, after a pause."""

    delay_ms: int


@dataclass(frozen=True, slots=True)
class Later:
    """In the retry topic of that tier, for so long."""

    tier: int
    delay_ms: int


@dataclass(frozen=True, slots=True)
class Dead:
    reason: DeadLetterReason


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """In place: exponential back-off with jitter, bounded (M. Brooker, "Exponential Backoff And Jitter", AWS, 2015).
    Then one tier after the other, each with a delay of `tier_delays_ms`.
    """

    attempts_max: int  # in place, of each delivery
    base_ms: int
    cap_ms: int
    tier_delays_ms: tuple[int, ...] = ()
    jitter: random.Random = field(default_factory=random.Random, compare=False)

    def decide(self, *, attempt: int, tier: int | None = None, error: Exception) -> Retry | Later | Dead:
        """`attempt` counts from 1 within this delivery and is the one that just failed with `error`; `tier` is where
        the record was read, None the main topic.
        """
        if not isinstance(error, SeckillError):
            return Dead(DeadLetterReason.UNEXPECTED)
        if not error.retryable:
            return Dead(error.dead_letter_reason)
        if attempt < self.attempts_max:
            ceiling_ms = min(self.cap_ms, self.base_ms * 2 ** (attempt - 1))
            return Retry(self.jitter.randint(ceiling_ms // 2, ceiling_ms))
        following = 0 if tier is None else tier + 1
        if following < len(self.tier_delays_ms):
            delay_ms = self.tier_delays_ms[following]
            return Later(following, delay_ms + self.jitter.randint(0, int(delay_ms * TIER_JITTER)))
        return Dead(error.dead_letter_reason)

    def piece_size(self, count: int, *, attempts: int) -> int:
        """How many orders go together in the attempt that follows `attempts` failed ones, of a group of `count`.

        All of them at first, since failures that are no order's fault are the common ones; then pieces, and pieces of
        those that failed. In the last attempt of a delivery each goes alone.
        """
        pieces = max(PIECES_MIN, math.ceil(count ** (1 / max(1, self.attempts_max - 1))))
        size: int = count // pieces**attempts
        return max(1, size)
