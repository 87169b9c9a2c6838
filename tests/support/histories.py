"""How long and how many random histories are played: few and always the same in a run of the suite, many by hand.

By hand: pytest tests/contract/test_ledger_stateful.py --side embedded --timeout 0 --hypothesis-profile thorough
"""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

THOROUGH = "thorough"


def register_profiles() -> None:
    """`thorough`: other histories each time, and the shortest one that fails."""
    settings.register_profile(THOROUGH, max_examples=4_000, derandomize=False, print_blob=True)


def history_settings(*, examples: int, steps: int) -> settings:
    """Without the profile: the same histories in every run, and a failing one as it was found, which is quick."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    if settings.get_current_profile_name() == THOROUGH:
        return settings(stateful_step_count=steps, deadline=None, suppress_health_check=checks)
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=checks,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
    )
