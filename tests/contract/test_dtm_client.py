"""The asyncio DTM client against a coordinator and branches, all over the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from seckill.coordinator import ServedCoordinator
from seckill.dtm import (
    BadTarget,
    Branch,
    BranchContext,
    Channels,
    DtmClient,
    MissingMetadata,
    Ongoing,
    Refused,
    Tcc,
    TransOptions,
    Unavailable,
    global_transaction,
)
from seckill.dtm.protocol import header_metadata
from tests.support.branches import Answer, Branches, serve_branches
from tests.support.coordinators import client_of, coordinator_on

WAITING = TransOptions(wait_result=True)


@pytest.fixture
async def branches() -> AsyncIterator[Branches]:
    async with serve_branches() as served:
        yield served


@pytest.fixture
async def coordinator(sqlite_log: str) -> AsyncIterator[ServedCoordinator]:
    async with coordinator_on(sqlite_log) as served:
        yield served


@pytest.fixture
async def client(coordinator: ServedCoordinator) -> AsyncIterator[DtmClient]:
    async with client_of(coordinator) as opened:
        yield opened


async def begin(client: DtmClient, options: TransOptions = WAITING) -> Tcc:
    return await Tcc.begin(client, await client.new_gid(), options=options)


async def test_try_carries_the_identity_of_its_branch(client: DtmClient, branches: Branches) -> None:
    """Try is called by the client, with branch ids 01, 02, …, the coordinator's address and the branch headers."""
    tcc = await begin(client, TransOptions(wait_result=True, branch_headers={"X-Trace": "abc"}))
    branches.script(tcc.gid, "01", "try", Answer(payload=b"reply"))
    first = await tcc.call_branch(branches.branch, b"one", timeout_ms=1_000)
    second = await tcc.call_branch(branches.branch, b"two", timeout_ms=1_000)
    assert (first.payload, second.payload) == (b"reply", b"")
    calls = branches.of(tcc.gid)
    assert [call.context for call in calls] == [
        BranchContext(tcc.gid, "tcc", branch_id, "try", client.address) for branch_id in ("01", "02")
    ]
    assert [(call.payload, call.headers) for call in calls] == [
        (b"one", {"x-trace": "abc"}),
        (b"two", {"x-trace": "abc"}),
    ]


async def test_confirm_gets_the_registered_payload(client: DtmClient, branches: Branches) -> None:
    """Confirm and Cancel get what was registered, which may differ from what Try gets."""
    tcc = await begin(client)
    await tcc.call_branch(branches.branch, b"everything", registered=b"little", timeout_ms=1_000)
    await tcc.submit()
    payloads = {call.context.op: call.payload for call in branches.of(tcc.gid)}
    assert payloads == {"try": b"everything", "confirm": b"little"}


@pytest.mark.parametrize(
    ("code", "kind", "retryable"),
    [
        (grpc.StatusCode.ABORTED, Refused, False),
        (grpc.StatusCode.FAILED_PRECONDITION, Ongoing, True),
        (grpc.StatusCode.INTERNAL, Unavailable, True),
        (grpc.StatusCode.INVALID_ARGUMENT, Unavailable, True),
    ],
)
async def test_the_status_code_says_what_a_failed_try_means(
    client: DtmClient, branches: Branches, code: grpc.StatusCode, kind: type[Refused], retryable: bool
) -> None:
    """ABORTED is a refusal, FAILED_PRECONDITION ongoing, anything else an unknown outcome; trailing facts come too."""
    tcc = await begin(client)
    branches.script(tcc.gid, "01", "try", Answer(code, "why", trailing=(("code", "SOLD_OUT"),)))
    with pytest.raises(kind) as caught:
        await tcc.call_branch(branches.branch, b"", timeout_ms=1_000)
    error = caught.value
    assert type(error) is kind
    assert (error.retryable, error.code, error.detail) == (retryable, code, "why")
    assert error.target == branches.branch.try_
    assert error.trailing["code"] == "SOLD_OUT"


async def test_a_try_that_takes_too_long_has_an_unknown_outcome(client: DtmClient, branches: Branches) -> None:
    """A Try beyond its time-out raises Unavailable with DEADLINE_EXCEEDED."""
    tcc = await begin(client)
    branches.script(tcc.gid, "01", "try", Answer(pause_ms=2_000))
    with pytest.raises(Unavailable) as caught:
        await tcc.call_branch(branches.branch, b"", timeout_ms=100)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_branch_that_is_not_there_is_unavailable(client: DtmClient) -> None:
    """A Try that reaches nobody raises Unavailable, and its transaction can still be aborted."""
    tcc = await begin(client, TransOptions())
    with pytest.raises(Unavailable):
        await tcc.call_branch(Branch(*(f"127.0.0.1:1/x.X/{op}" for op in "TCC")), b"", timeout_ms=500)
    await tcc.abort(reason="nobody there")


