"""The log on MariaDB when MariaDB, or the way to it, fails: what callers are told, and what is there afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from seckill.coordinator import ServedCoordinator, Store, StoreUnavailable
from seckill.coordinator.commands import Decide, Insert, Register, Registered
from seckill.coordinator.state import Status, Transaction, now_ms
from seckill.coordinator.store import LOCK_WAIT_S, OutcomeUnknown
from seckill.coordinator.tcc import Tcc as TccPattern
from seckill.dtm import CallFailed, DtmClient, TransOptions, Unavailable
from seckill.schema import upgrade
from tests.servers import Servers, fresh_database, native
from tests.support.branches import Answer, Branches, serve_branches
from tests.support.coordinators import client_of, coordinator_on, mariadb_logs
from tests.support.lossy_database import Loss, LossyDatabase, lossy_database

WAITING = TransOptions(wait_result=True)
LEASE_S = 3  # of a coordinator whose branch calls have one second


@pytest.fixture
async def branches() -> AsyncIterator[Branches]:
    async with serve_branches() as served:
        yield served


@pytest.fixture
async def log_url(servers: Servers) -> str:
    return await mariadb_logs(servers).fresh()


@pytest.fixture
async def lossy(log_url: str) -> AsyncIterator[LossyDatabase]:
    async with lossy_database(log_url) as relay:
        yield relay


@pytest.fixture
async def served(lossy: LossyDatabase) -> AsyncIterator[ServedCoordinator]:
    async with coordinator_on(lossy.url, branch_timeout_s=1) as coordinator:
        yield coordinator


@pytest.fixture
async def client(served: ServedCoordinator) -> AsyncIterator[DtmClient]:
    async with client_of(served) as opened:
        yield opened


@pytest.fixture
async def beside(log_url: str) -> AsyncIterator[AsyncEngine]:
    """A connection of our own, past the code under test."""
    engine = create_async_engine(log_url, poolclass=NullPool, isolation_level="READ COMMITTED")
    yield engine
    await engine.dispose()


async def prepared(client: DtmClient, branches: Branches, *, options: TransOptions = WAITING) -> str:
    gid = await client.new_gid()
    await client.prepare(gid, options=options)
    data = {"confirm": branches.branch.confirm, "cancel": branches.branch.cancel}
    await client.register_branch(gid, trans_type="tcc", branch_id="01", data=data, payload=b"")
    return gid


async def status_of(client: DtmClient, gid: str) -> str:
    found = await client.query(gid)
    assert found is not None
    return found.status


async def until_status(client: DtmClient, gid: str, wanted: str, *, timeout_s: float = 15) -> None:
    async with asyncio.timeout(timeout_s):
        while await status_of(client, gid) != wanted:
            await asyncio.sleep(0.02)


def opened(gid: str) -> Insert:
    now = now_ms()
    return Insert(Transaction(gid, "tcc", Status.PREPARED, TransOptions(), now, now, now + 60_000, 10))


def decision(gid: str, to: Status = Status.SUBMITTED) -> Decide:
    return Decide(gid, (Status.PREPARED,), to, owner="me", lease_ms=5_000, interval_s=10)


# --- a commit whose answer is lost


@pytest.mark.parametrize(("loss", "written"), [(Loss.ANSWER, True), (Loss.REQUEST, False)])
async def test_a_submit_whose_commit_is_not_answered_is_unknown(
    client: DtmClient, branches: Branches, lossy: LossyDatabase, loss: Loss, written: bool
) -> None:
    """It answers UNAVAILABLE and calls no branch; a second Submit finds what is there; Confirm comes once."""
    gid = await prepared(client, branches, options=TransOptions())
    lossy.lose = loss
    with pytest.raises(Unavailable) as caught:
        await client.submit(gid)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert "the commit was not answered" in caught.value.detail
    assert lossy.lost == 1
    assert await status_of(client, gid) == ("submitted" if written else "prepared")
    assert branches.ops(gid) == []
    await client.submit(gid)
    await until_status(client, gid, "succeed", timeout_s=LEASE_S + 2)
    assert branches.ops(gid) == [("01", "confirm")]


async def test_a_decision_whose_commit_is_not_answered_is_carried_out(
    client: DtmClient, branches: Branches, lossy: LossyDatabase
) -> None:
    """A decision that is in the log is carried out once its lease has ended, though nobody was told of it."""
    gid = await prepared(client, branches)
    lossy.lose = Loss.ANSWER
    with pytest.raises(Unavailable):
        await client.submit(gid, options=WAITING)
    with pytest.raises(CallFailed) as caught:
        await client.submit(gid, options=WAITING)
    assert (caught.value.code, caught.value.detail) == (grpc.StatusCode.FAILED_PRECONDITION, "ONGOING")
    await until_status(client, gid, "succeed", timeout_s=LEASE_S + 2)
    assert branches.ops(gid) == [("01", "confirm")]


async def test_an_unanswered_commit_is_never_repeated(lossy: LossyDatabase) -> None:
    """All callers of the batch are told that its outcome is unknown, and the log goes on after it."""
    async with Store(lossy.url) as store:
        await store.write(opened("g"))
        lossy.lose = Loss.ANSWER
        writes = [store.write(Register("g", TccPattern().operations("g", f"{n:02d}", {}, b""))) for n in range(5)]
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        unknown = [outcome for outcome in outcomes if isinstance(outcome, OutcomeUnknown)]
        assert unknown
        assert all(outcome in unknown or outcome is Registered.YES for outcome in outcomes)
        found = await store.find("g")
        assert found is not None
        assert len(found[1]) == 10
        again = Register("g", TccPattern().operations("g", "00", {}, b""))
        assert await store.write(again) is Registered.TWICE


# --- connections that break, and a server that comes back


async def test_broken_connections_are_not_noticed(lossy: LossyDatabase) -> None:
    """What was not committed yet is done again on a new connection, and a read is made again."""
    async with Store(lossy.url) as store:
        for number in range(3):
            lossy.cut()
            await asyncio.sleep(0.05)
            assert await store.write(opened(f"g{number}")) is None
            lossy.cut()
            await asyncio.sleep(0.05)
            assert await store.find(f"g{number}") is not None
        assert len(await store.page(limit=10)) == 3


async def test_a_database_that_is_restarted_in_mid_run(branches: Branches, servers: Servers, tmp_path: Path) -> None:
    """While MariaDB is down requests answer UNAVAILABLE; what was answered before stands, and work goes on after."""
    assert servers.mariadb
    with native.mariadb_process(tmp_path / "mariadb") as server:
        url = fresh_database(server.url, "coordinator")
        await upgrade("coordinator", url)
        async with coordinator_on(url, branch_timeout_s=1) as served, client_of(served, timeout_ms=8_000) as client:
            confirmed = await prepared(client, branches)
            await client.submit(confirmed, options=WAITING)
            waiting = await prepared(client, branches)
            running = await prepared(client, branches, options=TransOptions())
            branches.script(running, "01", "confirm", Answer(pause_ms=800))
            await client.submit(running)
            await asyncio.to_thread(server.kill)
            told = await asyncio.gather(
                *(client.submit(waiting) for _ in range(3)),
                *(client.prepare(f"new-{number}") for number in range(20)),
                return_exceptions=True,
            )
            assert {type(each) for each in told} == {Unavailable}
            assert {each.code for each in told if isinstance(each, CallFailed)} == {grpc.StatusCode.UNAVAILABLE}
            await asyncio.to_thread(server.start)
            assert await status_of(client, confirmed) == "succeed"
            assert await status_of(client, waiting) == "prepared"
            await client.submit(waiting, options=WAITING)
            await until_status(client, running, "succeed", timeout_s=LEASE_S + 4)
    assert branches.ops(confirmed) == branches.ops(waiting) == [("01", "confirm")]
    assert set(branches.ops(running)) == {("01", "confirm")}


# --- locks


async def test_a_locked_transaction_is_waited_for(log_url: str, beside: AsyncEngine) -> None:
    """A lock that another writer holds longer than the lock time-out (1205) is waited for in a new attempt."""
    async with Store(log_url) as store:
        await store.write(opened("g"))
        async with beside.connect() as other:
            await other.execute(text("UPDATE coordinator_transaction SET owner = 'other' WHERE gid = 'g'"))
            write = asyncio.create_task(store.write(decision("g")))
            await asyncio.sleep(LOCK_WAIT_S + 0.3)
            assert not write.done()
            await other.rollback()
            decided = await asyncio.wait_for(write, 5)
        assert decided is not None
        assert decided.ours


async def test_a_deadlock_is_resolved_by_doing_the_batch_again(log_url: str, beside: AsyncEngine) -> None:
    """A batch that MariaDB ends with a deadlock is done again as a whole; no caller sees it."""
    commits: list[int] = []

    def on_write(moment: str, names: tuple[str, ...]) -> None:
        if moment == "after":
            commits.append(len(names))

    async with Store(log_url, on_write=on_write) as store:
        gids = [f"g{number}" for number in range(8)]
        await asyncio.gather(*(store.write(opened(gid)) for gid in gids))
        before = await deadlocks(beside)
        async with beside.connect() as other:
            # The other one is heavier (it has changed more rows), so MariaDB chooses the batch as the victim.
            await other.execute(text("UPDATE coordinator_transaction SET owner = 'other' WHERE gid > 'g3'"))
            write = asyncio.gather(*(store.write(decision(gid)) for gid in gids))
            await asyncio.sleep(0.3)  # the batch has locked g0 to g3, and waits for g4
            await other.execute(text("UPDATE coordinator_transaction SET owner = 'other' WHERE gid = 'g0'"))
            await other.rollback()
        outcomes = await asyncio.wait_for(write, 8)
        assert [outcome is not None and outcome.ours for outcome in outcomes] == [True] * len(gids)
        assert await deadlocks(beside) == before + 1
        assert commits[-1] == len(gids)


async def deadlocks(engine: AsyncEngine) -> int:
    """How many the server has ended."""
    async with engine.connect() as connection:
        row = (await connection.execute(text("SHOW GLOBAL STATUS LIKE 'Innodb_deadlocks'"))).one()
        return int(row[1])


async def test_coordinators_do_not_wait_for_each_others_transactions(log_url: str, beside: AsyncEngine) -> None:
    """A batch locks its own transactions only, on a table of a few rows as well."""
    async with Store(log_url) as store:
        await asyncio.gather(*(store.write(opened(f"g{number}")) for number in range(3)))
        async with beside.connect() as other:
            await other.execute(text("UPDATE coordinator_transaction SET owner = 'other' WHERE gid = 'g1'"))
            for gid in ("g0", "g2", "new"):
                await asyncio.wait_for(store.write(opened(gid)), 1)
            await asyncio.wait_for(store.write(decision("g2")), 1)
            await other.rollback()


# --- what is stored


@pytest.mark.parametrize("size", [0, 65_536, 1_048_576, 3_900_000])
async def test_payloads_are_kept_byte_by_byte(
    client: DtmClient, branches: Branches, size: int, served: ServedCoordinator
) -> None:
    """A branch gets the registered bytes, up to the size of a gRPC message, zeros and quotes included."""
    payload = (bytes(range(256)) * (size // 256 + 1))[:size]
    gid = await client.new_gid()
    await client.prepare(gid)
    data = {"confirm": branches.branch.confirm}
    await client.register_branch(gid, trans_type="tcc", branch_id="01", data=data, payload=payload)
    await client.submit(gid, options=WAITING)
    assert [call.payload for call in branches.of(gid)] == [payload]


async def test_texts_are_kept_as_they_are(client: DtmClient, branches: Branches) -> None:
    """Reasons in any script are kept; gids differ by case."""
    for gid, reason in (("Ab1", "售罄 🧨"), ("aB1", "'quoted' \\ and \"%s\"")):
        await client.prepare(gid, options=WAITING)
        await client.abort(gid, reason=reason)
        found = await client.query(gid)
        assert found is not None
        assert (found.status, found.rollback_reason) == ("failed", reason)


async def test_one_bad_write_spoils_no_other(log_url: str) -> None:
    """When the database refuses one write of a batch the others of it are made, and that one alone is told."""
    too_long = Transaction("g" * 200, "tcc", Status.PREPARED, TransOptions(), 1, 1, 1, 1)
    async with Store(log_url) as store:
        writes: list[Any] = [store.write(opened(f"g{number}")) for number in range(5)]
        outcomes = await asyncio.gather(*writes, store.write(Insert(too_long)), return_exceptions=True)
        assert outcomes[:5] == [None] * 5
        assert isinstance(outcomes[5], StoreUnavailable)
        assert len(await store.page(limit=10)) == 5
