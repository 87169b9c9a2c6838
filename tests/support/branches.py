"""A gRPC server of branches on loopback: it remembers every call, and answers what a test has scripted."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from seckill.dtm import Branch, BranchContext

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the branch saw it."""

    context: BranchContext
    payload: bytes
    headers: dict[str, str | bytes]
    at_s: float

    @property
    def what(self) -> tuple[str, str]:
        return self.context.branch_id, self.context.op


@dataclass(frozen=True, slots=True)
class Answer:
    """What a branch says to one call, after a pause."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    pause_ms: int = 0
    payload: bytes = b""
    trailing: Metadata = ()


@dataclass(slots=True)
class Branches:
    """The server's memory; `script` says how the next calls of a branch operation are answered, then OK."""

    address: str
    calls: list[Call] = field(default_factory=list)
    _answers: dict[tuple[str, str, str], list[Answer]] = field(default_factory=dict)

    def script(self, gid: str, branch_id: str, op: str, *answers: Answer) -> None:
        self._answers[gid, branch_id, op] = list(answers)

    @property
    def branch(self) -> Branch:
        return Branch(*(f"{self.address}/test.Branch/{op}" for op in ("Try", "Confirm", "Cancel")))

    def of(self, gid: str) -> list[Call]:
        return [call for call in self.calls if call.context.gid == gid]

    def ops(self, gid: str) -> list[tuple[str, str]]:
        """The (branch id, op) pairs of a transaction, in the order of their calls."""
        return [call.what for call in self.of(gid)]

    async def until(self, gid: str, count: int, *, timeout_s: float = 15) -> list[tuple[str, str]]:
        """Waits for that many calls of a transaction; returns its `ops`."""
        async with asyncio.timeout(timeout_s):
            while len(self.of(gid)) < count:
                await asyncio.sleep(0.01)
        return self.ops(gid)

    def gaps_ms(self, gid: str, branch_id: str, op: str) -> list[int]:
        """The pauses between the calls of one branch operation."""
        times = [call.at_s for call in self.of(gid) if call.what == (branch_id, op)]
        return [int(1_000 * (after - before)) for before, after in itertools.pairwise(times)]

    async def answer(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        metadata: Any = context.invocation_metadata()
        branch = BranchContext.from_metadata(metadata)
        headers = {key: value for key, value in metadata if key.startswith("x-")}
        self.calls.append(Call(branch, request, headers, time.monotonic()))
        left = self._answers.get((branch.gid, branch.branch_id, branch.op))
        answer = left.pop(0) if left else Answer()
        await asyncio.sleep(answer.pause_ms / 1000)
        if answer.code is not grpc.StatusCode.OK:
            await context.abort(answer.code, answer.message, answer.trailing)
        return answer.payload


class _Any(grpc.GenericRpcHandler):
    def __init__(self, branches: Branches) -> None:
        self._handler = grpc.unary_unary_rpc_method_handler(branches.answer)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handler


@asynccontextmanager
async def serve_branches() -> AsyncIterator[Branches]:
    branches = Branches("")
    server = grpc.aio.server(handlers=[_Any(branches)])
    branches.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield branches
    finally:
        await server.stop(0)
