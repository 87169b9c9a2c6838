"""What an attempt depends on, each behind a circuit breaker that all lanes of a worker share.

An attempt that failed because something is down is no attempt, and a worker that knows of it makes none. The type of an
error says which dependency it blames; whether that is really down, its own probe says: a service that answers its probe
and fails with an order is left with the order, whose attempts count and end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

from seckill.circuits import Breaker, BreakerLimits
from seckill.domain.circuit import CircuitState
from seckill.domain.errors import (
    AdmissionUnavailable,
    CoordinatorUnavailable,
    OrderUnavailable,
    ProductUnavailable,
)
from seckill.domain.outcomes import Failed, Outcome, Undecided

BLAMED: Mapping[type[Exception], str] = {
    ProductUnavailable: "product",
    OrderUnavailable: "order",
    CoordinatorUnavailable: "coordinator",
    AdmissionUnavailable: "redis",
}
"""Which dependency an error blames. One that is not here blames nobody but the order."""


def blamed(error: Exception | None) -> str | None:
    """The name of the dependency that this error blames. Pure."""
    return next((name for kind, name in BLAMED.items() if isinstance(error, kind)), None)


def blamed_by_all(outcomes: Iterable[Outcome]) -> Exception | None:
    """The error of the first outcome when each of them is a failure that blames a dependency. Pure."""
    errors = [outcome.error if isinstance(outcome, Failed) else None for outcome in outcomes]
    return errors[0] if errors and all(blamed(error) is not None for error in errors) else None


class Dependencies:
    """`probes` ask each dependency by its name, and raise while it cannot serve. `close` ends what they have begun."""

    def __init__(self, role: str, probes: Mapping[str, Callable[[], Awaitable[None]]], limits: BreakerLimits) -> None:
        self._breakers = {name: Breaker(role, name, probes[name], limits) for name in BLAMED.values()}

    def down(self) -> list[str]:
        """The names of those that are known to be down."""
        return [name for name, breaker in self._breakers.items() if breaker.state is not CircuitState.CLOSED]

    async def until_up(self) -> None:
        """Returns when nothing is known to be down."""
        while down := self.down():
            await self._breakers[down[0]].until_closed()

    async def found_down(self, outcomes: Iterable[Outcome]) -> frozenset[str]:
        """Of the dependencies that an attempt's outcomes blame, those that do not answer now."""
        causes = {blamed(cause): cause for cause in map(_cause, outcomes) if blamed(cause) is not None}
        asked = [name for name in self._breakers if name in causes]
        answers = await asyncio.gather(*(self._breakers[name].is_down(str(causes[name])) for name in asked))
        return frozenset(name for name, down in zip(asked, answers, strict=True) if down)

    async def check(self) -> None:
        """For readiness: raises CircuitOpen while nothing is carried."""
        for name in self.down():
            await self._breakers[name].check()

    async def close(self) -> None:
        for breaker in self._breakers.values():
            await breaker.close()


def _cause(outcome: Outcome) -> Exception | None:
    match outcome:
        case Failed(error):
            return error
        case Undecided(cause=cause):
            return cause
        case _:
            return None
