"""When a role counts as grown."""

from __future__ import annotations

from seckill.bench.memory import RATIO_MAX, MemoryResult, Reading


def test_a_role_has_grown_above_the_bound_only() -> None:
    """Up to a tenth more than at the first look is no growth."""
    first = Reading(200_000, 20_000, {"front": 1_000, "worker": 1_000, "order": 1_000})
    last = Reading(1_000_000, 100_000, {"front": 1_000, "worker": int(1_000 * RATIO_MAX), "order": 1_101})
    assert MemoryResult(1.0, 1, first, last).grown() == ["order"]
