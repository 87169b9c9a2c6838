"""Sagas, messages and XA on our coordinator: what its log has, who takes over, and what comes at the same time.

What a DTM answers and calls in the same cases is compared in `tests/conformance`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import aiohttp
import grpc
import pytest

from seckill.coordinator import ServedCoordinator
from seckill.coordinator.store import OutcomeUnknown
from seckill.crashpoints import CrashPoint, arm
from seckill.dtm import DtmClient, Ongoing, Refused, TransOptions, Unavailable
from seckill.dtm.errors import CallFailed
from seckill.dtm.protocol import GlobalTransaction
from tests.support.branches import Answer, Branches, serve_branches
from tests.support.coordinators import client_of, coordinator_on

ABORTED = grpc.StatusCode.ABORTED
BROKEN = Answer(grpc.StatusCode.INTERNAL, "broken")
NOT_YET = Answer(grpc.StatusCode.FAILED_PRECONDITION, "not yet")
SOLD_OUT = Answer(ABORTED, "sold out")
WAITING = TransOptions(wait_result=True)
SHORT = TransOptions(wait_result=True, retry_interval_s=1)
AT_ONCE = TransOptions(timeout_to_fail_s=1, retry_interval_s=1)


@pytest.fixture
async def branches() -> AsyncIterator[Branches]:
    async with serve_branches() as served:
        yield served


@pytest.fixture
async def served(sqlite_log: str) -> AsyncIterator[ServedCoordinator]:
    async with coordinator_on(sqlite_log, cron_interval_ms=20) as coordinator:
        yield coordinator


@pytest.fixture
async def client(served: ServedCoordinator) -> AsyncIterator[DtmClient]:
    async with client_of(served) as opened:
        yield opened


def url(branches: Branches, method: str) -> str:
    return f"{branches.address}/test.Branch/{method}"


def steps_of(branches: Branches, count: int) -> str:
    return json.dumps([{"action": url(branches, "Action"), "compensate": url(branches, "Compensate")}] * count)


def payloads_of(count: int) -> list[bytes]:
    return [f"{number:02d}".encode() for number in range(1, count + 1)]


async def submit_saga(
    client: DtmClient,
    branches: Branches,
    gid: str,
    *,
    count: int = 2,
    options: TransOptions = WAITING,
    custom: str = "",
) -> None:
    await client.submit(
        gid,
        trans_type="saga",
        options=options,
        steps=steps_of(branches, count),
        payloads=payloads_of(count),
        custom_data=custom,
    )


async def prepare_message(
    client: DtmClient, branches: Branches, gid: str, *, options: TransOptions = AT_ONCE, custom: str = ""
) -> None:
    await client.prepare(
        gid,
        trans_type="msg",
        options=options,
        query_prepared=url(branches, "QueryPrepared"),
        steps=json.dumps([{"action": url(branches, "Action")}] * 2),
        payloads=payloads_of(2),
        custom_data=custom,
    )


async def open_xa(client: DtmClient, branches: Branches, gid: str, *, options: TransOptions = WAITING) -> None:
    await client.prepare(gid, trans_type="xa", options=options)
    for branch_id in ("01", "02"):
        data = {"url": url(branches, "Xa")}
        await client.register_branch(gid, trans_type="xa", branch_id=branch_id, data=data, payload=b"")


async def found(client: DtmClient, gid: str) -> GlobalTransaction:
    transaction = await client.query(gid)
    assert transaction is not None
    return transaction


async def until_status(client: DtmClient, gid: str, wanted: str) -> GlobalTransaction:
    async with asyncio.timeout(15):
        while (transaction := await found(client, gid)).status != wanted:
            await asyncio.sleep(0.02)
        return transaction


async def until_end(served: ServedCoordinator, client: DtmClient, gid: str) -> GlobalTransaction:
    """Without waiting for pauses and leases; one that is prepared has its second, as AT_ONCE says."""
    async with asyncio.timeout(15):
        while not (transaction := await found(client, gid)).finished:
            assert transaction.created_at is not None
            if transaction.status != "prepared" or datetime.now(UTC) - transaction.created_at > timedelta(seconds=1):
                await served.coordinator.reset_cron_of(gid)
            await asyncio.sleep(0.03)
        return transaction


def statuses(transaction: GlobalTransaction) -> list[tuple[str, str, str]]:
    return [(branch.branch_id, branch.op, branch.status) for branch in transaction.branches]


@asynccontextmanager
async def cut_at(point: CrashPoint) -> AsyncIterator[None]:
    """The first attempt that comes to this point breaks there; its lease brings the transaction back."""
    left = 1

    def deed(reached: CrashPoint) -> None:
        nonlocal left
        if reached is point and left:
            left = 0
            raise RuntimeError(f"cut at {point}")

    arm(deed)
    try:
        yield
    finally:
        arm(None)
    assert not left, f"{point} was not reached"


# --- saga


async def test_a_saga_runs_its_actions_in_turn(client: DtmClient, branches: Branches) -> None:
    """Submit alone starts a saga; who waits is answered OK when every action has succeeded."""
    await submit_saga(client, branches, "g", count=3)
    assert branches.ops("g") == [("01", "action"), ("02", "action"), ("03", "action")]
    assert [call.payload for call in branches.of("g")] == payloads_of(3)
    assert (await found(client, "g")).status == "succeed"


async def test_a_refused_action_is_kept_and_undone(client: DtmClient, branches: Branches) -> None:
    """The refusal stands in the log with its reason; compensations follow, the refused action's first."""
    branches.script("g", "02", "action", SOLD_OUT)
    reason = f"url:{url(branches, 'Action')} return failed: sold out FAILURE"
    with pytest.raises(Refused) as told:
        await submit_saga(client, branches, "g", count=3)
    assert told.value.detail == reason
    assert branches.ops("g")[2:] == [("02", "compensate"), ("01", "compensate")]
    ended = await found(client, "g")
    assert (ended.status, ended.rollback_reason) == ("failed", reason)
    assert statuses(ended) == [
        ("01", "compensate", "succeed"),
        ("01", "action", "succeed"),
        ("02", "compensate", "succeed"),
        ("02", "action", "failed"),
        ("03", "compensate", "prepared"),
        ("03", "action", "prepared"),
    ]


