"""Our own client in a scenario: what it asks, what it is told, and what its branches see.

Recorded as `go/main.go` and `go/branches.go` do it for DTM's client.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from seckill.dtm import CallFailed, DtmClient, Tcc, TransOptions, global_transaction
from tests.conformance.records import Record, named
from tests.support.branches import Answer, Branches, Call

RUN_TIMEOUT_MS = 30_000


@dataclass(slots=True)
class Run:
    """One scenario under way: a gid of its own, the coordinator and the branches."""

    client: DtmClient
    branches: Branches
    gid: str
    began: float = field(default_factory=time.monotonic)
    answers: list[dict[str, str]] = field(default_factory=list)

    def script(self, branch_id: str, op: str, *answers: Answer) -> None:
        self.branches.script(self.gid, branch_id, op, *answers)

    def say(self, request: str, code: str, message: str) -> None:
        self.answers.append({"request": request, "code": code, "message": message})

    async def note(self, request: str, call: Awaitable[object]) -> None:
        """Keeps the answer to a request."""
        try:
            await call
        except CallFailed as error:
            self.say(request, go_name(error.code), error.detail)
        else:
            self.say(request, "OK", "")

    async def prepare(self, options: TransOptions) -> None:
        await self.note("Prepare", self.client.prepare(self.gid, options=options))

    async def submit(self, options: TransOptions) -> None:
        await self.note("Submit", self.client.submit(self.gid, options=options))

    async def abort(self, options: TransOptions) -> None:
        await self.note("Abort", self.client.abort(self.gid, options=options))

    async def register(
        self, branch_id: str, *, trans_type: str = "tcc", confirm: str | None = None, cancel: str | None = None
    ) -> None:
        branch = self.branches.branch
        data = {
            "confirm": branch.confirm if confirm is None else confirm,
            "cancel": branch.cancel if cancel is None else cancel,
        }
        registered = self.client.register_branch(
            self.gid, trans_type=trans_type, branch_id=branch_id, data=data, payload=payload(branch_id)
        )
        await self.note("RegisterBranch", registered)

    async def tcc(self, options: TransOptions) -> None:
        """A global transaction of two branches as applications run it."""

        async def body(tcc: Tcc) -> None:
            for text in ("first", "second"):
                await tcc.call_branch(self.branches.branch, payload(text), timeout_ms=RUN_TIMEOUT_MS)

        transaction = global_transaction(self.client, body, options=options, gid=self.gid)
        await self.note("global transaction", transaction)

    async def wait(self, calls: int, limit_s: float) -> None:
        """Returns when the branches have seen that many calls, or when the time is up."""
        with contextlib.suppress(TimeoutError):
            await self.branches.until(self.gid, calls, timeout_s=limit_s)

    def record(self, scenario: str) -> Record:
        calls = self.branches.of(self.gid)
        operations = list(dict.fromkeys(call.what for call in calls))
        first = {what: next(call.at_s for call in calls if call.what == what) for what in operations}
        gaps = {what: self.branches.gaps_ms(self.gid, *what) for what in operations}
        record = {
            "scenario": scenario,
            "gid": self.gid,
            "answers": self.answers,
            "calls": [self._shown(call) for call in calls],
            "after_ms": {"/".join(what): int(1_000 * (first[what] - self.began)) for what in operations},
            "gaps_ms": {"/".join(what): pauses for what, pauses in gaps.items() if pauses},
        }
        return named(record, self.gid, self.branches.address) | {"gid": self.gid}

    def _shown(self, call: Call) -> Record:
        who = call.context
        return {
            "branch": who.branch_id,
            "op": who.op,
            "trans_type": who.trans_type,
            "dtm": "{dtm}" if who.dtm == self.client.address else who.dtm,
            "barrier": f"{who.trans_type}/{who.branch_id}/{who.op}",
            "headers": call.headers,
            "payload": StringValue.FromString(call.payload).value,
        }


def payload(text: str) -> bytes:
    return StringValue(value=text).SerializeToString()


def go_name(code: grpc.StatusCode) -> str:
    """How Go names a status code."""
    match code:
        case grpc.StatusCode.OK:
            return "OK"
        case grpc.StatusCode.CANCELLED:
            return "Canceled"
        case _:
            return "".join(word.capitalize() for word in code.name.split("_"))
