"""Whether a dependency is asked at all: a circuit as a value, decided without I/O.

    closed ──(failures in a row)──▶ open ──(it answers a probe)──▶ half-open ──(success)──▶ closed
                                     ▲                                │
                                     └───────────(failure)────────────┘

After M. Nygard, "Release It!", 2nd edition, 2018, chapter "Circuit Breaker".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class CircuitState(StrEnum):
    CLOSED = "closed"  # calls go through
    OPEN = "open"  # no call is made; the dependency is probed
    HALF_OPEN = "half_open"  # it answers probes; one call at a time tries whether it serves


@dataclass(frozen=True, slots=True)
class Circuit:
    """`failures`: in a row, up to now; `failures_max` of them open it."""

    failures_max: int
    state: CircuitState = CircuitState.CLOSED
    failures: int = 0

    def failed(self) -> Circuit:
        """After a call that failed. Half-open, one is enough."""
        failures = self.failures + 1
        opens = self.state is not CircuitState.CLOSED or failures >= self.failures_max
        return replace(self, failures=failures, state=CircuitState.OPEN if opens else CircuitState.CLOSED)

    def answered(self) -> Circuit:
        """After a probe that was answered: only an open circuit learns from it."""
        return replace(self, state=CircuitState.HALF_OPEN) if self.state is CircuitState.OPEN else self

    def succeeded(self) -> Circuit:
        """After a call that succeeded, whenever it was made."""
        return replace(self, failures=0, state=CircuitState.CLOSED)