async def test_a_saga_that_is_ongoing_is_no_success_yet(
    served: ServedCoordinator, client: DtmClient, branches: Branches
) -> None:
    """One who waits is told ABORTED, as by DTM, though the saga goes on: only its status says how it ends."""
    branches.script("g", "01", "action", NOT_YET)
    with pytest.raises(Refused) as told:
        await submit_saga(client, branches, "g", options=SHORT)
    assert told.value.detail == "wait result not return success: FAILURE"
    assert (await found(client, "g")).status == "submitted"
    await until_end(served, client, "g")
    assert branches.ops("g") == [("01", "action"), ("01", "action"), ("02", "action")]


async def test_a_second_submit_of_a_saga_changes_nothing(client: DtmClient, branches: Branches) -> None:
    """It waits for the attempt that is under way, whatever steps it brings."""
    branches.script("g", "01", "action", Answer(pause_ms=200))
    await asyncio.gather(*(submit_saga(client, branches, "g", count=count) for count in (2, 3)))
    calls = branches.ops("g")
    assert len(calls) == len(set(calls)) in (2, 3)


async def test_actions_of_a_concurrent_saga_run_at_once(client: DtmClient, branches: Branches) -> None:
    """Both are called before either has answered, and the third, which comes after them, after both."""
    custom = json.dumps({"orders": {2: [0, 1]}, "concurrent": True})
    for branch_id in ("01", "02"):
        branches.script("g", branch_id, "action", Answer(pause_ms=300))
    await submit_saga(client, branches, "g", count=3, custom=custom)
    first, second, third = branches.of("g")
    assert {first.what, second.what} == {("01", "action"), ("02", "action")}
    assert second.at_s - first.at_s < 0.25
    assert third.at_s - second.at_s > 0.25


