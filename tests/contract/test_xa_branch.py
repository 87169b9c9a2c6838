"""XA branches on a real MariaDB: prepared by one connection, ended by another, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, insert, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from seckill.dtm.barrier import InvalidMetadata, barrier_table
from seckill.dtm.database import create_engine, create_tables, mysql_code
from seckill.dtm.protocol import BranchContext
from seckill.dtm.tcc_branch import DecisionLost
from seckill.dtm.xa_branch import (
    XaBranches,
    XaBusy,
    XaId,
    XaMissing,
    XaRepeated,
    XaTooLate,
    XaUnsupported,
    format_id,
    require_xa,
)
from tests.servers import Servers, fresh_database

LOCK_WAIT_S = 1
XAER_DUPID = 1440

metadata = MetaData()
barrier = barrier_table(metadata)
stock = Table("stock", metadata, Column("id", Integer, primary_key=True), Column("units", Integer, nullable=False))


@pytest.fixture(scope="module")
def database_url(servers: Servers) -> str:
    return fresh_database(servers, "xa")


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Ten units in stock, and nothing prepared: neither before the test nor after it."""
    engine = create_engine(database_url, pool_size=4, lock_wait_s=LOCK_WAIT_S)
    await create_tables(engine, metadata)
    async with engine.begin() as connection:
        for table in (barrier, stock):  # rows that are only deleted leave gap locks to those who insert them anew
            await connection.execute(text(f"TRUNCATE {table.name}"))
        await connection.execute(insert(stock).values(id=1, units=10))
    yield engine
    left = await XaBranches(engine).prepared()
    for branch in left:  # its locks would keep the database from being dropped
        await XaBranches(engine).finish(context("rollback", branch.gid, branch_id=branch.branch_id))
    await engine.dispose()
    assert left == []


@pytest.fixture
def branches(engine: AsyncEngine) -> XaBranches:
    return XaBranches(engine)


def context(op: str, gid: str = "gid-1", *, branch_id: str = "01") -> BranchContext:
    return BranchContext(gid, "xa", branch_id, op)


async def take_one(session: AsyncSession) -> str:
    await session.execute(update(stock).values(units=stock.c.units - 1))
    return "taken"


async def units(engine: AsyncEngine) -> int | None:
    async with engine.connect() as connection:
        left: int | None = await connection.scalar(select(stock.c.units))
        return left


async def barrier_rows(engine: AsyncEngine) -> list[tuple[str, str, str, str]]:
    async with engine.connect() as connection:
        found = await connection.execute(
            select(barrier.c.trans_type, barrier.c.branch_id, barrier.c.op, barrier.c.reason).order_by(barrier.c.id)
        )
        return [(row[0], row[1], row[2], row[3]) for row in found]


# --- the two phases


async def test_a_prepared_branch_takes_effect_with_its_commit(branches: XaBranches, engine: AsyncEngine) -> None:
    """What run did is seen by nobody until commit, then by all; a repeated commit is OK and changes nothing."""
    assert await branches.run(context("action"), take_one) == "taken"
    assert await branches.prepared() == [XaId("gid-1", "01")]
    assert (await units(engine), await barrier_rows(engine)) == (10, [])
    for _ in range(2):
        await branches.finish(context("commit"))
        assert await units(engine) == 9
    assert await barrier_rows(engine) == [("xa", "01", "action", "action")]


async def test_a_rolled_back_branch_leaves_what_keeps_a_late_action_out(
    branches: XaBranches, engine: AsyncEngine
) -> None:
    """A rollback undoes what was prepared, may be repeated, and no action of that branch runs any more."""
    await branches.run(context("action"), take_one)
    for _ in range(2):
        await branches.finish(context("rollback"))
    with pytest.raises(XaTooLate):
        await branches.run(context("action"), take_one)
    assert await units(engine) == 10
    assert await barrier_rows(engine) == [("xa", "01", "action", "rollback")]


async def test_an_action_after_its_rollback_is_refused(branches: XaBranches, engine: AsyncEngine) -> None:
    """An action that arrives after a rollback that found nothing does nothing and leaves nothing prepared."""
    await branches.finish(context("rollback"))
    with pytest.raises(XaTooLate):
        await branches.run(context("action"), take_one)
    assert await units(engine) == 10


async def test_what_the_business_raises_is_undone_when_it_is_raised(branches: XaBranches, engine: AsyncEngine) -> None:
    """An action that fails leaves neither effect nor barrier row nor lock behind, and may be called again."""

    async def take_and_fail(session: AsyncSession) -> None:
        await take_one(session)
        raise LookupError("short")

    with pytest.raises(LookupError):
        await branches.run(context("action"), take_and_fail)
    async with engine.begin() as connection:
        await connection.execute(text("SET SESSION innodb_lock_wait_timeout=0"))
        await connection.execute(update(stock).values(units=7))
    await branches.run(context("action"), take_one)
    await branches.finish(context("commit"))
    assert await units(engine) == 6


