"""The starters of saga, two-phase message and XA against a coordinator and branches, all over the wire.

TCC's are in `test_dtm_client.py`, the branches' own databases in `test_xa_branch.py` and `test_message_branch.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from seckill.dtm import BranchContext, DtmClient, Message, Refused, Saga, Step, TransOptions, Xa, xa_transaction
from seckill.dtm.protocol import GlobalTransaction
from tests.conformance.differences import REFERENCE
from tests.support.branches import Answer, Branches, serve_branches
from tests.support.coordinators import Backend, backend_at, client_of, coordinator_on, sqlite_logs

WAITING = TransOptions(wait_result=True, branch_headers={"X-Trace": "abc"})
SOON = TransOptions(timeout_to_fail_s=1, retry_interval_s=1)
DELAY_S = 2
REFUSAL = Answer(grpc.StatusCode.ABORTED, "sold out")


@pytest.fixture(params=["sqlite", REFERENCE])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    async with AsyncExitStack() as stack:
        if request.param == REFERENCE:
            yield backend_at(REFERENCE, request.getfixturevalue("servers").dtm)
            return
        log = await sqlite_logs(tmp_path).fresh()
        yield backend_at(request.param, await stack.enter_async_context(coordinator_on(log)))


@pytest.fixture
async def client(backend: Backend) -> AsyncIterator[DtmClient]:
    async with client_of(backend) as opened:
        yield opened


@pytest.fixture
async def branches() -> AsyncIterator[Branches]:
    async with serve_branches() as served:
        yield served


async def until_ended(client: DtmClient, gid: str) -> GlobalTransaction:
    async with asyncio.timeout(15):
        while True:
            transaction = await client.query(gid)
            if transaction is not None and transaction.finished:
                return transaction
            await asyncio.sleep(0.02)


# --- saga


def step(branches: Branches) -> Step:
    return Step(f"{branches.address}/test.Branch/Action", f"{branches.address}/test.Branch/Compensate")


async def concurrent_saga(client: DtmClient, branches: Branches, steps: int) -> Saga:
    saga = Saga(client, await client.new_gid(), options=WAITING, concurrent=True)
    for number in range(steps):
        saga.add(step(branches), b"%d" % number)
    return saga


async def test_a_concurrent_saga_waits_where_an_order_says_so(client: DtmClient, branches: Branches) -> None:
    """Actions run at once; one with an order runs after those that it names have succeeded, and not before."""
    saga = (await concurrent_saga(client, branches, 3)).order(2, after=[0])
    branches.script(saga.gid, "01", "action", Answer(pause_ms=200))
    await saga.submit()
    begun = {call.context.branch_id: call.at_s for call in branches.of(saga.gid)}
    assert begun["02"] - begun["01"] < 0.2
    assert begun["03"] - begun["01"] >= 0.2
    assert [call.payload for call in sorted(branches.of(saga.gid), key=lambda call: call.what)] == [b"0", b"1", b"2"]


async def test_compensations_go_the_other_way_round(client: DtmClient, branches: Branches) -> None:
    """In a concurrent saga that fails, a step is compensated after those that were ordered behind it."""
    saga = (await concurrent_saga(client, branches, 2)).order(1, after=[0])
    branches.script(saga.gid, "02", "action", REFUSAL)
    branches.script(saga.gid, "02", "compensate", Answer(pause_ms=100))
    with pytest.raises(Refused):
        await saga.submit()
    await until_ended(client, saga.gid)
    assert branches.ops(saga.gid) == [
        ("01", "action"), ("02", "action"), ("02", "compensate"), ("01", "compensate"),
    ]  # fmt: skip


async def test_steps_follow_each_other_where_nothing_is_said(client: DtmClient, branches: Branches) -> None:
    """Without `concurrent` an action runs when the one before it has succeeded."""
    saga = Saga(client, await client.new_gid(), options=WAITING).add(step(branches), b"").add(step(branches), b"")
    branches.script(saga.gid, "01", "action", Answer(pause_ms=100))
    await saga.submit()
    first, second = branches.of(saga.gid)
    assert (first.what, second.what) == (("01", "action"), ("02", "action"))
    assert second.at_s - first.at_s >= 0.1


async def test_an_order_that_nobody_could_keep_is_refused() -> None:
    """An order in a saga that is not concurrent, after a later step, or of a step that is not there: ValueError."""
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel, DtmClient(channel, address="127.0.0.1:1") as client:
        with pytest.raises(ValueError, match="concurrent"):
            Saga(client, "g").order(1, after=[0])
        with pytest.raises(ValueError, match="earlier"):
            Saga(client, "g", concurrent=True).order(1, after=[1])
        with pytest.raises(ValueError, match="names step 1"):
            await Saga(client, "g", concurrent=True).add(Step("a", "b"), b"").order(1, after=[0]).submit()


# --- two-phase message


class Stock:
    """A local transaction that only notes who ran it, and the address of its query."""

    def __init__(self, branches: Branches, error: Exception | None = None) -> None:
        self.query = f"{branches.address}/test.Branch/QueryPrepared"
        self.ran: list[BranchContext] = []
        self._error = error

    async def take(self, context: BranchContext) -> str:
        self.ran.append(context)
        if self._error is not None:
            raise self._error
        return "taken"


async def message_of(client: DtmClient, branches: Branches, options: TransOptions = WAITING) -> Message:
    message = Message(client, await client.new_gid(), options=options)
    return message.add(f"{branches.address}/test.Branch/A", b"one").add(f"{branches.address}/test.Branch/B", b"two")


async def test_a_message_is_sent_after_its_local_transaction(client: DtmClient, branches: Branches) -> None:
    """do_and_submit runs the local transaction under (00, msg), then the actions, in order, and returns its value."""
    message = await message_of(client, branches)
    stock = Stock(branches)
    assert await message.do_and_submit(stock.query, stock.take) == "taken"
    assert stock.ran == [BranchContext(message.gid, "msg", "00", "msg", client.address)]
    calls = branches.of(message.gid)
    assert [(call.context.trans_type, call.what, call.payload, call.headers) for call in calls] == [
        ("msg", ("01", "action"), b"one", {"x-trace": "abc"}),
        ("msg", ("02", "action"), b"two", {"x-trace": "abc"}),
    ]
    assert (await until_ended(client, message.gid)).status == "succeed"


async def test_a_local_failure_drops_the_message(client: DtmClient, branches: Branches) -> None:
    """A local transaction that raises a `failure` aborts: nobody is asked, nothing is sent, its error comes out."""
    message = await message_of(client, branches)
    stock = Stock(branches, LookupError("sold out"))
    with pytest.raises(LookupError):
        await message.do_and_submit(stock.query, stock.take, failure=LookupError)
    assert (await until_ended(client, message.gid)).status == "failed"
    assert branches.ops(message.gid) == []
    with pytest.raises(Refused):
        await message.submit()


@pytest.mark.parametrize(
    ("answer", "status", "ops"),
    [
        (Answer(), "succeed", [("00", "msg"), ("01", "action"), ("02", "action")]),
        (REFUSAL, "failed", [("00", "msg")]),
    ],
)
async def test_an_error_of_unknown_meaning_asks_how_it_ended(
    client: DtmClient, branches: Branches, answer: Answer, status: str, ops: list[tuple[str, str]]
) -> None:
    """After any other error the message is sent or dropped by what query_prepared answers; the error comes out."""
    message = await message_of(client, branches)
    stock = Stock(branches, ConnectionError("the commit's answer was lost"))
    branches.script(message.gid, "00", "msg", answer)
    with pytest.raises(ConnectionError):
        await message.do_and_submit(stock.query, stock.take)
    assert (await until_ended(client, message.gid)).status == status
    assert branches.ops(message.gid) == ops


async def test_what_its_starter_leaves_undecided_the_coordinator_decides(client: DtmClient, branches: Branches) -> None:
    """A prepared message that is never submitted, and one whose query did not answer its starter, are sent or dropped
    by the answer that the coordinator gets; a delayed one is sent too, but not before its time.
    """
    sent, dropped, unknown = [await message_of(client, branches, SOON) for _ in range(3)]
    delayed = (await message_of(client, branches, SOON)).delay(DELAY_S)
    stock = Stock(branches, ConnectionError("lost"))
    branches.script(dropped.gid, "00", "msg", REFUSAL)
    branches.script(unknown.gid, "00", "msg", Answer(grpc.StatusCode.INTERNAL, "broken"))
    prepared_at_s = time.monotonic()
    for message in (sent, dropped, delayed):
        await message.prepare(stock.query)
    await delayed.submit()
    with pytest.raises(ConnectionError):
        await unknown.do_and_submit(stock.query, stock.take)
    ended = await asyncio.gather(*(until_ended(client, each.gid) for each in (sent, dropped, unknown, delayed)))
    assert [each.status for each in ended] == ["succeed", "failed", "succeed", "succeed"]
    actions = [("01", "action"), ("02", "action")]
    assert branches.ops(sent.gid) == [("00", "msg"), *actions]
    assert branches.ops(dropped.gid) == [("00", "msg")]
    assert branches.ops(unknown.gid) == [("00", "msg"), ("00", "msg"), *actions]
    assert branches.ops(delayed.gid) == actions
    assert branches.of(delayed.gid)[0].at_s - prepared_at_s > DELAY_S - 1  # coordinators keep whole seconds


async def test_a_message_is_submitted_once(client: DtmClient, branches: Branches) -> None:
    """A second submit, and an abort after a submit, raise RuntimeError; a message without actions raises ValueError."""
    message = await message_of(client, branches)
    await message.prepare(Stock(branches).query)
    await message.submit()
    with pytest.raises(RuntimeError):
        await message.submit()
    with pytest.raises(RuntimeError):
        await message.abort()
    with pytest.raises(ValueError, match="action"):
        await Message(client, "nothing-in-it").prepare(Stock(branches).query)


# --- XA


def url(branches: Branches, method: str = "Sell") -> str:
    return f"{branches.address}/test.Branch/{method}"


async def test_an_xa_branch_is_one_method(client: DtmClient, branches: Branches) -> None:
    """The starter calls it with `action` and the payload, the coordinator with `commit` alone, first branch first."""
    xa = await Xa.begin(client, await client.new_gid(), options=WAITING)
    branches.script(xa.gid, "01", "action", Answer(payload=b"reply"))
    assert await xa.call_branch(url(branches), b"one", timeout_ms=1_000) == b"reply"
    assert await xa.call_branch(url(branches), b"two", timeout_ms=1_000) == b""
    await xa.submit()
    calls = branches.of(xa.gid)
    assert [(call.what, call.payload, call.headers) for call in calls] == [
        (("01", "action"), b"one", {"x-trace": "abc"}),
        (("02", "action"), b"two", {"x-trace": "abc"}),
        (("01", "commit"), b"", {"x-trace": "abc"}),
        (("02", "commit"), b"", {"x-trace": "abc"}),
    ]
    assert {call.context.trans_type for call in calls} == {"xa"}


async def test_a_failed_branch_is_rolled_back_too(client: DtmClient, branches: Branches) -> None:
    """When the body raises, every branch that was registered gets `rollback`, the one that failed among them."""
    gids: list[str] = []

    async def body(xa: Xa) -> None:
        gids.append(xa.gid)
        branches.script(xa.gid, "02", "action", REFUSAL)
        await xa.call_branch(url(branches), b"", timeout_ms=1_000)
        await xa.call_branch(url(branches), b"", timeout_ms=1_000)

    with pytest.raises(Refused):
        await xa_transaction(client, body, options=WAITING)
    assert branches.ops(gids[0])[2:] == [("01", "rollback"), ("02", "rollback")]
    ended = await until_ended(client, gids[0])
    assert (ended.status, ended.trans_type) == ("failed", "xa")
    assert "sold out" in ended.rollback_reason


async def test_an_xa_transaction_that_nobody_ends_is_rolled_back(client: DtmClient, branches: Branches) -> None:
    """A starter that dies between its branches' prepares and Submit: the coordinator rolls back after the time-out."""
    xa = await Xa.begin(client, await client.new_gid(), options=SOON)
    await xa.call_branch(url(branches), b"", timeout_ms=1_000)
    assert (await until_ended(client, xa.gid)).status == "failed"
    assert branches.ops(xa.gid) == [("01", "action"), ("01", "rollback")]
