"""Audits the running pipeline now and then, beside the looks, which never wait for it."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from seckill.alerts.metrics import BREACHES
from seckill.alerts.snapshot import Audited, Broken, Snapshot, Source
from seckill.audit.rules import Breach, Invariant, Kind, Verdict

Audit = Callable[[], Awaitable[Verdict]]
"""Raises what the stores' clients raise."""


class Auditor:
    """`read` tells the newest audit, and begins one when it is time. Until the first one nothing is known."""

    def __init__(self, audit: Audit, *, every_ms: int, within_s: float, clock_ms: Callable[[], int]) -> None:
        self._audit = audit
        self._every_ms = every_ms
        self._within_s = within_s
        self._due_ms = clock_ms() + every_ms
        self._under_way: asyncio.Task[Verdict] | None = None
        self._newest: Audited | None = None
        self._problem = ""

    async def read(self, now_ms: int) -> Snapshot:
        if self._under_way is not None and self._under_way.done():
            self._end(self._under_way)
            self._under_way = None
        if self._under_way is None and now_ms >= self._due_ms:
            self._due_ms = now_ms + self._every_ms
            self._under_way = asyncio.create_task(self._bounded(), name="alerts-audit")
        known = self._newest is not None and not self._problem
        return Snapshot(
            now_ms,
            audited=self._newest or Audited(),
            silent={Source.AUDIT.value: self._problem} if self._problem else {},
            unread=frozenset() if known else frozenset({Source.AUDIT}),
            unasked=frozenset() if known or self._problem else frozenset({Source.AUDIT}),
        )

    async def aclose(self) -> None:
        """Cuts off the audit that is under way: it only reads."""
        if self._under_way is not None:
            self._under_way.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._under_way

    async def _bounded(self) -> Verdict:
        async with asyncio.timeout(self._within_s):
            return await self._audit()

    def _end(self, done: asyncio.Task[Verdict]) -> None:
        error = done.exception()
        if error is not None:
            self._problem = str(error) or f"no answer within {self._within_s:g} s"
            return
        self._problem = ""
        verdict = done.result()
        self._newest = audited(verdict)
        for invariant, found in verdict.breaches.items():
            BREACHES.labels(invariant.value).set(len(found))


def audited(verdict: Verdict) -> Audited:
    """What is worth telling of a verdict. Pure."""
    broken = tuple(_broken(invariant, found) for invariant, found in verdict.breaches.items() if found)
    return Audited(broken, slow=len(verdict.slow), slowest=verdict.slow[0][0] if verdict.slow else "")


def _broken(invariant: Invariant, found: Sequence[Breach]) -> Broken:
    first = found[0]
    return Broken(invariant.value, len(found), first.what, first.problem, scope=_scope(first))


def _scope(breach: Breach) -> str:
    """The option that has `seckill audit` look at the breach alone, where there is one."""
    match breach.kind:
        case Kind.SALE:
            return f"--sale {shlex.quote(breach.ident)}"
        case Kind.ORDER:
            return f"--product {shlex.quote(breach.ident.partition('-')[0])}"
    return ""