async def test_a_branch_reads_what_others_have_committed(branches: XaBranches) -> None:
    """Inside run the isolation level is READ COMMITTED, as in every other transaction of the engine."""

    async def level(session: AsyncSession) -> str | None:
        found: str | None = await session.scalar(text("SELECT @@tx_isolation"))
        return found

    assert await branches.run(context("action"), level) == "READ-COMMITTED"
    await branches.finish(context("rollback"))


# --- repeats and contradictions


async def test_a_repeated_action_is_refused_while_the_first_is_prepared(branches: XaBranches) -> None:
    """A second action of a prepared branch raises a database error to be repeated, and harms the first one nothing."""
    await branches.run(context("action"), take_one)
    with pytest.raises(OperationalError) as caught:
        await branches.run(context("action"), take_one)
    assert mysql_code(caught.value) == XAER_DUPID
    assert await branches.prepared() == [XaId("gid-1", "01")]
    await branches.finish(context("commit"))


async def test_an_action_takes_effect_once(branches: XaBranches, engine: AsyncEngine) -> None:
    """An action after its commit raises XaRepeated, and nothing is prepared."""
    await branches.run(context("action"), take_one)
    await branches.finish(context("commit"))
    with pytest.raises(XaRepeated):
        await branches.run(context("action"), take_one)
    assert await units(engine) == 9


async def test_a_branch_ends_one_way(branches: XaBranches, engine: AsyncEngine) -> None:
    """A commit after a rollback, and a rollback after a commit, raise DecisionLost and change nothing."""
    await branches.run(context("action", "gid-c"), take_one)
    await branches.finish(context("commit", "gid-c"))
    await branches.run(context("action", "gid-r"), take_one)
    await branches.finish(context("rollback", "gid-r"))
    for gid, op, standing in (("gid-c", "rollback", "commit"), ("gid-r", "commit", "rollback")):
        with pytest.raises(DecisionLost) as caught:
            await branches.finish(context(op, gid))
        assert caught.value.standing == standing
    assert await units(engine) == 9


async def test_a_commit_of_what_was_never_prepared_is_no_success(branches: XaBranches) -> None:
    """A commit of a branch that is neither prepared nor committed raises XaMissing; an action may still follow."""
    with pytest.raises(XaMissing):
        await branches.finish(context("commit"))
    await branches.run(context("action"), take_one)
    await branches.finish(context("commit"))


# --- connections


async def test_a_branch_whose_connection_is_open_is_not_done(
    branches: XaBranches, engine: AsyncEngine, database_url: str
) -> None:
    """While the connection that prepared is open the database says "unknown": that is XaBusy, never a success; once it
    has ended, the same request goes through, also one that is waiting for it.
    """
    xid = f"'gid-1','01',{format_id(str(engine.url.database))}"
    async with engine.connect() as holder:
        await holder.exec_driver_sql(f"XA START {xid}")
        await holder.execute(insert(barrier).values(gid="gid-1", branch_id="01", op="action", barrier_id="01"))
        await holder.execute(update(stock).values(units=3))
        await holder.exec_driver_sql(f"XA END {xid}")
        await holder.exec_driver_sql(f"XA PREPARE {xid}")
        for op in ("commit", "rollback"):
            with pytest.raises(XaBusy):
                await branches.finish(context(op))
        assert await units(engine) == 10
        waiting = asyncio.create_task(branches.finish(context("commit")))
        await asyncio.sleep(0)
        await holder.invalidate()
    await waiting
    assert await units(engine) == 3


async def test_a_connection_that_breaks_leaves_nothing_prepared(branches: XaBranches, engine: AsyncEngine) -> None:
    """A connection that is lost inside the business leaves no effect, and the engine goes on working."""

    async def take_and_lose(session: AsyncSession) -> None:
        await take_one(session)
        await session.execute(text("KILL CONNECTION_ID()"))

    with pytest.raises(OperationalError):
        await branches.run(context("action"), take_and_lose)
    assert await units(engine) == 10
    assert await branches.run(context("action"), take_one) == "taken"
    await branches.finish(context("rollback"))


async def test_a_lock_that_was_not_got_starts_the_branch_anew(branches: XaBranches, engine: AsyncEngine) -> None:
    """After a lock wait time-out the whole is tried again from XA START: one effect, one barrier row."""
    attempts = asyncio.Queue[int]()

    async def counted(session: AsyncSession) -> str:
        attempts.put_nowait(1)
        return await take_one(session)

    async with engine.connect() as holder:
        await holder.execute(update(stock).values(units=20))
        running = asyncio.create_task(branches.run(context("action"), counted))
        for _ in range(2):
            await attempts.get()
        await holder.commit()
    assert await running == "taken"
    await branches.finish(context("commit"))
    assert await units(engine) == 19
    assert await barrier_rows(engine) == [("xa", "01", "action", "action")]