async def test_an_answer_beside_a_running_action_is_kept(sqlite_log: str, branches: Branches) -> None:
    """A coordinator that is stopped while one action runs has written the other's answer: it is not called again."""
    custom = json.dumps({"concurrent": True})
    async with (
        coordinator_on(sqlite_log, branch_timeout_s=1, drain_timeout_ms=100) as served,
        client_of(served) as client,
    ):
        branches.script("g", "01", "action", Answer(pause_ms=900))
        await submit_saga(client, branches, "g", custom=custom, options=TransOptions())
        await branches.until("g", 2)
        async with asyncio.timeout(5):
            while ("02", "action", "succeed") not in statuses(await found(client, "g")):
                await asyncio.sleep(0.01)
    async with coordinator_on(sqlite_log, cron_interval_ms=20) as served, client_of(served) as client:
        await until_end(served, client, "g")
    assert sorted(branches.ops("g")) == [("01", "action"), ("01", "action"), ("02", "action")]


async def test_another_coordinator_undoes_what_the_first_may_have_called(sqlite_log: str, branches: Branches) -> None:
    """The time of a saga is over when another takes it up: the action without an answer is compensated too."""
    options = TransOptions(timeout_to_fail_s=1)
    async with (
        coordinator_on(sqlite_log, branch_timeout_s=1, drain_timeout_ms=50) as served,
        client_of(served) as client,
    ):
        branches.script("g", "02", "action", Answer(pause_ms=900))
        await submit_saga(client, branches, "g", count=3, options=options)
        await branches.until("g", 2)
    async with coordinator_on(sqlite_log, cron_interval_ms=20) as served, client_of(served) as client:
        await asyncio.sleep(1)  # the saga's own time
        ended = await until_end(served, client, "g")
    assert ended.rollback_reason == "Timeout after 1 seconds"
    assert branches.ops("g")[2:] == [("02", "compensate"), ("01", "compensate")]


@pytest.mark.parametrize(
    ("point", "calls"),
    [
        (CrashPoint.ACTION_CALLING, ["a01", "a02", "c02", "c01"]),
        (CrashPoint.ACTION_CALLED, ["a01", "a01", "a02", "c02", "c01"]),
        (CrashPoint.COMPENSATE_CALLED, ["a01", "a02", "c02", "c02", "c01"]),
    ],
)
async def test_a_saga_that_is_cut_goes_on(
    served: ServedCoordinator, client: DtmClient, branches: Branches, point: CrashPoint, calls: Sequence[str]
) -> None:
    """An attempt that breaks is repeated when its lease ends, from what the log has."""
    branches.script("g", "02", "action", SOLD_OUT)
    async with cut_at(point):
        await submit_saga(client, branches, "g", options=TransOptions())
        assert (await until_end(served, client, "g")).status == "failed"
    assert [f"{op[0]}{branch_id}" for branch_id, op in branches.ops("g")] == calls


BAD_SAGAS = ["[", '[{"action": "http://h/x", "compensate": ""}]', "[{}, {}]"]


@pytest.mark.parametrize("steps", BAD_SAGAS, ids=["not JSON", "http", "payloads"])
async def test_a_saga_that_cannot_be_kept_is_refused(client: DtmClient, steps: str) -> None:
    """Steps that could never be called are refused with INVALID_ARGUMENT, and nothing is written."""
    with pytest.raises(Unavailable) as told:
        await client.submit("g", trans_type="saga", steps=steps, payloads=[b""])
    assert told.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert await client.query("g") is None


# --- message


async def test_a_submitted_message_is_sent(client: DtmClient, branches: Branches) -> None:
    """Submit sends what Prepare brought along; nobody is asked."""
    await prepare_message(client, branches, "g", options=WAITING)
    await client.submit("g", trans_type="msg", options=WAITING)
    assert branches.ops("g") == [("01", "action"), ("02", "action")]
    assert [call.payload for call in branches.of("g")] == payloads_of(2)


