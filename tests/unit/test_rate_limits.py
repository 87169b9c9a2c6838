"""Rate limits of the front, decided without I/O from a request's time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from seckill.domain.reasons import Refusal
from seckill.front.limits import NS_PER_S, USERS_MAX, Rate, RateLimits

MS = 1_000_000
NOW = 1_000 * NS_PER_S


def taken(limits: RateLimits, user_id: int, times: int, *, at_ns: int = NOW) -> int:
    """How many of so many requests at one moment are let through."""
    return sum(limits.take(user_id, at_ns) is None for _ in range(times))


def test_a_buyer_has_a_burst_and_then_a_rate() -> None:
    """At once as many as the burst; after that one per interval, and the burst again after a silence."""
    limits = RateLimits(Rate(per_s=10, burst=5), None)
    assert taken(limits, 7, 20) == 5
    assert limits.take(7, NOW + 99 * MS) is Refusal.RATE_LIMITED
    assert limits.take(7, NOW + 100 * MS) is None
    assert limits.take(7, NOW + 100 * MS) is Refusal.RATE_LIMITED
    assert taken(limits, 7, 20, at_ns=NOW + 2 * NS_PER_S) == 5


def test_buyers_do_not_share_a_limit() -> None:
    """One who asks too often takes nothing from the others."""
    limits = RateLimits(Rate(per_s=1, burst=2), None)
    assert [taken(limits, user, 10) for user in range(100)] == [2] * 100


def test_all_together_have_a_limit() -> None:
    """Above it an order is OVERLOADED, whoever asks; and it does not count against its buyer."""
    limits = RateLimits(Rate(per_s=1, burst=1), Rate(per_s=10, burst=10))
    assert [limits.take(user, NOW) for user in range(12)] == [None] * 10 + [Refusal.OVERLOADED] * 2
    assert limits.take(11, NOW + NS_PER_S) is None


def test_a_refused_request_takes_nothing() -> None:
    """Who is above the own limit does not use up what all have together."""
    limits = RateLimits(Rate(per_s=1, burst=1), Rate(per_s=3, burst=3))
    assert taken(limits, 1, 50) == 1
    assert [limits.take(user, NOW) for user in (2, 3)] == [None, None]


@given(st.lists(st.integers(0, 3_000), min_size=1, max_size=300).map(sorted), st.integers(1, 50), st.integers(1, 20))
def test_no_second_lets_more_through_than_rate_and_burst(times_ms: list[int], per_s: int, burst: int) -> None:
    """In any span of t seconds at most burst + rate * t requests of a buyer are let through."""
    limits = RateLimits(Rate(per_s, burst), None)
    passed = [at_ms for at_ms in times_ms if limits.take(1, NOW + at_ms * MS) is None]
    for first, began in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + per_s * (passed[last] - began) / 1_000 + 1e-6


def test_memory_is_bounded_by_buyers_who_ask() -> None:
    """Buyers whose time is over are forgotten as others come, and never are more than the bound remembered."""
    limits = RateLimits(Rate(per_s=10, burst=20), None)
    for user in range(20_000):
        limits.take(user, NOW + user * MS)
    assert len(limits) <= 110  # a request is remembered for 100 ms, and one comes each
    for user in range(USERS_MAX + 5_000):
        limits.take(user, NOW)
    assert len(limits) <= USERS_MAX
