"""Circuit breakers: what is known to be down is not called, and is probed until it is back.

The state machine is `seckill.domain.circuit`; here are its clock, its probes, its log lines and its metrics. Pauses
between attempts of one call are no business of a breaker, nor is what becomes of an order that failed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
from prometheus_client import Counter, Gauge

from seckill.domain.circuit import Circuit, CircuitState

log = structlog.get_logger(__name__)

PROBE_TIMEOUT_S = 3.0

STATE = Gauge("seckill_circuit_open", "0: calls go through; 0.5: one at a time; 1: none", ["role", "dependency"])
TRANSITIONS = Counter("seckill_circuit_transitions_total", "Changes of a circuit", ["role", "dependency", "state"])
_FIGURE = {CircuitState.CLOSED: 0.0, CircuitState.HALF_OPEN: 0.5, CircuitState.OPEN: 1.0}


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """`failures_max` failures in a row open the circuit; `pause_ms` lie between two probes.

    `trial_ms`: how long an answered probe leaves it half-open, for calls to close it or open it again; after that time
    without a failure it closes. 0: an answered probe closes it.
    """

    failures_max: int
    pause_ms: int
    trial_ms: int = 0


class CircuitOpen(Exception):
    """The dependency is down and is not called."""

    def __init__(self, dependency: str, down_s: float) -> None:
        super().__init__(f"{dependency} has been down for {down_s:.0f} s")
        self.dependency = dependency


class Breaker:
    """The circuit of one dependency. `probe` asks it, and raises while it cannot serve. `close` ends the probing."""

    def __init__(self, role: str, dependency: str, probe: Callable[[], Awaitable[None]], limits: BreakerLimits) -> None:
        self.dependency = dependency
        self._role = role
        self._probe = probe
        self._limits = limits
        self._circuit = Circuit(limits.failures_max)
        self._opened_s = 0.0
        self._closed = asyncio.Event()
        self._closed.set()
        self._left_trial = asyncio.Event()  # it is not half-open (any more)
        self._asking: asyncio.Task[bool] | None = None
        self._suspecting: asyncio.Task[bool] | None = None
        self._probing: asyncio.Task[None] | None = None
        STATE.labels(role, dependency).set(0)

    @property
    def state(self) -> CircuitState:
        return self._circuit.state

    async def until_closed(self) -> None:
        await self._closed.wait()

    async def check(self) -> None:
        """For readiness: raises CircuitOpen while calls are held back."""
        if self.state is not CircuitState.CLOSED:
            raise CircuitOpen(self.dependency, time.monotonic() - self._opened_s)

    # --- what callers report ---------------------------------------------------------------------------------------

    def succeeded(self) -> None:
        """A call succeeded."""
        if self._circuit.failures:
            self._become(self._circuit.succeeded())

    def failed(self, cause: str) -> None:
        """A call failed, and nothing but the dependency can be why."""
        self._become(self._circuit.failed(), cause)

    async def is_down(self, cause: str) -> bool:
        """A call failed, maybe for its own fault: whether the dependency, when it is asked, does not answer either.

        One question serves all who ask meanwhile; it counts as one failure, or as a success.
        """
        if self.state is CircuitState.OPEN:
            return True
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._judged(cause), name=f"probe-{self.dependency}")
        return await asyncio.shield(self._asking)

    def suspect(self, cause: str) -> None:
        """As `is_down`, for a caller that does not wait for the answer."""
        if self._suspecting is None or self._suspecting.done():
            self._suspecting = asyncio.create_task(self.is_down(cause), name=f"suspect-{self.dependency}")

    async def close(self) -> None:
        tasks = {task for task in (self._asking, self._suspecting, self._probing) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- probing -----------------------------------------------------------------------------------------------------

    async def _judged(self, cause: str) -> bool:
        if await self._answers():
            self.succeeded()
            return False
        self.failed(cause)
        return True

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._probe()
        except Exception as error:  # noqa: BLE001 - whatever a dependency's client raises: it cannot serve
            log.info("circuit_probe_failed", dependency=self.dependency, error=str(error) or type(error).__name__)
            return False
        return True

    async def _probe_until_closed(self) -> None:
        while self.state is not CircuitState.CLOSED:
            await asyncio.sleep(self._limits.pause_ms / 1000)
            if not await self._answers():
                continue
            if self._limits.trial_ms:
                self._become(self._circuit.answered())
                await self._trial()
            else:
                self._become(self._circuit.succeeded())

    async def _trial(self) -> None:
        try:
            async with asyncio.timeout(self._limits.trial_ms / 1000):
                await self._left_trial.wait()
        except TimeoutError:
            self._become(self._circuit.succeeded())

    def _become(self, circuit: Circuit, cause: str = "") -> None:
        before, self._circuit = self._circuit.state, circuit
        if circuit.state is before:
            return
        STATE.labels(self._role, self.dependency).set(_FIGURE[circuit.state])
        TRANSITIONS.labels(self._role, self.dependency, circuit.state.value).inc()
        if before is CircuitState.CLOSED:
            self._opened_s = time.monotonic()
        match circuit.state:
            case CircuitState.OPEN:
                log.warning("circuit_opened", role=self._role, dependency=self.dependency, cause=cause)
                self._closed.clear()
                self._left_trial.set()
                if self._probing is None or self._probing.done():
                    self._probing = asyncio.create_task(self._probe_until_closed(), name=f"probe-{self.dependency}")
            case CircuitState.HALF_OPEN:
                log.info("circuit_half_open", role=self._role, dependency=self.dependency)
                self._left_trial.clear()
            case CircuitState.CLOSED:
                down_s = round(time.monotonic() - self._opened_s, 1)
                log.warning("circuit_closed", role=self._role, dependency=self.dependency, down_s=down_s)
                self._closed.set()
                self._left_trial.set()
