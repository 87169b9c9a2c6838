"""Whether to try again, decided from the attempt and the error's type."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seckill.domain.errors import BranchFailed, InvalidOrder, OrderIdReused, ProductUnavailable, UnreadableRecord
from seckill.domain.reasons import DeadLetterReason
from seckill.domain.retry import Dead, Later, Retry, RetryPolicy

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


TIERED = RetryPolicy(attempts_max=2, base_ms=100, cap_ms=250, tier_delays_ms=(1_000, 5_000), jitter=random.Random(7))


@pytest.mark.parametrize(("tier", "later", "delay_ms"), [(None, 0, 1_000), (0, 1, 5_000)])
def test_after_the_attempts_in_place_comes_the_next_tier(tier: int | None, later: int, delay_ms: int) -> None:
    """The main topic leads to the first tier, each tier to the next one; jitter adds to its delay, up to a tenth."""
    assert isinstance(TIERED.decide(attempt=1, tier=tier, error=DOWN), Retry)
    for _ in range(100):
        decision = TIERED.decide(attempt=2, tier=tier, error=DOWN)
        assert isinstance(decision, Later)
        assert decision.tier == later
        assert delay_ms <= decision.delay_ms <= delay_ms * 1.1


def test_after_the_last_tier_comes_the_letter() -> None:
    """It was tried as often as it may be."""
    assert TIERED.decide(attempt=2, tier=1, error=DOWN) == Dead(DeadLetterReason.RETRIES_EXHAUSTED)


def test_no_tier_mends_what_trying_again_cannot() -> None:
    """Such an error needs no waiting."""
    error = BranchFailed("order.Order/CreateOrderCheck", "INVALID_ARGUMENT", "x")
    assert TIERED.decide(attempt=1, tier=None, error=error) == Dead(DeadLetterReason.BRANCH_FAILED)
    assert TIERED.decide(attempt=1, tier=None, error=KeyError("x")) == Dead(DeadLetterReason.UNEXPECTED)


@given(count=st.integers(1, 500), attempts_max=st.integers(2, 100))
def test_a_group_is_tried_whole_first_and_each_order_alone_last(count: int, attempts_max: int) -> None:
    """In between, pieces get smaller by eight times at least: no order is given up for what its neighbour did."""
    policy = RetryPolicy(attempts_max, 100, 250)
    sizes = [policy.piece_size(count, attempts=attempts) for attempts in range(attempts_max)]
    assert (sizes[0], sizes[-1]) == (count, 1)
    assert all(after <= max(1, before / 8) for before, after in pairwise(sizes))
