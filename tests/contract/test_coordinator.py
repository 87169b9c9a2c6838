"""What every coordinator that speaks DTM's protocol does: ours on SQLite, ours on MariaDB, and a DTM on its SQL store.

`tests/conformance/differences.py` lists everything in which they are allowed to differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from seckill.dtm import CallFailed, DtmClient, Refused, Tcc, TransOptions
from seckill.dtm.protocol import GlobalTransaction
from tests.conformance.differences import COORDINATORS, OURS, REFERENCE, REGISTERED_TWICE, UNSERVED_TYPE
from tests.conformance.python_client import go_name
from tests.support.branches import Answer, Branches, serve_branches
from tests.support.coordinators import Backend, backend_at, client_of, coordinator_on, mariadb_logs, sqlite_logs

ABORTED = grpc.StatusCode.ABORTED
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INTERNAL = grpc.StatusCode.INTERNAL
OK = grpc.StatusCode.OK
UNKNOWN = grpc.StatusCode.UNKNOWN

KINDS = (*OURS, REFERENCE)

BROKEN = Answer(INTERNAL, "broken")
WAITING = TransOptions(wait_result=True)
SHORT = TransOptions(wait_result=True, retry_interval_s=1)
PREFIX = (
    "your http/grpc result should be specified as in:\n"
    "http://d.dtm.pub/practice/arch.html#proto\n"
    "unkown result will be retried: "
)


@pytest.fixture(params=KINDS)
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    kind = request.param
    async with AsyncExitStack() as stack:
        if kind == REFERENCE:
            yield backend_at(kind, request.getfixturevalue("servers").dtm)
            return
        logs = sqlite_logs(tmp_path) if kind == "sqlite" else mariadb_logs(request.getfixturevalue("servers"))
        yield backend_at(kind, await stack.enter_async_context(coordinator_on(await logs.fresh())))


@pytest.fixture
async def client(backend: Backend) -> AsyncIterator[DtmClient]:
    async with client_of(backend) as opened:
        yield opened


@pytest.fixture
async def branches() -> AsyncIterator[Branches]:
    async with serve_branches() as served:
        yield served


async def prepared(client: DtmClient, branches: Branches, *, options: TransOptions = WAITING, count: int = 2) -> str:
    """A prepared transaction with branches whose payloads are their ids; returns its gid."""
    gid = await client.new_gid()
    await client.prepare(gid, options=options)
    for number in range(1, count + 1):
        await register(client, branches, gid, f"{number:02d}")
    return gid


async def register(client: DtmClient, branches: Branches, gid: str, branch_id: str) -> None:
    data = {"confirm": branches.branch.confirm, "cancel": branches.branch.cancel}
    await client.register_branch(gid, trans_type="tcc", branch_id=branch_id, data=data, payload=branch_id.encode())


async def answer(request: Awaitable[None]) -> tuple[grpc.StatusCode, str]:
    """The status that a request was answered with."""
    try:
        await request
    except CallFailed as error:
        return error.code, error.detail
    return OK, ""


async def status(client: DtmClient, gid: str) -> str:
    transaction = await client.query(gid)
    assert transaction is not None
    return transaction.status


async def until_status(client: DtmClient, gid: str, wanted: str, *, timeout_s: float = 15) -> GlobalTransaction:
    async with asyncio.timeout(timeout_s):
        while True:
            transaction = await client.query(gid)
            if transaction is not None and transaction.status == wanted:
                return transaction
            await asyncio.sleep(0.02)


# --- the order of calls, and what they carry


async def test_confirm_is_called_last_branch_first(client: DtmClient, branches: Branches) -> None:
    """After Submit every branch is confirmed, the last registered first, with its identity, headers and payload."""
    options = TransOptions(wait_result=True, branch_headers={"X-Trace": "abc"})
    gid = await prepared(client, branches, options=options)
    await client.submit(gid, options=options)
    assert branches.ops(gid) == [("02", "confirm"), ("01", "confirm")]
    calls = branches.of(gid)
    assert [(call.context.gid, call.context.trans_type, call.context.dtm) for call in calls] == [(gid, "tcc", "")] * 2
    assert [(call.payload, call.headers) for call in calls] == [
        (b"02", {"x-trace": "abc"}),
        (b"01", {"x-trace": "abc"}),
    ]
    assert await status(client, gid) == "succeed"


async def test_cancel_is_called_last_branch_first(client: DtmClient, branches: Branches) -> None:
    """After Abort every branch is cancelled, the last registered first, and the reason is kept."""
    gid = await prepared(client, branches)
    await client.abort(gid, reason="sold out")
    assert branches.ops(gid) == [("02", "cancel"), ("01", "cancel")]
    ended = await client.query(gid)
    assert ended is not None
    assert (ended.status, ended.rollback_reason) == ("failed", "sold out")


async def test_the_order_is_that_of_registration(client: DtmClient, branches: Branches) -> None:
    """Not the branch ids but the order of their registration counts."""
    gid = await prepared(client, branches, count=0)
    for branch_id in ("02", "01", "03"):
        await register(client, branches, gid, branch_id)
    await client.submit(gid, options=WAITING)
    assert [branch_id for branch_id, _ in branches.ops(gid)] == ["03", "01", "02"]


async def test_an_operation_without_an_address_needs_no_call(client: DtmClient, branches: Branches) -> None:
    """A branch that registered no Confirm counts as confirmed."""
    gid = await prepared(client, branches, count=1)
    await client.register_branch(gid, trans_type="tcc", branch_id="02", data={}, payload=b"")
    await client.submit(gid, options=WAITING)
    assert branches.ops(gid) == [("01", "confirm")]
    assert await status(client, gid) == "succeed"


async def test_an_empty_transaction_succeeds(client: DtmClient, branches: Branches) -> None:
    """A transaction without branches is finished by its Submit."""
    gid = await prepared(client, branches, count=0)
    await client.submit(gid, options=WAITING)
    assert await status(client, gid) == "succeed"


# --- waiting for the result


async def test_submit_without_waiting_answers_before_confirm(client: DtmClient, branches: Branches) -> None:
    """Without wait_result Submit answers once the decision is durable, and Confirm follows."""
    gid = await prepared(client, branches, options=TransOptions(), count=1)
    branches.script(gid, "01", "confirm", Answer(pause_ms=500))
    await client.submit(gid)
    assert await status(client, gid) == "submitted"
    await until_status(client, gid, "succeed")


async def test_abort_waits_as_prepare_said(client: DtmClient, branches: Branches) -> None:
    """Whether Abort waits is what Prepare asked for, whatever Abort itself says."""
    waits = await prepared(client, branches, options=SHORT, count=1)
    hurries = await prepared(client, branches, options=TransOptions(retry_interval_s=1), count=1)
    for gid in (waits, hurries):
        branches.script(gid, "01", "cancel", BROKEN)
    assert (await answer(client.abort(waits)))[0] is INTERNAL
    assert await answer(client.abort(hurries, options=WAITING)) == (OK, "")


FAILURES = {
    "internal": (BROKEN, INTERNAL, f"{PREFIX}rpc error: code = Internal desc = broken"),
    "refused": (Answer(ABORTED, "no"), ABORTED, f"{PREFIX}no FAILURE"),
    "refused as DTM does": (Answer(ABORTED, "no FAILURE"), ABORTED, f"{PREFIX}no FAILURE"),
    "ongoing": (Answer(FAILED_PRECONDITION, "not yet"), FAILED_PRECONDITION, "ONGOING"),
    "ongoing as of old": (Answer(ABORTED, "ONGOING"), FAILED_PRECONDITION, "ONGOING"),
}


async def test_who_waits_learns_how_confirm_failed(client: DtmClient, branches: Branches) -> None:
    """A waiting Submit answers Confirm's first failure; the transaction stays submitted, and Confirm is repeated."""

    async def play(said: Answer) -> tuple[grpc.StatusCode, str]:
        gid = await prepared(client, branches, options=SHORT, count=1)
        branches.script(gid, "01", "confirm", said)
        told = await answer(client.submit(gid, options=SHORT))
        assert await status(client, gid) == "submitted"
        await until_status(client, gid, "succeed")
        assert branches.ops(gid) == [("01", "confirm")] * 2
        return told

    told = await asyncio.gather(*(play(said) for said, _, _ in FAILURES.values()))
    assert dict(zip(FAILURES, told, strict=True)) == {name: tuple(rest) for name, (_, *rest) in FAILURES.items()}