async def test_a_deadlock_starts_the_branch_anew(branches: XaBranches, engine: AsyncEngine) -> None:
    """Of two branches that lock crosswise both end prepared: the one that the database rolled back runs again."""
    async with engine.begin() as connection:
        await connection.execute(insert(stock).values(id=2, units=10))
    both_hold_one = asyncio.Barrier(2)
    attempts = 0

    def crosswise(first: int, second: int) -> object:
        async def business(session: AsyncSession) -> None:
            nonlocal attempts
            attempts += 1
            await session.execute(update(stock).where(stock.c.id == first).values(units=stock.c.units - 1))
            if attempts <= 2:
                await both_hold_one.wait()
            await session.execute(update(stock).where(stock.c.id == second).values(units=stock.c.units - 1))

        return business

    async def whole(gid: str, first: int, second: int) -> None:
        await branches.run(context("action", gid), crosswise(first, second))  # type: ignore[arg-type]
        await branches.finish(context("commit", gid))

    await asyncio.gather(whole("gid-1", 1, 2), whole("gid-2", 2, 1))
    assert attempts > 2
    assert await units(engine) == 8


async def test_a_cancelled_run_ends_first(branches: XaBranches, engine: AsyncEngine) -> None:
    """A caller that is cancelled gets its cancellation when the branch has prepared; a rollback then finds that."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(session: AsyncSession) -> None:
        await take_one(session)
        inside.set()
        await go_on.wait()

    running = asyncio.create_task(branches.run(context("action"), slowly))
    await inside.wait()
    running.cancel()
    await asyncio.sleep(0)
    assert not running.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await branches.prepared() == [XaId("gid-1", "01")]
    await branches.finish(context("rollback"))
    assert await units(engine) == 10


async def test_runs_that_wait_leave_a_connection_to_commits(database_url: str, engine: AsyncEngine) -> None:
    """A run that waits for a prepared branch's lock does not keep that branch from being committed, and a further run
    that finds no free connection is told so in time.
    """
    small = create_engine(database_url, pool_size=2, lock_wait_s=LOCK_WAIT_S)
    branches = XaBranches(small)
    began = asyncio.Event()

    async def begin_and_take(session: AsyncSession) -> None:
        began.set()
        await take_one(session)

    await branches.run(context("action", "gid-1"), take_one)
    waiting = asyncio.create_task(branches.run(context("action", "gid-2"), begin_and_take))
    await began.wait()
    await branches.finish(context("commit", "gid-1"))
    await waiting
    await branches.finish(context("commit", "gid-2"))
    assert await units(engine) == 8
    await small.dispose()


async def test_too_many_runs_are_told_in_time(engine: AsyncEngine) -> None:
    """A run that gets no connection within the pool's patience raises SQLAlchemy's TimeoutError."""
    branches = XaBranches(engine, runs_max=1)
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(session: AsyncSession) -> None:
        inside.set()
        await go_on.wait()

    first = asyncio.create_task(branches.run(context("action", "gid-1"), slowly))
    await inside.wait()
    with pytest.raises(PoolTimeout):
        await branches.run(context("action", "gid-2"), take_one)
    go_on.set()
    await first
    await branches.finish(context("rollback", "gid-1"))


# --- names


async def test_only_the_branches_of_this_database_are_listed(branches: XaBranches, servers: Servers) -> None:
    """XA names are the server's: `prepared` tells this database's branches, and nobody else's."""
    other = create_engine(fresh_database(servers, "xa"), pool_size=2, lock_wait_s=LOCK_WAIT_S)
    await create_tables(other, metadata)
    others = XaBranches(other)
    await branches.run(context("action", "gid-1", branch_id="01"), take_one)
    await others.run(context("action", "gid-1", branch_id="02"), take_one)
    assert await branches.prepared() == [XaId("gid-1", "01")]
    assert await others.prepared() == [XaId("gid-1", "02")]
    await branches.finish(context("rollback", branch_id="01"))
    await others.finish(context("rollback", branch_id="02"))
    await other.dispose()


@pytest.mark.parametrize("gid", ["g" * 65, "two words", ""])
async def test_a_name_that_does_not_fit_is_refused(branches: XaBranches, gid: str) -> None:
    """A gid that is no visible ASCII, or longer than XA's 64 bytes, raises InvalidMetadata."""
    with pytest.raises(InvalidMetadata):
        await branches.run(context("action", gid), take_one)


async def test_a_quote_is_part_of_the_name(branches: XaBranches) -> None:
    """A gid with a quote in it is a name like any other."""
    await branches.run(context("action", "it's'"), take_one)
    assert await branches.prepared() == [XaId("it's'", "01")]
    await branches.finish(context("commit", "it's'"))


async def test_another_operation_ends_nothing(branches: XaBranches) -> None:
    """An operation that is neither commit nor rollback raises InvalidMetadata."""
    with pytest.raises(InvalidMetadata):
        await branches.finish(context("action"))


async def test_sqlite_has_no_xa(tmp_path: Path) -> None:
    """On SQLite both `require_xa` and `XaBranches` raise XaUnsupported, which names the dialect."""
    engine = create_engine(f"sqlite+aiosqlite:///{tmp_path / 'xa.db'}", pool_size=1, lock_wait_s=1)
    for ask in (require_xa, XaBranches):
        with pytest.raises(XaUnsupported) as caught:
            ask(engine)
        assert caught.value.dialect == "sqlite"
    await engine.dispose()