@pytest.mark.parametrize("target", ["", "host:1", "/pkg.Service/Method", "host:1/", "http://host:1/pkg.Service/Method"])
async def test_an_address_nobody_can_call_is_named(target: str) -> None:
    """A target that is not host:port/pkg.Service/Method raises BadTarget naming it."""
    async with Channels() as channels:
        with pytest.raises(BadTarget) as caught:
            await channels.call(target, b"", (), timeout_ms=100)
    assert caught.value.target == target


async def test_submit_is_sent_once(client: DtmClient, branches: Branches) -> None:
    """A second submit, and an abort after a submit, raise RuntimeError and send nothing."""
    tcc = await begin(client)
    await tcc.call_branch(branches.branch, b"", timeout_ms=1_000)
    await tcc.submit()
    with pytest.raises(RuntimeError):
        await tcc.submit()
    with pytest.raises(RuntimeError):
        await tcc.abort()
    assert branches.ops(tcc.gid) == [("01", "try"), ("01", "confirm")]


async def test_submit_counts_as_sent_whatever_it_answered(client: DtmClient, branches: Branches) -> None:
    """After a submit with an unknown outcome a second one raises RuntimeError: the first may have been accepted."""
    tcc = await begin(client)
    await tcc.call_branch(branches.branch, b"", timeout_ms=1_000)
    branches.script(tcc.gid, "01", "confirm", Answer(pause_ms=500))
    with pytest.raises(Unavailable):
        await tcc.submit(timeout_ms=100)
    with pytest.raises(RuntimeError):
        await tcc.submit()


async def test_a_transaction_has_at_most_99_branches(client: DtmClient, branches: Branches) -> None:
    """The hundredth branch raises ValueError before anything is registered: ids have two digits."""
    tcc = await begin(client)
    for _ in range(99):
        await tcc.call_branch(branches.branch, b"", timeout_ms=1_000)
    with pytest.raises(ValueError, match="99"):
        await tcc.call_branch(branches.branch, b"", timeout_ms=1_000)
    await tcc.submit(timeout_ms=20_000)
    confirmed = [branch_id for branch_id, op in branches.ops(tcc.gid) if op == "confirm"]
    assert confirmed == [f"{number:02d}" for number in range(99, 0, -1)]


async def test_a_global_transaction_submits_what_its_body_did(client: DtmClient, branches: Branches) -> None:
    """global_transaction returns the body's value after every branch was confirmed."""

    async def body(tcc: Tcc) -> str:
        await tcc.call_branch(branches.branch, b"", timeout_ms=1_000)
        await tcc.call_branch(branches.branch, b"", timeout_ms=1_000)
        return tcc.gid

    gid = await global_transaction(client, body, options=WAITING)
    assert branches.ops(gid)[2:] == [("02", "confirm"), ("01", "confirm")]


async def test_a_global_transaction_aborts_when_its_body_raises(client: DtmClient, branches: Branches) -> None:
    """What the body raises comes out after the branches, the refusing one included, were cancelled; it says why."""
    gids: list[str] = []

    async def body(tcc: Tcc) -> None:
        gids.append(tcc.gid)
        branches.script(tcc.gid, "02", "try", Answer(grpc.StatusCode.ABORTED, "sold out"))
        await tcc.call_branch(branches.branch, b"", timeout_ms=1_000)
        await tcc.call_branch(branches.branch, b"", timeout_ms=1_000)

    with pytest.raises(Refused):
        await global_transaction(client, body, options=WAITING)
    assert branches.ops(gids[0])[2:] == [("02", "cancel"), ("01", "cancel")]
    ended = await client.query(gids[0])
    assert ended is not None
    assert ended.status == "failed"
    assert "sold out" in ended.rollback_reason


async def test_a_cancelled_global_transaction_aborts(client: DtmClient, branches: Branches) -> None:
    """A task that is cancelled inside the body still cancels its branches before it ends."""
    gids: list[str] = []

    async def body(tcc: Tcc) -> None:
        await tcc.call_branch(branches.branch, b"", timeout_ms=1_000)
        gids.append(tcc.gid)
        await asyncio.sleep(60)

    task = asyncio.create_task(global_transaction(client, body, options=WAITING))
    async with asyncio.timeout(5):
        while not gids:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert branches.ops(gids[0]) == [("01", "try"), ("01", "cancel")]