async def test_an_address_nobody_can_call_is_told(client: DtmClient, branches: Branches) -> None:
    """A waiting Submit answers what is wrong with a branch's address."""
    gid = await prepared(client, branches, count=0)
    await client.register_branch(gid, trans_type="tcc", branch_id="01", data={"confirm": "nowhere"}, payload=b"")
    told = await answer(client.submit(gid, options=WAITING))
    assert told == (UNKNOWN, f"{PREFIX}bad url: 'nowhere'. no '/' found")


async def test_request_timeout_bounds_a_branch_call(client: DtmClient, branches: Branches) -> None:
    """A Confirm that takes longer than request_timeout_s has failed, and is repeated."""
    options = TransOptions(wait_result=True, retry_interval_s=1, request_timeout_s=1)
    gid = await prepared(client, branches, options=options, count=1)
    branches.script(gid, "01", "confirm", Answer(pause_ms=1_500))
    code, message = await answer(client.submit(gid, options=options))
    expected = f"{PREFIX}rpc error: code = DeadlineExceeded desc = context deadline exceeded"
    assert (code, message) == (grpc.StatusCode.DEADLINE_EXCEEDED, expected)
    await until_status(client, gid, "succeed")


# --- repeats


async def test_a_failing_confirm_is_repeated_with_doubling_pauses(client: DtmClient, branches: Branches) -> None:
    """Repeats come after twice the interval, then four times; branches that answered OK are not called again."""
    gid = await prepared(client, branches, options=SHORT)
    branches.script(gid, "01", "confirm", BROKEN, BROKEN)
    await answer(client.submit(gid, options=SHORT))
    await until_status(client, gid, "succeed")
    assert branches.ops(gid) == [("02", "confirm"), *[("01", "confirm")] * 3]
    first, second = branches.gaps_ms(gid, "01", "confirm")
    assert 2_000 <= first < 4_000
    assert 4_000 <= second < 6_000