@pytest.mark.parametrize(
    ("answers", "calls", "status"),
    [
        ([], [("00", "msg"), ("01", "action"), ("02", "action")], "succeed"),
        ([SOLD_OUT], [("00", "msg")], "failed"),
        ([NOT_YET, SOLD_OUT], [("00", "msg")] * 2, "failed"),
    ],
    ids=["it was committed", "it was rolled back", "it is under way, and then rolled back"],
)
async def test_a_message_that_nobody_submits_is_asked_about(
    client: DtmClient, branches: Branches, answers: Sequence[Answer], calls: Sequence[tuple[str, str]], status: str
) -> None:
    """After its time the coordinator asks how the local part ended, and sends it or never does."""
    branches.script("g", "00", "msg", *answers)
    await prepare_message(client, branches, "g")
    await until_status(client, "g", status)
    assert branches.ops("g") == calls
    assert branches.of("g")[0].payload == b""


async def test_a_reset_does_not_put_off_the_time(
    served: ServedCoordinator, client: DtmClient, branches: Branches
) -> None:
    """What is made due before its time is looked at, and again when its time is over, not later."""
    await prepare_message(client, branches, "g")
    await asyncio.sleep(0.3)
    await served.coordinator.reset_cron_of("g")
    await asyncio.sleep(0.3)
    looked_at = await found(client, "g")
    assert looked_at.next_cron_at is not None
    assert looked_at.created_at is not None
    assert looked_at.next_cron_at - looked_at.created_at < timedelta(seconds=1.1)


async def test_a_prepared_saga_waits_for_its_submit(sqlite_log: str, branches: Branches) -> None:
    """No time is too long, and nothing happens until Submit comes: then Prepare's steps are called."""
    steps, payloads = steps_of(branches, 2), payloads_of(2)
    async with (
        coordinator_on(sqlite_log, timeout_to_fail_s=1, cron_interval_ms=20) as served,
        client_of(served) as client,
    ):
        await client.prepare("g", trans_type="saga", steps=steps, payloads=payloads)
        await asyncio.sleep(1.2)
        assert (await found(client, "g")).status == "prepared"
        await client.submit("g", trans_type="saga", options=WAITING)
    assert branches.ops("g") == [("01", "action"), ("02", "action")]


async def test_a_query_that_fails_backs_off(client: DtmClient, branches: Branches) -> None:
    """Any other answer doubles the pause."""
    branches.script("g", "00", "msg", BROKEN)
    await prepare_message(client, branches, "g")
    await branches.until("g", 1)
    async with asyncio.timeout(5):
        while (await found(client, "g")).next_cron_interval_s != 2:
            await asyncio.sleep(0.01)
    await until_status(client, "g", "succeed")
    (pause_ms,) = branches.gaps_ms("g", "00", "msg")
    assert pause_ms >= 1_900


@pytest.mark.parametrize("answer", [Answer(pause_ms=400), Answer(ABORTED, "no", pause_ms=400), NOT_YET])
async def test_a_submit_during_the_query_decides(client: DtmClient, branches: Branches, answer: Answer) -> None:
    """What the query says after Submit is answered changes nothing: the message is sent, once."""
    branches.script("g", "00", "msg", Answer(answer.code, answer.message, pause_ms=400))
    branches.script("g", "01", "action", Answer(pause_ms=600))
    await prepare_message(client, branches, "g")
    await branches.until("g", 1)
    await client.submit("g", trans_type="msg", options=WAITING)
    assert branches.ops("g") == [("00", "msg"), ("01", "action"), ("02", "action")]
    assert (await found(client, "g")).status == "succeed"


async def test_an_abort_during_the_query_decides(client: DtmClient, branches: Branches) -> None:
    """A message that was dropped while its query ran is not sent, whatever the query says."""
    branches.script("g", "00", "msg", Answer(pause_ms=300))
    await prepare_message(client, branches, "g")
    await branches.until("g", 1)
    await client.abort("g", trans_type="msg")
    await asyncio.sleep(0.5)
    assert branches.ops("g") == [("00", "msg")]
    assert (await found(client, "g")).status == "failed"


async def test_two_coordinators_ask_once(sqlite_log: str, branches: Branches) -> None:
    """Of two on one log one asks, and sends."""
    async with (
        coordinator_on(sqlite_log, cron_interval_ms=10) as one,
        coordinator_on(sqlite_log, cron_interval_ms=10) as other,
        client_of(one) as client,
        client_of(other) as second,
    ):
        branches.script("g", "00", "msg", Answer(pause_ms=200))
        await prepare_message(client, branches, "g")
        await until_status(second, "g", "succeed")
    assert branches.ops("g") == [("00", "msg"), ("01", "action"), ("02", "action")]


