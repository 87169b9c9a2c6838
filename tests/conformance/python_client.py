"""Our own client in a scenario: what it asks, what it is told, and what its branches see.

Recorded as `go/main.go` and `go/branches.go` do it for DTM's client.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from seckill.dtm import CallFailed, DtmClient, Tcc, TransOptions, global_transaction
from seckill.dtm.message import Message
from seckill.dtm.protocol import DEFAULTS, TCC, XA, BranchContext
from seckill.dtm.saga import Saga, Step
from seckill.dtm.xa import Xa, xa_transaction
from tests.conformance.records import Record, named
from tests.support.branches import Answer, Branches, Call

RUN_TIMEOUT_MS = 30_000
LIMIT_S = 20.0


class LocalFailure(Exception):
    """What a message's local transaction refuses with."""


class LocalTrouble(Exception):
    """What a message's local transaction breaks with."""


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

    def url(self, method: str) -> str:
        return f"{self.branches.address}/test.Branch/{method}"

    async def prepare(self, options: TransOptions, *, trans_type: str = TCC) -> None:
        await self.note("Prepare", self.client.prepare(self.gid, trans_type=trans_type, options=options))

    async def submit(self, options: TransOptions, *, trans_type: str = TCC) -> None:
        await self.note("Submit", self.client.submit(self.gid, trans_type=trans_type, options=options))

    async def abort(self, options: TransOptions, *, trans_type: str = TCC) -> None:
        await self.note("Abort", self.client.abort(self.gid, trans_type=trans_type, options=options))

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

    def saga(self, steps: int, options: TransOptions, *, concurrent: bool = False) -> Saga:
        """Of so many steps, whose payloads are their branch ids."""
        saga = Saga(self.client, self.gid, options=options, concurrent=concurrent)
        for branch_id in _branch_ids(steps):
            saga.add(Step(self.url("Action"), self.url("Compensate")), payload(branch_id))
        return saga

    async def prepare_saga(self, steps: int, options: TransOptions) -> None:
        """No application does."""
        step = {"action": self.url("Action"), "compensate": self.url("Compensate")}
        prepared = self.client.prepare(
            self.gid, trans_type="saga", options=options, steps=json.dumps([step] * steps),
            payloads=[payload(branch_id) for branch_id in _branch_ids(steps)],
        )  # fmt: skip
        await self.note("Prepare", prepared)

    async def submit_saga(self, saga: Saga) -> None:
        await self.note("Submit", saga.submit())

    def message(self, steps: int, options: TransOptions) -> Message:
        """Of so many steps, whose payloads are their branch ids."""
        message = Message(self.client, self.gid, options=options)
        for branch_id in _branch_ids(steps):
            message.add(self.url("Action"), payload(branch_id))
        return message

    async def prepare_message(self, message: Message) -> None:
        await self.note("Prepare", message.prepare(self.url("QueryPrepared")))

    async def submit_message(self, message: Message) -> None:
        await self.note("Submit", message.submit())

    async def do_and_submit(self, error: Exception | None) -> None:
        """A local transaction that ends so, and the message around it, as applications run them."""

        async def local(context: BranchContext) -> None:
            self.say("local", "", f"{context.trans_type}/{context.branch_id}/{context.op}")
            if error is not None:
                raise error

        done = self.message(2, TransOptions(wait_result=True)).do_and_submit(
            self.url("QueryPrepared"), local, failure=LocalFailure
        )
        try:
            await self.note("do and submit", done)
        except (LocalFailure, LocalTrouble) as raised:
            self.say("do and submit", "not a status", str(raised))

    async def register_xa(self, branch_id: str, url: str | None = None) -> None:
        data = {"url": self.url("Xa") if url is None else url}
        registered = self.client.register_branch(self.gid, trans_type=XA, branch_id=branch_id, data=data, payload=b"")
        await self.note("RegisterBranch", registered)

    async def open_xa(self, options: TransOptions, *branch_ids: str) -> None:
        """A prepared transaction with these branches registered."""
        await self.prepare(options, trans_type=XA)
        for branch_id in branch_ids:
            await self.register_xa(branch_id)

    async def xa(self, options: TransOptions = DEFAULTS) -> None:
        """A global transaction of two branches as applications run it."""

        async def body(xa: Xa) -> None:
            for text in ("first", "second"):
                await xa.call_branch(self.url("Xa"), payload(text), timeout_ms=RUN_TIMEOUT_MS)

        await self.note("global transaction", xa_transaction(self.client, body, options=options, gid=self.gid))

    @asynccontextmanager
    async def not_waiting(self, request: str, limit_s: float) -> AsyncIterator[None]:
        """Says it when a request that was not to wait has waited."""
        began = time.monotonic()
        yield
        if time.monotonic() - began > limit_s:
            self.say(request, "", "waited for a branch")

    async def wait(self, calls: int, limit_s: float = LIMIT_S) -> None:
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


def _branch_ids(steps: int) -> list[str]:
    return [f"{number:02d}" for number in range(1, steps + 1)]


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
