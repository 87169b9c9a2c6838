"""What only our coordinator promises: its log, two of them on one log, load, shutdown, and input that is none."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import pytest

from seckill.coordinator import Coordinator, Store, StoreUnavailable, Timing
from seckill.coordinator.commands import Command, Decide, Insert, Register, Registered
from seckill.coordinator.state import Status, Transaction, now_ms
from seckill.coordinator.tcc import Tcc as TccPattern
from seckill.dtm import CallFailed, Channels, DtmClient, TransOptions, Unavailable
from tests.support.branches import Answer, Branches, serve_branches
from tests.support.coordinators import client_of, coordinator_on

BROKEN = Answer(grpc.StatusCode.INTERNAL, "broken")
WAITING = TransOptions(wait_result=True)


@pytest.fixture
async def branches() -> AsyncIterator[Branches]:
    async with serve_branches() as served:
        yield served


async def prepared(client: DtmClient, branches: Branches, *, options: TransOptions, count: int = 2) -> str:
    gid = await client.new_gid()
    await client.prepare(gid, options=options)
    data = {"confirm": branches.branch.confirm, "cancel": branches.branch.cancel}
    for number in range(1, count + 1):
        await client.register_branch(gid, trans_type="tcc", branch_id=f"{number:02d}", data=data, payload=b"")
    return gid


async def until_status(client: DtmClient, gid: str, wanted: str) -> None:
    async with asyncio.timeout(15):
        while (found := await client.query(gid)) is None or found.status != wanted:
            await asyncio.sleep(0.02)


def opened(gid: str) -> Insert:
    now = now_ms()
    return Insert(Transaction(gid, "tcc", Status.PREPARED, TransOptions(), now, now, now + 60_000, 10))


def registration(gid: str, branch_id: str) -> Register:
    return Register(gid, TccPattern().operations(gid, branch_id, {}, b""))


def time_out(gid: str) -> Decide:
    return Decide(gid, (Status.PREPARED,), Status.ABORTING, owner="me", lease_ms=5_000, interval_s=10)


# --- the log


@pytest.mark.parametrize("stores", [1, 2], ids=["one coordinator", "two coordinators"])
async def test_a_registration_and_a_decision_cannot_miss_each_other(log_url: str, stores: int) -> None:
    """A branch is registered if and only if whoever decides the transaction is given it."""
    async with contextlib.AsyncExitStack() as stack:
        logs = [await stack.enter_async_context(Store(log_url)) for _ in range(stores)]
        gids = [f"race-{number}" for number in range(60)]
        await asyncio.gather(*(logs[0].write(opened(gid)) for gid in gids))
        pauses = random.Random(7)

        async def after_a_while(store: Store, command: Command[Any]) -> Any:
            await asyncio.sleep(pauses.uniform(0, 0.1))
            return await store.write(command)

        writes: list[Any] = []
        for gid in gids:
            writes += [
                after_a_while(logs[0], registration(gid, "01")),
                after_a_while(logs[-1], time_out(gid)),
                after_a_while(logs[0], registration(gid, "02")),
            ]
        outcomes = await asyncio.gather(*writes)
        given = {Registered.YES: 0, Registered.NOT_PREPARED: 0}
        for gid, first, decided, second in zip(gids, outcomes[::3], outcomes[1::3], outcomes[2::3], strict=True):
            expected = [name for name, told in (("01", first), ("02", second)) if told is Registered.YES]
            assert sorted(branch.branch_id for branch in decided.branches[::2]) == expected, gid
            found = await logs[0].find(gid)
            assert found is not None
            assert sorted(branch.branch_id for branch in found[1][::2]) == expected
            for told in (first, second):
                given[told] += 1
        assert min(given.values()) > 0


async def test_a_decision_is_made_once(log_url: str) -> None:
    """Of many decisions about one transaction, from two coordinators, one takes effect; all learn which."""
    async with Store(log_url) as one, Store(log_url) as other:
        await one.write(opened("g"))
        decisions = [
            store.write(Decide("g", (Status.PREPARED,), to, owner=owner, lease_ms=5_000, interval_s=10))
            for store, owner in ((one, "one"), (other, "other"))
            for to in (Status.SUBMITTED, Status.ABORTING)
        ]
        outcomes = [outcome for outcome in await asyncio.gather(*decisions) if outcome is not None]
        assert len(outcomes) == 4
        assert sum(outcome.ours for outcome in outcomes) == 1
        assert len({outcome.transaction.status for outcome in outcomes}) == 1


async def test_a_write_that_fails_changes_nothing(log_url: str) -> None:
    """When a commit fails its callers are told StoreUnavailable, nothing of it is there, and the log goes on."""
    failing = True

    def on_write(moment: str, names: tuple[str, ...]) -> None:
        if failing and moment == "before":
            raise OSError("disk full")

    async with Store(log_url, on_write=on_write) as store:
        outcomes = await asyncio.gather(*(store.write(opened(f"g{n}")) for n in range(3)), return_exceptions=True)
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
        failing = False
        assert await store.page(limit=10) == []
        assert await store.write(opened("g0")) is None


async def test_a_failing_log_is_told_as_unavailable(log_url: str, branches: Branches) -> None:
    """While the log cannot be written every request answers UNAVAILABLE, and what was answered before stands."""
    failing = False

    def on_write(moment: str, names: tuple[str, ...]) -> None:
        if failing and moment == "before":
            raise OSError("disk full")

    async with (
        coordinator_on(log_url, on_write=on_write) as served,
        client_of(served) as client,
    ):
        gid = await prepared(client, branches, options=WAITING)
        failing = True
        for request in (client.prepare("new"), client.submit(gid, options=WAITING), client.abort(gid)):
            with pytest.raises(Unavailable) as caught:
                await request
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert branches.ops(gid) == []
        failing = False
        await client.submit(gid, options=WAITING)
    assert branches.ops(gid) == [("02", "confirm"), ("01", "confirm")]


async def test_many_writes_share_a_commit(log_url: str) -> None:
    """Writes that wait together are committed together, and each gets its own outcome."""
    commits: list[int] = []

    def on_write(moment: str, names: tuple[str, ...]) -> None:
        if moment == "after":
            commits.append(len(names))

    async with Store(log_url, on_write=on_write) as store:
        outcomes = await asyncio.gather(*(store.write(opened(f"g{n % 50}")) for n in range(100)))
    assert [outcome is None for outcome in outcomes] == [True] * 50 + [False] * 50
    assert sum(commits) == 100
    assert len(commits) <= 3


# --- two coordinators, and one after the other


async def test_two_coordinators_share_the_work(log_url: str, branches: Branches) -> None:
    """Two coordinators on one log take up each due transaction once between them."""
    async with (
        coordinator_on(log_url, cron_interval_ms=10) as one,
        coordinator_on(log_url, cron_interval_ms=10) as other,
        client_of(one) as client,
        client_of(other) as second,
    ):
        options = TransOptions(timeout_to_fail_s=1)
        gids = [await prepared(client, branches, options=options, count=1) for _ in range(15)]
        for gid in gids:
            branches.script(gid, "01", "cancel", Answer(pause_ms=100))
        for gid in gids:
            await until_status(second, gid, "failed")
        assert [branches.ops(gid) for gid in gids] == [[("01", "cancel")]] * 15


async def test_an_abort_does_not_disturb_another_coordinator(log_url: str, branches: Branches) -> None:
    """An Abort sent to a second coordinator while the first is cancelling calls no branch a second time."""
    async with (
        coordinator_on(log_url) as one,
        coordinator_on(log_url) as other,
        client_of(one) as client,
        client_of(other) as second,
    ):
        gid = await prepared(client, branches, options=TransOptions(), count=1)
        branches.script(gid, "01", "cancel", Answer(pause_ms=500))
        await client.abort(gid)
        await second.abort(gid)
        await until_status(client, gid, "failed")
        assert branches.ops(gid) == [("01", "cancel")]


async def test_shutdown_waits_for_the_call_under_way(log_url: str, branches: Branches) -> None:
    """A coordinator that is stopped ends the transactions whose branches it is calling."""
    async with coordinator_on(log_url) as served, client_of(served) as client:
        gid = await prepared(client, branches, options=TransOptions())
        branches.script(gid, "02", "confirm", Answer(pause_ms=300))
        await client.submit(gid)
    assert branches.ops(gid) == [("02", "confirm"), ("01", "confirm")]
    async with coordinator_on(log_url) as served, client_of(served) as client:
        found = await client.query(gid)
        assert found is not None
        assert found.status == "succeed"
    assert len(branches.ops(gid)) == 2


async def test_the_next_coordinator_finishes_what_was_left(log_url: str, branches: Branches) -> None:
    """What the drain time did not suffice for is taken up by the next coordinator once the lease has ended."""
    async with (
        coordinator_on(log_url, drain_timeout_ms=100, branch_timeout_s=1) as served,
        client_of(served) as client,
    ):
        gid = await prepared(client, branches, options=TransOptions())
        branches.script(gid, "02", "confirm", Answer(pause_ms=900))
        await client.submit(gid)
        await branches.until(gid, 1)
    async with coordinator_on(log_url, branch_timeout_s=1) as served, client_of(served) as client:
        await until_status(client, gid, "succeed")
    assert branches.ops(gid) == [("02", "confirm"), ("02", "confirm"), ("01", "confirm")]


async def test_a_decision_survives_its_caller(log_url: str, branches: Branches) -> None:
    """A Submit whose caller gives up while Confirm runs is carried out, once."""
    async with coordinator_on(log_url) as served, client_of(served) as client:
        gid = await prepared(client, branches, options=WAITING, count=1)
        branches.script(gid, "01", "confirm", Answer(pause_ms=400))
        with pytest.raises(Unavailable):
            await client.submit(gid, options=WAITING, timeout_ms=100)
        await until_status(client, gid, "succeed")
    assert branches.ops(gid) == [("01", "confirm")]


@pytest.mark.parametrize("turns", [1, 2, 4, 8, 16])
async def test_a_decision_that_is_being_written_is_carried_out(log_url: str, branches: Branches, turns: int) -> None:
    """A Submit that is cancelled after any number of event-loop turns is carried out at once, not after its lease."""
    async with (
        Channels() as channels,
        Store(log_url) as store,
        Coordinator(store, channels, Timing(cron_interval_ms=20)) as coordinator,
    ):
        await coordinator.prepare("g", "tcc", TransOptions())
        await coordinator.register_branch("g", "tcc", "01", {"confirm": branches.branch.confirm}, b"")
        submit = asyncio.create_task(coordinator.submit("g", "tcc", TransOptions()))
        for _ in range(turns):
            await asyncio.sleep(0)
        submit.cancel()
        async with asyncio.timeout(2):
            while not await store.page(limit=1, status="succeed"):
                await asyncio.sleep(0.01)
    assert branches.ops("g") == [("01", "confirm")]


async def test_a_second_waiting_submit_shares_the_result(log_url: str, branches: Branches) -> None:
    """A Submit that comes while the first is confirming waits for the same attempt; between attempts it is ongoing."""
    async with coordinator_on(log_url) as served, client_of(served) as client:
        gid = await prepared(client, branches, options=WAITING, count=1)
        branches.script(gid, "01", "confirm", Answer(grpc.StatusCode.INTERNAL, "broken", pause_ms=300))
        submits = [client.submit(gid, options=WAITING) for _ in range(2)]
        told = await asyncio.gather(*submits, return_exceptions=True)
        assert [error.code for error in told if isinstance(error, CallFailed)] == [grpc.StatusCode.INTERNAL] * 2
        with pytest.raises(CallFailed) as later:
            await client.submit(gid, options=WAITING)
        assert (later.value.code, later.value.detail) == (grpc.StatusCode.FAILED_PRECONDITION, "ONGOING")
    assert branches.ops(gid) == [("01", "confirm")]


async def test_load_above_the_limit_is_left_to_the_cron(log_url: str, branches: Branches) -> None:
    """Decisions are taken whatever the load; branches of more than running_max transactions wait for a cron run."""
    timing = Timing(running_max=2, cron_interval_ms=20)
    async with (
        Channels() as channels,
        Store(log_url) as store,
        Coordinator(store, channels, timing) as coordinator,
    ):
        gids = [coordinator.new_gid() for _ in range(8)]
        for gid in gids:
            branches.script(gid, "01", "confirm", Answer(pause_ms=100))
            await coordinator.prepare(gid, "tcc", TransOptions())
            await coordinator.register_branch(gid, "tcc", "01", {"confirm": branches.branch.confirm}, b"")
        await asyncio.gather(*(coordinator.submit(gid, "tcc", TransOptions()) for gid in gids))
        most = 0
        async with asyncio.timeout(10):
            while len(await store.page(limit=10, status="succeed")) < 8:
                most = max(most, coordinator.running)
                await asyncio.sleep(0.01)
        assert most == 2
    assert all(branches.ops(gid) == [("01", "confirm")] for gid in gids)


# --- input


BAD_GIDS = ["", "x" * 129, "with space", "ключ", "line\nbreak"]


@pytest.mark.parametrize("gid", BAD_GIDS, ids=["empty", "long", "space", "not ASCII", "line break"])
async def test_a_gid_that_is_none_is_refused(sqlite_log: str, gid: str) -> None:
    """A gid that the log cannot keep exactly is refused with INVALID_ARGUMENT."""
    async with coordinator_on(sqlite_log) as served, client_of(served) as client:
        with pytest.raises(CallFailed) as caught:
            await client.prepare(gid)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_gids_differ_by_case(sqlite_log: str) -> None:
    """Ab1 and aB1 are two transactions."""
    async with coordinator_on(sqlite_log) as served, client_of(served) as client:
        await client.prepare("Ab1")
        await client.submit("Ab1", options=WAITING)
        await client.prepare("aB1")


BAD_OPTIONS = [
    TransOptions(timeout_to_fail_s=-1),
    TransOptions(retry_interval_s=2**62),
    TransOptions(branch_headers={"no spaces": "x"}),
    TransOptions(branch_headers={"grpc-timeout": "1S"}),
    TransOptions(branch_headers={"x-a": "é"}),
    TransOptions(branch_headers={"x-a": "a" * 4_096}),
]


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=["negative", "far", "name", "reserved", "value", "large"])
async def test_options_that_cannot_work_are_refused(sqlite_log: str, options: TransOptions) -> None:
    """Options that would make every branch call fail are refused with INVALID_ARGUMENT, by Prepare and by Submit."""
    async with coordinator_on(sqlite_log) as served, client_of(served) as client:
        for request in (client.prepare("g", options=options), client.submit("g", options=options)):
            with pytest.raises(CallFailed) as caught:
                await request
            assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert await client.query("g") is None


@pytest.mark.parametrize(
    ("branch_id", "url"),
    [("", "h:1/x/y"), ("b" * 129, "h:1/x/y"), ("01", "http://h:1/x"), ("01", "h:1/" + "x" * 1_024)],
    ids=["no id", "long id", "http", "long address"],
)
async def test_a_branch_that_cannot_be_kept_is_refused(sqlite_log: str, branch_id: str, url: str) -> None:
    """A branch that the log cannot keep, or that we could never call, is refused with INVALID_ARGUMENT."""
    async with coordinator_on(sqlite_log) as served, client_of(served) as client:
        await client.prepare("g")
        with pytest.raises(CallFailed) as caught:
            await client.register_branch("g", trans_type="tcc", branch_id=branch_id, data={"confirm": url}, payload=b"")
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("trans_type", ["workflow", "SAGA", ""])
async def test_types_that_are_not_served_are_named(sqlite_log: str, trans_type: str) -> None:
    """Prepare of a type that is not served answers INVALID_ARGUMENT naming it."""
    async with coordinator_on(sqlite_log) as served, client_of(served) as client:
        with pytest.raises(CallFailed) as caught:
            await client.prepare("g", trans_type=trans_type)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert repr(trans_type) in caught.value.detail


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/dtmsvr/query", 500),  # as DTM does
        ("/api/dtmsvr/all?limit=0", 400),
        ("/api/dtmsvr/all?limit=1001", 400),
        ("/api/dtmsvr/all?limit=ten", 400),
        ("/api/dtmsvr/all?position=-1", 400),
        (f"/api/dtmsvr/all?position={2**64}", 400),
        ("/api/dtmsvr/all?createTimeStart=²", 400),
        ("/api/dtmsvr/resetCronTime?timeout=soon", 400),
        ("/healthz", 200),
        ("/readyz", 200),
        ("/metrics", 200),
    ],
)
async def test_http_answers(sqlite_log: str, path: str, code: int) -> None:
    """Query parameters that cannot be used are told as 4xx, never as a fault of the server."""
    async with (
        coordinator_on(sqlite_log) as served,
        aiohttp.ClientSession() as session,
        session.get(f"http://{served.http_address}{path}") as response,
    ):
        assert response.status == code
        assert await response.text()


@pytest.mark.parametrize("body", [b"", b"gid=1", b"[]", b'{"gid": 7}', b'{"gid": "' + b"x" * 5_000 + b'"}'])
async def test_a_body_that_cannot_be_used_is_told(sqlite_log: str, body: bytes) -> None:
    """resetNextCronTime wants a small JSON object: anything else is 400 with a message."""
    async with coordinator_on(sqlite_log) as served, aiohttp.ClientSession() as session:
        url = f"http://{served.http_address}/api/dtmsvr/resetNextCronTime"
        async with session.post(url, data=body) as response:
            assert response.status == 400
            assert "body" in (await response.json())["message"]


async def test_metrics_count_what_happened(sqlite_log: str, branches: Branches) -> None:
    """The counters tell transactions by status and branch calls by result."""
    async with (
        coordinator_on(sqlite_log) as served,
        client_of(served) as client,
        aiohttp.ClientSession(f"http://{served.http_address}") as session,
    ):
        before = await _metrics(session)
        gid = await prepared(client, branches, options=WAITING)
        await client.submit(gid, options=WAITING)
        after = await _metrics(session)
    succeeded = 'seckill_coordinator_transactions_total{status="succeed",trans_type="tcc"}'
    confirmed = 'seckill_coordinator_branch_calls_total{op="confirm",result="ok"}'
    assert after[succeeded] - before.get(succeeded, 0) == 1
    assert after[confirmed] - before.get(confirmed, 0) == 2
    assert after["seckill_coordinator_stuck_transactions"] == 0


async def _metrics(session: aiohttp.ClientSession) -> dict[str, float]:
    async with session.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}