async def test_an_ongoing_confirm_is_repeated_with_an_even_pause(client: DtmClient, branches: Branches) -> None:
    """A branch that says "ongoing" is asked again after the interval, which does not grow."""
    gid = await prepared(client, branches, options=SHORT, count=1)
    branches.script(gid, "01", "confirm", *[Answer(FAILED_PRECONDITION, "not yet")] * 3)
    await answer(client.submit(gid, options=SHORT))
    await until_status(client, gid, "succeed")
    assert all(1_000 <= gap < 3_000 for gap in branches.gaps_ms(gid, "01", "confirm"))


async def test_a_failing_cancel_is_repeated(client: DtmClient, branches: Branches) -> None:
    """Cancel, too, is repeated until it answers OK; the branch before it waits for that."""
    gid = await prepared(client, branches, options=SHORT)
    branches.script(gid, "02", "cancel", BROKEN)
    await answer(client.abort(gid))
    assert branches.ops(gid) == [("02", "cancel")]
    await until_status(client, gid, "failed")
    assert branches.ops(gid) == [("02", "cancel"), ("02", "cancel"), ("01", "cancel")]


async def test_reset_cron_time_brings_the_next_repeat_forward(
    client: DtmClient, branches: Branches, backend: Backend
) -> None:
    """After an outage resetCronTime makes transactions due whose pause has grown long."""
    options = TransOptions(wait_result=True, retry_interval_s=300)
    gid = await prepared(client, branches, options=options, count=1)
    branches.script(gid, "01", "confirm", BROKEN)
    await answer(client.submit(gid, options=options))
    reply = await get_json(backend, "/api/dtmsvr/resetCronTime?timeout=200&limit=1000")
    assert reply["succeed_count"] >= 1
    assert reply["has_remaining"] is False
    await until_status(client, gid, "succeed")