async def test_an_aborted_message_is_never_sent(client: DtmClient, branches: Branches) -> None:
    """Abort ends a prepared message at once, a Submit after it is refused, and so is a second Abort."""
    await prepare_message(client, branches, "g", options=WAITING)
    await client.abort("g", trans_type="msg")
    assert (await found(client, "g")).status == "failed"
    with pytest.raises(Refused):
        await client.submit("g", trans_type="msg", options=WAITING)
    with pytest.raises(Refused):
        await client.abort("g", trans_type="msg")
    assert branches.ops("g") == []


@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "not prepared"])
async def test_a_message_waits_for_its_delay(
    served: ServedCoordinator, client: DtmClient, branches: Branches, prepared: bool
) -> None:
    """It is sent after its delay, not before: not even when every transaction is made due."""
    custom = json.dumps({"delay": 1})
    if prepared:
        await prepare_message(client, branches, "g", options=WAITING, custom=custom)
    began = asyncio.get_running_loop().time()
    with pytest.raises(Refused) as told:
        await client.submit(
            "g",
            trans_type="msg",
            options=WAITING,
            steps=json.dumps([{"action": url(branches, "Action")}]),
            payloads=[b""],
            custom_data=custom,
        )
    assert told.value.detail == "wait result not return success: FAILURE"
    await served.coordinator.reset_cron_of("g")
    await until_status(client, "g", "succeed")
    assert asyncio.get_running_loop().time() - began > 0.9
    assert branches.ops("g")[0] == ("01", "action")


async def test_topics_are_refused(client: DtmClient) -> None:
    """A message to a topic is refused with INVALID_ARGUMENT naming it: nobody could call it."""
    steps = json.dumps([{"action": "topic://orders"}])
    with pytest.raises(CallFailed) as told:
        await client.submit("g", trans_type="msg", steps=steps, payloads=[b""])
    assert told.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "topic://orders" in told.value.detail


async def test_what_a_message_brought_is_shown(
    served: ServedCoordinator, client: DtmClient, branches: Branches
) -> None:
    """The query API has DTM's fields for it."""
    await prepare_message(client, branches, "g", options=WAITING, custom='{"delay": 7}')
    async with (
        aiohttp.ClientSession(f"http://{served.http_address}") as session,
        session.get("/api/dtmsvr/query", params={"gid": "g"}) as response,
    ):
        shown = (await response.json())["transaction"]
    assert shown["query_prepared"] == url(branches, "QueryPrepared")
    assert shown["custom_data"] == '{"delay": 7}'


# --- XA


async def test_xa_branches_are_committed_in_order(client: DtmClient, branches: Branches) -> None:
    """Submit commits the branches as they were registered."""
    await open_xa(client, branches, "g")
    await client.submit("g", trans_type="xa", options=WAITING)
    assert branches.ops("g") == [("01", "commit"), ("02", "commit")]


async def test_an_xa_that_nobody_submits_is_rolled_back(client: DtmClient, branches: Branches) -> None:
    """After its time every branch is rolled back, in order."""
    await open_xa(client, branches, "g", options=AT_ONCE)
    ended = await until_status(client, "g", "failed")
    assert branches.ops("g") == [("01", "rollback"), ("02", "rollback")]
    assert ended.rollback_reason == "Timeout after 1 seconds"


async def test_a_commit_that_fails_is_repeated(
    served: ServedCoordinator, client: DtmClient, branches: Branches
) -> None:
    """Nothing turns a submitted XA back, not even ABORTED; the branches after it wait."""
    branches.script("g", "01", "commit", SOLD_OUT, NOT_YET)
    await open_xa(client, branches, "g", options=SHORT)
    with pytest.raises(Refused):
        await client.submit("g", trans_type="xa", options=SHORT)
    assert (await until_end(served, client, "g")).status == "succeed"
    assert branches.ops("g") == [("01", "commit")] * 3 + [("02", "commit")]


