"""Actors that stop before every call they make to a store, so that others may act in between, or they may die there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from seckill.domain.order import OrderId

STEPS_MAX = 1_000
"""To the end: more steps than any work has."""


class Publishing(Enum):
    """What becomes of a record that is published."""

    ACKNOWLEDGED = "it is in the topic"
    UNANSWERED = "it is in the topic, and the answer is lost"
    LOST = "it is nowhere, and there is no answer"


@dataclass(eq=False)
class Actor:
    """One who acts in steps. `calls`: how often each call to Redis is sent, as when a reply was lost."""

    calls: int = 1
    publishing: Publishing = Publishing.ACKNOWLEDGED
    lateness_ms: int = 0
    fate: str = "sold"  # what the database makes of an order that it does not know: sold, frozen, failed or a reason
    claimed: set[OrderId] | None = None  # what a reconciler has taken for publication
    waiting_records: set[OrderId] = field(default_factory=set)  # of which the group had not passed one, when it asked
    frozen: set[OrderId] = field(default_factory=set)
    task: asyncio.Task[Any] | None = None
    before: str = ""  # the call that it stops before
    _stopped: list[asyncio.Future[None]] = field(default_factory=list)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Starts, up to the first call to a store."""
        self.task = asyncio.create_task(self._run(work))
        self.task.add_done_callback(lambda _: self._moved.set())
        await self._moved.wait()

    async def go_on(self, steps: int, *, until: str = "") -> None:
        """Some calls further, at most until it stops before that one."""
        for _ in range(steps):
            if self.ended or self.before == until:
                return
            self._moved.clear()
            stopped, self._stopped = self._stopped, []
            for each in stopped:
                each.set_result(None)
            await self._moved.wait()

    async def die(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait({self.task})

    @property
    def ended(self) -> bool:
        return self.task is not None and self.task.done()

    async def stop_before(self, call: str) -> None:
        self.before = call
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopped.append(gate)
        self._moved.set()
        await gate

    async def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        ACTOR.set(self)
        return await work


ACTOR: ContextVar[Actor | None] = ContextVar("ACTOR", default=None)


async def stop_before(call: str) -> Actor:
    """Where an actor may hang, or die; who is none goes straight on."""
    actor = ACTOR.get()
    if actor is None:
        return Actor()
    await actor.stop_before(call)
    return actor


async def answers() -> None:
    """The probe of a dependency that is up."""


class Complaints(list[str]):
    """What must never happen. Kept as well as raised, since what plays here survives every error."""

    def require(self, holds: bool, complaint: str) -> None:
        if not holds:
            self.append(complaint)
            raise AssertionError(complaint)