async def test_reset_next_cron_time_brings_one_transaction_forward(
    client: DtmClient, branches: Branches, backend: Backend
) -> None:
    """resetNextCronTime has one transaction repeated now, and no other; a finished one is left as it is."""
    options = TransOptions(wait_result=True, retry_interval_s=300)
    gid, other = [await prepared(client, branches, options=options, count=1) for _ in range(2)]
    for each in (gid, other):
        branches.script(each, "01", "confirm", BROKEN)
        await answer(client.submit(each, options=options))
    await client.reset_next_cron_time(gid)
    await until_status(client, gid, "succeed")
    assert branches.ops(other) == [("01", "confirm")]
    status, reply = await post_json(backend, "/api/dtmsvr/resetNextCronTime", {"gid": gid})
    assert (status, reply) == (200, {"dtm_result": "SUCCESS"})
    assert branches.ops(gid) == [("01", "confirm")] * 2


@pytest.mark.parametrize("body", [{"gid": "nobody-knows-it"}, {}])
async def test_reset_next_cron_time_of_an_unknown_gid(backend: Backend, body: dict[str, str]) -> None:
    """A gid that is unknown, or not given, is HTTP's 500 with a message that names it."""
    status, reply = await post_json(backend, "/api/dtmsvr/resetNextCronTime", body)
    assert status == 500
    assert reply["message"] == f"no TransGlobal with gid: {body.get('gid', '')} found"


async def post_json(backend: Backend, path: str, body: dict[str, str]) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as http, http.post(f"http://{backend.http}{path}", json=body) as response:
        return response.status, await response.json()


# --- time-out


async def test_a_transaction_that_nobody_decides_is_cancelled(client: DtmClient, branches: Branches) -> None:
    """After timeout_to_fail_s every branch is cancelled, last first, and a late Submit is refused."""
    gid = await prepared(client, branches, options=TransOptions(timeout_to_fail_s=1))
    ended = await until_status(client, gid, "failed")
    assert ended.rollback_reason == "Timeout after 1 seconds"
    assert branches.ops(gid) == [("02", "cancel"), ("01", "cancel")]
    assert await answer(client.submit(gid)) == (ABORTED, "current status 'failed', cannot sumbmit. FAILURE")


async def test_a_transaction_in_time_is_not_cancelled(client: DtmClient, branches: Branches) -> None:
    """Before timeout_to_fail_s has passed nothing is cancelled, even when a cron run looks at it."""
    gid = await prepared(client, branches, options=TransOptions(timeout_to_fail_s=4, retry_interval_s=1))
    await asyncio.sleep(2.5)
    assert branches.ops(gid) == []
    await client.submit(gid, options=WAITING)
    assert branches.ops(gid) == [("02", "confirm"), ("01", "confirm")]


# --- refusals


async def test_prepare_may_be_repeated_until_the_decision(client: DtmClient, branches: Branches) -> None:
    """Prepare of a prepared gid succeeds and keeps its branches; of a later one it is refused."""
    gid = await prepared(client, branches, count=1)
    await client.prepare(gid)
    await client.submit(gid, options=WAITING)
    assert branches.ops(gid) == [("01", "confirm")]
    assert await answer(client.prepare(gid)) == (ABORTED, "current status 'succeed', cannot prepare. FAILURE")


async def test_a_finished_transaction_refuses_everything(client: DtmClient, branches: Branches) -> None:
    """Submit, Abort and RegisterBranch of a finished transaction are refused and change nothing."""
    gid = await prepared(client, branches, count=1)
    await client.submit(gid, options=WAITING)
    assert await answer(client.submit(gid)) == (ABORTED, "current status 'succeed', cannot sumbmit. FAILURE")
    refused = "trans type: 'tcc' current status 'succeed', cannot abort. FAILURE"
    assert await answer(client.abort(gid)) == (ABORTED, refused)
    no_trans = f"no trans with gid: {gid} status: prepared found FAILURE"
    assert await answer(register(client, branches, gid, "02")) == (ABORTED, no_trans)
    assert branches.ops(gid) == [("01", "confirm")]