async def test_an_unknown_xa_cannot_be_submitted(client: DtmClient) -> None:
    """Its branches are known to nobody: a success would be a lie."""
    with pytest.raises(Refused):
        await client.submit("g", trans_type="xa", options=WAITING)
    assert await client.query("g") is None


async def test_a_waiting_submit_between_attempts_is_ongoing(client: DtmClient, branches: Branches) -> None:
    """Of every pattern: a second Submit calls nothing."""
    branches.script("g", "01", "action", BROKEN)
    for told in (Refused, Ongoing):
        with pytest.raises(told):
            await submit_saga(client, branches, "g")
    assert branches.ops("g") == [("01", "action")]


# --- whatever is lost


Play = Callable[[DtmClient, Branches, str], Awaitable[None]]


async def refused_saga(client: DtmClient, branches: Branches, gid: str) -> None:
    branches.script(gid, "02", "action", SOLD_OUT)
    await submit_saga(client, branches, gid)


async def concurrent_saga(client: DtmClient, branches: Branches, gid: str) -> None:
    branches.script(gid, "02", "action", Answer(ABORTED, "sold out", pause_ms=50))
    branches.script(gid, "01", "action", Answer(pause_ms=100))
    await submit_saga(client, branches, gid, custom=json.dumps({"concurrent": True}))


async def message_left_alone(client: DtmClient, branches: Branches, gid: str) -> None:
    await prepare_message(client, branches, gid)


async def submitted_xa(client: DtmClient, branches: Branches, gid: str) -> None:
    await open_xa(client, branches, gid, options=AT_ONCE)
    await client.submit(gid, trans_type="xa", options=AT_ONCE)


@dataclass(slots=True)
class Writes:
    """Counts the commits of a log, and breaks one of them: before it, or when it is done and nobody knows."""

    cut: tuple[int, str] | None = None
    seen: int = 0

    def __call__(self, moment: str, names: tuple[str, ...]) -> None:
        if "Reset" in names:  # ours
            return
        self.seen += moment == "before"
        if self.cut == (self.seen, moment):
            self.cut = None
            raise OutcomeUnknown("cut")


@pytest.mark.parametrize("play", [refused_saga, concurrent_saga, message_left_alone, submitted_xa])
async def test_a_lost_write_loses_and_splits_nothing(sqlite_log: str, branches: Branches, play: Play) -> None:
    """Whichever write is lost, or its answer: what may have taken effect is ended, the same way for all branches."""
    writes = Writes()
    async with coordinator_on(sqlite_log, on_write=writes, cron_interval_ms=20) as served, client_of(served) as client:

        async def end_of(gid: str) -> GlobalTransaction | None:
            with contextlib.suppress(CallFailed):
                await play(client, branches, gid)
            return await until_end(served, client, gid) if await client.query(gid) else None

        assert await end_of("undisturbed") is not None
        cuts = [(write, moment) for write in range(1, writes.seen + 1) for moment in ("before", "after")]
        assert len(cuts) >= 6
        for cut in cuts:
            gid = f"{cut[1]}-{cut[0]}"
            writes.seen, writes.cut = 0, cut
            end = await end_of(gid)
            assert end is not None or cut == (1, "before"), cut
            if end is not None:
                judge(end, branches.ops(gid))


def judge(end: GlobalTransaction, calls: Sequence[tuple[str, str]]) -> None:
    """All that the end asks for was called until it answered; what went wrong was undone, and nothing else called."""
    ops = {op for _, op in calls}
    of_branches = {branch.branch_id for branch in end.branches}
    match end.trans_type, end.status:
        case "saga", "failed":
            assert {branch_id for branch_id, op in calls if op == "compensate"} == of_branches
        case "saga", "succeed":  # the refusal was lost, and the second answer was another one
            assert ops == {"action"}
        case "msg", "succeed":
            assert {branch_id for branch_id, op in calls if op == "action"} == of_branches
        case "xa", status:
            assert ops <= {"commit" if status == "succeed" else "rollback"}
            assert {branch_id for branch_id, _ in calls} == of_branches
        case what:
            raise AssertionError(what)
    assert all(calls.count(call) <= 2 for call in calls)
