"""Brings messages to one target, one at a time, as often as it takes. Nobody waits for it.

A target that is down costs a task, a thread while it is tried, and at most `waiting_max` messages: of the same finding
only the newest one waits. A send that takes long is not begun a second time meanwhile, so that a slow target gets
nothing twice.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import structlog

from seckill.alerts.engine import Message
from seckill.alerts.metrics import SENT, WAITING
from seckill.alerts.targets import Target

log = structlog.get_logger()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """`slow_after_ms`: a send that takes longer is counted as slow. Pauses after failures double up to the longest."""

    waiting_max: int
    slow_after_ms: int
    pause_ms: int = 1_000
    pause_max_ms: int = 60_000


Taken = Callable[[str, Message], None]
"""Is told the target's `ident` and the message that it has taken. Keeps no courier waiting."""


class Courier:
    """Opens nothing. `run` returns after `stop`, once every message that waits has been tried once more."""

    def __init__(self, target: Target, patience: Patience, taken: Taken) -> None:
        self.target = target
        self._patience = patience
        self._taken = taken
        self._waiting: dict[str, Message] = {}
        self._failures = 0
        self._offered = asyncio.Event()
        self._stopping = asyncio.Event()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def offer(self, message: Message) -> None:
        """Does not wait. The message takes the place of an older one about the same finding."""
        self._waiting.pop(message.key, None)
        if len(self._waiting) >= self._patience.waiting_max:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            self._count("dropped")
            log.error("alert_dropped", target=self.target.name, key=oldest)
        self._waiting[message.key] = message
        self._tell_waiting()
        self._offered.set()

    def stop(self) -> None:
        self._stopping.set()
        self._offered.set()

    async def run(self) -> None:
        while True:
            await self._offered.wait()
            if not self._waiting:
                if self._stopping.is_set():
                    return
                self._offered.clear()
                continue
            message = next(iter(self._waiting.values()))
            if problem := await self._send(message):
                await self._not_taken(message, problem)
            else:
                self._was_taken(message)

    async def _send(self, message: Message) -> str:
        """Empty when it was taken, else what the target, or Apprise for it, says."""
        sending = asyncio.ensure_future(in_thread(lambda: self.target.send(message)))
        try:
            await asyncio.wait({sending}, timeout=self._patience.slow_after_ms / 1_000)
            if not sending.done():
                self._count("slow")
                log.warning("alert_slow", target=self.target.name, key=message.key)
            return await sending
        finally:
            sending.cancel()

    def _was_taken(self, message: Message) -> None:
        self._failures = 0
        self._count("delivered")
        self._leave(message)
        self._taken(self.target.ident, message)

    async def _not_taken(self, message: Message, problem: str) -> None:
        """Others are tried before it is tried again: it may be this one that the target does not like."""
        self._failures += 1
        self._count("failed")
        log.warning(
            "alert_not_taken", target=self.target.name, key=message.key, problem=problem, failures=self._failures
        )
        waits = self._leave(message)
        if self._stopping.is_set():
            return
        if waits:
            self._waiting.setdefault(message.key, message)
            self._tell_waiting()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pause_s()):
                await self._stopping.wait()

    def _leave(self, message: Message) -> bool:
        """Takes it out of what waits, unless a newer one about the same finding is there by now; whether it was."""
        if self._waiting.get(message.key) is not message:
            return False
        del self._waiting[message.key]
        self._tell_waiting()
        return True

    def _pause_s(self) -> float:
        longest_ms = min(self._patience.pause_ms << min(self._failures - 1, 20), self._patience.pause_max_ms)
        return random.uniform(0.5, 1.0) * longest_ms / 1_000  # noqa: S311 - a jitter, no secret

    def _count(self, result: str) -> None:
        SENT.labels(self.target.name, result).inc()

    def _tell_waiting(self) -> None:
        WAITING.labels(self.target.name).set(len(self._waiting))


async def in_thread(work: Callable[[], T]) -> T:
    """Runs what blocks in a thread that does not keep the process alive. Cancelled, the thread goes on unheard."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]  # without an error there is a value

    def run() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = work()
        except BaseException as raised:  # noqa: BLE001 - it is the caller's
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, daemon=True, name="alert-send").start()
    return await result