async def test_an_aborted_transaction_cannot_be_submitted(client: DtmClient, branches: Branches) -> None:
    """Submit after Abort is refused, while the branches are being cancelled and after it."""
    gid = await prepared(client, branches, options=TransOptions(), count=1)
    branches.script(gid, "01", "cancel", Answer(pause_ms=300))
    await client.abort(gid)
    assert await answer(client.submit(gid)) == (ABORTED, "current status 'aborting', cannot sumbmit. FAILURE")
    await until_status(client, gid, "failed")
    assert await answer(client.submit(gid)) == (ABORTED, "current status 'failed', cannot sumbmit. FAILURE")
    assert branches.ops(gid) == [("01", "cancel")]


async def test_a_submitted_transaction_cannot_be_aborted(client: DtmClient, branches: Branches) -> None:
    """Abort after Submit is refused while the branches are being confirmed."""
    gid = await prepared(client, branches, options=TransOptions(), count=1)
    branches.script(gid, "01", "confirm", Answer(pause_ms=300))
    await client.submit(gid)
    refused = "trans type: 'tcc' current status 'submitted', cannot abort. FAILURE"
    assert await answer(client.abort(gid)) == (ABORTED, refused)
    await until_status(client, gid, "succeed")


Request = Callable[[DtmClient, str], Awaitable[None]]
UNKNOWN_GID: list[tuple[str, Request, grpc.StatusCode, str]] = [
    ("abort", lambda client, gid: client.abort(gid), INTERNAL, "no TransGlobal with gid: {gid} found"),
    (
        "register",
        lambda client, gid: client.register_branch(gid, trans_type="tcc", branch_id="01", data={}, payload=b""),
        ABORTED,
        "no trans with gid: {gid} status: prepared found FAILURE",
    ),
]


@pytest.mark.parametrize(("name", "request_", "code", "message"), UNKNOWN_GID, ids=[row[0] for row in UNKNOWN_GID])
async def test_an_unknown_gid_is_refused(
    client: DtmClient, name: str, request_: Request, code: grpc.StatusCode, message: str
) -> None:
    """Abort and RegisterBranch for a gid that nobody prepared are refused, and it stays unknown."""
    gid = await client.new_gid()
    assert await answer(request_(client, gid)) == (code, message.format(gid=gid))
    assert await client.query(gid) is None


async def test_submit_of_an_unknown_gid(client: DtmClient, backend: Backend) -> None:
    """Submit for a gid that nobody prepared is refused, and it stays unknown."""
    gid = await client.new_gid()
    code, message = await answer(client.submit(gid, options=WAITING))
    refused = COORDINATORS["submit of an unknown gid"].answers
    told = [("Submit", go_name(code), message.replace(gid, "{gid}"))]
    assert told == (refused if backend.kind in OURS else [("Submit", "OK", "")])
    assert (await client.query(gid) is None) is (backend.kind in OURS)


async def test_a_second_submit_changes_nothing(client: DtmClient, branches: Branches, backend: Backend) -> None:
    """A Submit of a transaction that is being confirmed succeeds, and its branches are still confirmed."""
    gid = await prepared(client, branches, options=SHORT, count=1)
    branches.script(gid, "01", "confirm", BROKEN)
    await answer(client.submit(gid, options=SHORT))
    assert await answer(client.submit(gid, options=TransOptions(retry_interval_s=1))) == (OK, "")
    await until_status(client, gid, "succeed")
    await asyncio.sleep(0.2)
    wanted = COORDINATORS["second submit while the first is confirming"].calls
    assert branches.ops(gid) == (wanted if backend.kind in OURS else [("01", "confirm")])


