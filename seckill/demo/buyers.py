"""The crowd: `python -m seckill.demo.buyers`, a process of its own, so that it shares nothing with what it tests.

A plan comes as JSON on stdin; NDJSON goes to stdout: progress several times a second, and what happened at the end.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp
import msgspec

if sys.platform != "win32":
    import uvloop

from seckill.demo.crowd import Kind, Request, allowed, requests_of
from seckill.demo.plan import Done, Message, Plan, Progress, latency

PROGRESS_EVERY_S = 0.2
DESCRIBED_MAX = 20


class _Answer(msgspec.Struct):
    """What matters of an accepted order or of a problem document."""

    order_id: str = ""
    code: str = ""


_decode = msgspec.json.Decoder(_Answer).decode


@dataclass(slots=True)
class Tally:
    """What happened so far."""

    requests: int = 0
    repeated: int = 0
    unanswered: int = 0
    accepted: set[str] = field(default_factory=set)
    untold: list[str] = field(default_factory=list)  # accepted since the last progress line
    pending: list[str] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    unexpected_count: int = 0
    order_of_key: dict[str, str] = field(default_factory=dict)
    accept_ms: list[float] = field(default_factory=list)
    answer_ms: list[float] = field(default_factory=list)

    def answered(self, request: Request, status: int, raw: bytes, elapsed_ms: float) -> None:
        self.answer_ms.append(elapsed_ms)
        try:
            answer = _decode(raw)
        except msgspec.MsgspecError:
            answer = _Answer(code=f"HTTP_{status}")
        code = "" if status in (200, 202) else answer.code or f"HTTP_{status}"
        if not allowed(request.kind, status, code):
            self.surprise(f"{request.kind}: {status} {code}")
        if code:
            self.rejected[code] += code != "PENDING"
            self.pending += [answer.order_id] if code == "PENDING" else []
            return
        if request.key and self.order_of_key.setdefault(request.key, answer.order_id) != answer.order_id:
            self.surprise(f"{request.kind}: the same key got two orders")
        if answer.order_id in self.accepted:
            self.repeated += 1
            return
        self.accepted.add(answer.order_id)
        self.untold.append(answer.order_id)
        self.accept_ms.append(elapsed_ms)

    def surprise(self, what: str) -> None:
        self.unexpected_count += 1
        if len(self.unexpected) < DESCRIBED_MAX:
            self.unexpected.append(what)

    def progress(self) -> Progress:
        told, self.untold = self.untold, []
        return Progress(requests=self.requests, accepted=told, rejected=dict(self.rejected))

    def done(self, seconds: float) -> Done:
        return Done(
            requests=self.requests,
            accepted=len(self.accepted),
            repeated=self.repeated,
            rejected=dict(self.rejected.most_common()),
            pending=self.pending,
            unanswered=self.unanswered,
            unexpected=self.unexpected,
            unexpected_count=self.unexpected_count,
            seconds=round(seconds, 3),
            accept=latency(self.accept_ms),
            answer=latency(self.answer_ms),
        )


async def buy(plan: Plan) -> None:
    """Sends every request, `concurrency` at a time, and tells about it."""
    tally = Tally()
    waiting = iter(requests_of(plan))
    started = time.perf_counter()
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=plan.concurrency, ssl=ssl.create_default_context(cafile=plan.ca)),
            timeout=aiohttp.ClientTimeout(total=plan.timeout_s),
            headers={"Content-Type": "application/json"},
        ) as session,
        asyncio.TaskGroup() as group,
    ):
        telling = group.create_task(_tell_regularly(tally))
        async with asyncio.TaskGroup() as buyers:
            for _ in range(plan.concurrency):
                buyers.create_task(_buy_on(session, f"{plan.url}/v1/orders", waiting, tally))
        telling.cancel()
    seconds = time.perf_counter() - started
    _tell(tally.progress())
    _tell(tally.done(seconds))


async def _buy_on(session: aiohttp.ClientSession, url: str, waiting: Iterator[Request], tally: Tally) -> None:
    for request in waiting:
        headers = {"Idempotency-Key": request.key} if request.key else None
        tally.requests += 1
        begun = time.perf_counter()
        try:
            async with session.post(url, data=request.body, headers=headers) as response:
                raw = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            tally.unanswered += 1
            # A front may hang up on a body that is too large before it has been sent; anything else is a surprise.
            if request.kind is not Kind.MALFORMED:
                tally.surprise(f"{request.kind}: no answer ({type(error).__name__})")
            continue
        tally.answered(request, response.status, raw, (time.perf_counter() - begun) * 1000)


async def _tell_regularly(tally: Tally) -> None:
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        _tell(tally.progress())


def _tell(message: Message) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    try:
        if sys.platform == "win32":
            asyncio.run(buy(plan))
        else:
            uvloop.run(buy(plan))
    except* BrokenPipeError:
        os._exit(1)  # the demo is gone, and with it whoever would read the rest


if __name__ == "__main__":
    main()
