"""Whether to try again, decided from the attempt and the error's type."""

from __future__ import annotations

import random

import pytest

from seckill.domain.errors import BranchFailed, InvalidOrder, OrderIdReused, ProductUnavailable, UnreadableRecord
from seckill.domain.reasons import DeadLetterReason
from seckill.domain.retry import Dead, Retry, RetryPolicy

POLICY = RetryPolicy(attempts_max=4, base_ms=100, cap_ms=250, jitter=random.Random(7))
DOWN = ProductUnavailable("127.0.0.1:9101", "connection refused")


@pytest.mark.parametrize(("attempt", "low", "high"), [(1, 50, 100), (2, 100, 200), (3, 125, 250)])
def test_a_transient_error_is_tried_again_after_a_growing_pause(attempt: int, low: int, high: int) -> None:
    """The pause doubles up to the cap and is jittered between half of it and all of it."""
    decision = POLICY.decide(attempt=attempt, error=DOWN)
    assert isinstance(decision, Retry)
    assert low <= decision.delay_ms <= high


def test_attempts_run_out() -> None:
    """The last attempt's failure is final."""
    assert POLICY.decide(attempt=4, error=DOWN) == Dead(DeadLetterReason.RETRIES_EXHAUSTED)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InvalidOrder("quantity", "must be above 0"), DeadLetterReason.INVALID_FIELD),
        (UnreadableRecord("no JSON"), DeadLetterReason.UNREADABLE),
        (OrderIdReused("7-00"), DeadLetterReason.ID_REUSED),
        (BranchFailed("product.Product/CheckProductStock", "INVALID_ARGUMENT", "x"), DeadLetterReason.BRANCH_FAILED),
        (KeyError("surprise"), DeadLetterReason.UNEXPECTED),
    ],
)
def test_what_trying_again_cannot_mend_is_set_aside_at_once(error: Exception, reason: DeadLetterReason) -> None:
    """The type of the error says so, and which code the letter carries."""
    assert POLICY.decide(attempt=1, error=error) == Dead(reason)