async def test_query_tells_the_whole_transaction(client: DtmClient, branches: Branches) -> None:
    """query gives status, options, times and each branch operation; an unknown gid gives None."""
    options = TransOptions(True, 20, 2, 1, {"x-a": "b"})
    tcc = await begin(client, options)
    await tcc.call_branch(branches.branch, b"", timeout_ms=1_000)
    prepared = await client.query(tcc.gid)
    await tcc.submit()
    ended = await client.query(tcc.gid)
    assert await client.query("nobody-knows-it") is None
    assert prepared is not None
    assert (prepared.gid, prepared.trans_type, prepared.status) == (tcc.gid, "tcc", "prepared")
    assert prepared.options == options
    assert ended is not None
    assert ended.status == "succeed"
    assert {(each.branch_id, each.op, each.status, each.url) for each in ended.branches} == {
        ("01", "cancel", "prepared", branches.branch.cancel),
        ("01", "confirm", "succeed", branches.branch.confirm),
    }
    assert prepared.created_at == ended.created_at
    assert ended.updated_at is not None
    assert prepared.updated_at is not None
    assert ended.updated_at >= prepared.updated_at


async def test_list_follows_the_pages(client: DtmClient) -> None:
    """list gives as many transactions as asked for, over page borders, newest first, and by status."""
    gids = [f"page-{number:03d}" for number in range(130)]
    for gid in gids:
        await client.prepare(gid)
    await client.abort(gids[0])
    async with asyncio.timeout(5):
        while not (failed := await client.list(status="failed")):
            await asyncio.sleep(0.01)
    assert [each.gid for each in failed] == [gids[0]]
    assert [each.gid for each in await client.list(limit=125)] == gids[:4:-1]
    assert len(await client.list(limit=1_000)) == 130


async def test_a_coordinator_that_is_not_there_is_unavailable() -> None:
    """Every request to a coordinator that does not answer raises Unavailable, within the client's time-out."""
    async with (
        grpc.aio.insecure_channel("127.0.0.1:1") as channel,
        DtmClient(channel, address="127.0.0.1:1", http_url="http://127.0.0.1:1", timeout_ms=300) as client,
    ):
        for request in (
            client.new_gid(),
            client.prepare("g"),
            client.submit("g"),
            client.abort("g"),
            client.query("g"),
        ):
            with pytest.raises(Unavailable):
                await asyncio.wait_for(request, 2)


async def test_queries_need_an_http_address(coordinator: ServedCoordinator) -> None:
    """A client without http_url raises ValueError when it is asked to query."""
    async with grpc.aio.insecure_channel(coordinator.grpc_address) as channel:
        client = DtmClient(channel, address=coordinator.grpc_address)
        with pytest.raises(ValueError, match="http_url"):
            await client.query("g")
        await client.close()


async def test_an_http_server_that_is_no_coordinator_is_unavailable(coordinator: ServedCoordinator) -> None:
    """An answer that is not the query API's raises Unavailable instead of being taken for "unknown gid"."""
    async with (
        grpc.aio.insecure_channel(coordinator.grpc_address) as channel,
        DtmClient(
            channel, address=coordinator.grpc_address, http_url=f"http://{coordinator.http_address}/healthz#"
        ) as client,
    ):
        with pytest.raises(Unavailable):
            await client.query("g")


def test_missing_metadata_is_named() -> None:
    """A branch call without its identity raises MissingMetadata naming every absent or empty key."""
    with pytest.raises(MissingMetadata) as caught:
        BranchContext.from_metadata([("dtm-gid", "g"), ("dtm-op", ""), ("user-agent", "x"), ("trace-bin", b"\xff")])
    assert caught.value.names == ("dtm-trans_type", "dtm-branch_id", "dtm-op")
    with pytest.raises(MissingMetadata):
        BranchContext.from_metadata(None)


def test_a_branch_context_survives_the_wire() -> None:
    """A context read from its own metadata is the same; the coordinator's address may be absent."""
    context = BranchContext("g", "tcc", "01", "try", "host:1")
    assert BranchContext.from_metadata(context.metadata()) == context
    assert BranchContext.from_metadata(context.metadata()[:4]).dtm == ""


def test_branch_headers_become_metadata() -> None:
    """Header names go out in lower case, and the values of -bin headers as bytes."""
    assert header_metadata({"X-A": "1", "t-bin": "é"}) == (("x-a", "1"), ("t-bin", "é".encode()))
