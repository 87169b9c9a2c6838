"""How a role ends: unready first, then no new work, then what is under way, all of it before one deadline.

    SIGTERM ─▶ begin: unready, still serving ─▶ (delay) ─▶ intake ends, work in hand is finished ─▶ connections close
               └──────────────── deadline: what is left is told, and the process ends with 1 ────────────────┘

Every part of a role asks the same `Drain` how much time is left, so that their waits do not add up. A second signal
ends the process at once. Any layer may import this; it imports nothing of ours.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Never

import structlog

log = structlog.get_logger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

CLOSING_S = 1.0
"""What finishing work leaves of the time, for closing connections; a fifth of it where that is less."""

CUT_OFF = 1
"""Exit code of a process whose deadline has passed."""


class DrainIncomplete(Exception):
    """The deadline passed before everything was finished; `left` is what was not, by kind."""

    def __init__(self, timeout_ms: int, left: Counter[str]) -> None:
        told = ", ".join(f"{count} {what}" for what, count in sorted(left.items()))
        super().__init__(f"not everything was finished within {timeout_ms} ms; left: {told or 'open connections'}")
        self.left = left


class Drain:
    """One deadline for everything that is to be finished and closed. It counts from `begin`, or from the first
    question for the time.
    """

    def __init__(self, timeout_ms: int) -> None:
        self.timeout_ms = timeout_ms
        self.left: Counter[str] = Counter()  # what was cut off, by kind
        self.begun = False
        self._deadline_s = 0.0
        self._when_begun: list[Callable[[], None]] = []
        self._enforcing: asyncio.TimerHandle | None = None

    def begin(self, *, delay_ms: int = 0) -> None:
        """Tells everybody who asked for it; once. The deadline is `timeout_ms` after the delay."""
        if self.begun:
            return
        self.begun = True
        self._deadline_s = asyncio.get_running_loop().time() + (delay_ms + self.timeout_ms) / 1_000
        for tell in self._when_begun:
            tell()

    def when_begun(self, tell: Callable[[], None]) -> None:
        self._when_begun.append(tell)

    def left_s(self) -> float:
        """Time until the deadline, for closing; never below 0."""
        self.begin()
        return max(0.0, self._deadline_s - asyncio.get_running_loop().time())

    def work_left_s(self) -> float:
        """Time for work under way. What is not done then is cut off, so that there is time to close."""
        return max(0.0, self.left_s() - min(CLOSING_S, self.timeout_ms / 5_000))

    def closing_s(self, most_s: float) -> float:
        """Time for one of several things that are to be closed: at most half of what is left, for there are others."""
        return min(most_s, self.left_s() / 2)

    def leave(self, what: str, count: int) -> None:
        """Notes what is cut off."""
        if count:
            self.left[what] += count
            log.warning("drain_cut_off", what=what, count=count)

    async def begin_process(self, *, delay_ms: int) -> None:
        """Begins, for the process as a whole, and serves on for the delay: whoever sends work here sees meanwhile that
        it is unready. From now on the process does not outlive the deadline, whatever hangs.
        """
        self.begin(delay_ms=delay_ms)
        self._enforcing = asyncio.get_running_loop().call_later(self.left_s(), self._enforce)
        await asyncio.sleep(delay_ms / 1_000)

    def end_process(self) -> None:
        """Everything is closed. Raises DrainIncomplete when something had to be cut off for it."""
        if self._enforcing is not None:
            self._enforcing.cancel()
        if self.left:
            log.error("drain_incomplete", timeout_ms=self.timeout_ms, left=dict(self.left))
            raise DrainIncomplete(self.timeout_ms, self.left)

    def _enforce(self) -> None:
        log.error("drain_deadline_passed", timeout_ms=self.timeout_ms, left=dict(self.left))
        print(f"seckill: {DrainIncomplete(self.timeout_ms, self.left)}", file=sys.stderr)
        end_at_once(CUT_OFF)


def second_signal_ends_process() -> None:
    """From now on SIGTERM and SIGINT end the process at once, with 143 and 130."""
    for number in STOP_SIGNALS:
        signal.signal(number, _end_by_signal)


def _end_by_signal(number: int, _frame: FrameType | None) -> Never:
    end_at_once(128 + number)


def end_at_once(code: int) -> Never:
    """Past every `finally`: for a process in which something hangs. Its state is safe wherever it is cut off."""
    with suppress(OSError, RuntimeError):  # a pipe that nobody reads, or a print that the signal came into
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
