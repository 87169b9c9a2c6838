"""Whether a server's clock agrees with this machine's. Sales open and transactions expire by several clocks at once."""

from __future__ import annotations

from seckill.doctor.facts import Clock
from seckill.doctor.findings import Finding, ok, problem, warning

AHEAD_WARNING_MS = 1_000
AHEAD_PROBLEM_MS = 5_000  # half of the ten seconds after which an undecided transaction is cancelled

REMEDY = "let both machines follow NTP (chrony, systemd-timesyncd)"


def judge_clock(clock: Clock | None) -> list[Finding]:
    """Only what is certain counts: a difference within the reading's own uncertainty is none."""
    if clock is None:
        return []
    certain_ms = max(0.0, abs(clock.ahead_ms) - clock.uncertain_ms)
    direction = "ahead of" if clock.ahead_ms > 0 else "behind"
    found = f"at least {certain_ms / 1000:.1f} s {direction} this machine"
    if certain_ms >= AHEAD_PROBLEM_MS:
        return [problem("clock", found, REMEDY)]
    if certain_ms >= AHEAD_WARNING_MS:
        return [warning("clock", found, REMEDY)]
    return [ok("clock", f"agrees within {max(clock.uncertain_ms, abs(clock.ahead_ms)) / 1000:.3f} s")]