async def test_a_branch_is_registered_once(client: DtmClient, branches: Branches, backend: Backend) -> None:
    """RegisterBranch of a branch id that is there already is an error; the first registration stands."""
    gid = await prepared(client, branches, count=1)
    again = await answer(
        client.register_branch(gid, trans_type="tcc", branch_id="01", data={"confirm": "other:1/x/y"}, payload=b"")
    )
    assert again == (UNKNOWN, REGISTERED_TWICE[backend.kind].format(gid=gid))
    await client.submit(gid, options=WAITING)
    assert branches.ops(gid) == [("01", "confirm")]


async def test_a_branch_of_an_unknown_type_is_refused(client: DtmClient, branches: Branches) -> None:
    """RegisterBranch with a type that registers no branches is an error."""
    gid = await prepared(client, branches, count=0)
    told = await answer(client.register_branch(gid, trans_type="nonsense", branch_id="01", data={}, payload=b""))
    assert told == (UNKNOWN, "unknow trans type: nonsense")


async def test_a_transaction_of_an_unknown_type_is_refused(client: DtmClient, backend: Backend) -> None:
    """Prepare and Submit of a type that the coordinator does not serve are errors, and nothing is kept."""
    gid = await client.new_gid()
    expected = UNSERVED_TYPE[backend.kind]
    assert (await answer(client.prepare(gid, trans_type="nonsense")))[0].name == expected
    assert (await answer(client.submit(gid, trans_type="nonsense")))[0].name == expected
    assert await client.query(gid) is None


async def test_gids_are_new(client: DtmClient) -> None:
    """NewGid gives a different id each time, short enough for every table that keeps it."""
    gids = [await client.new_gid() for _ in range(50)]
    assert len(set(gids)) == 50
    assert all(0 < len(gid) <= 128 and gid.isascii() for gid in gids)


# --- through the client's own pattern


async def test_a_refused_try_cancels_its_own_branch_too(client: DtmClient, branches: Branches) -> None:
    """A branch is registered before its Try: after an abort the refusing branch is cancelled as well."""
    tcc = await Tcc.begin(client, await client.new_gid(), options=WAITING)
    branches.script(tcc.gid, "02", "try", Answer(ABORTED, "sold out"))
    await tcc.call_branch(branches.branch, b"", timeout_ms=1_000)
    with pytest.raises(Refused):
        await tcc.call_branch(branches.branch, b"", timeout_ms=1_000)
    await tcc.abort()
    assert branches.ops(tcc.gid) == [("01", "try"), ("02", "try"), ("02", "cancel"), ("01", "cancel")]


# --- the query API


async def get_json(backend: Backend, path: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(f"http://{backend.http}{path}") as response:
        return await response.json()


async def test_the_query_api_has_dtms_shape(client: DtmClient, branches: Branches, backend: Backend) -> None:
    """query and all answer with DTM's field names; an unknown gid is null; newGid gives a gid."""
    gid = await prepared(client, branches, options=SHORT, count=1)
    found = await get_json(backend, f"/api/dtmsvr/query?gid={gid}")
    assert found["transaction"].keys() >= {
        "id", "create_time", "update_time", "gid", "trans_type", "status", "protocol", "options",
        "next_cron_interval", "next_cron_time", "concurrent",
    }  # fmt: skip
    assert [(each["branch_id"], each["op"], each["bin_data"]) for each in found["branches"]] == [
        ("01", "cancel", "MDE="),
        ("01", "confirm", "MDE="),
    ]
    assert (await get_json(backend, "/api/dtmsvr/query?gid=nobody"))["transaction"] is None
    alone = await get_json(backend, f"/api/dtmsvr/all?gid={gid}")
    assert [each["gid"] for each in alone["transactions"]] == [gid]
    page = await get_json(backend, "/api/dtmsvr/all?limit=1")
    assert len(page["transactions"]) == 1
    assert page["next_position"]
    assert (await get_json(backend, "/api/dtmsvr/newGid"))["gid"]
