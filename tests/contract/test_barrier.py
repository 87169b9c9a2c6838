"""The barrier: every operation of a branch takes effect once, in order, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import BigInteger, Column, MetaData, Table, func, insert, select, text
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.schema import CreateTable

from seckill.dtm.barrier import Barrier, InvalidMetadata, Passage, Raced, barrier_table, in_transaction
from seckill.dtm.database import (
    UnsupportedDialect,
    create_engine,
    create_tables,
    in_chunks,
    insert_ignore,
    is_transient,
    session_factory,
)  # fmt: skip
from seckill.dtm.protocol import BranchContext
from tests.support.sides import Side

metadata = MetaData()
barrier = barrier_table(metadata)
effect = Table("effect", metadata, Column("id", BigInteger, primary_key=True))

Sessions = async_sessionmaker[AsyncSession]


@pytest.fixture
def database_url(side: Side, tmp_path: Path) -> str:
    return side.empty_database("barrier", tmp_path)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, pool_size=4, lock_wait_s=1)
    await create_tables(engine, metadata)
    yield engine
    await engine.dispose()


@pytest.fixture
def sessions(engine: AsyncEngine) -> Sessions:
    return session_factory(engine)


def context(op: str, *, gid: str = "gid-1", branch_id: str = "01", trans_type: str = "tcc") -> BranchContext:
    return BranchContext(gid, trans_type, branch_id, op)


async def take_effect(session: AsyncSession) -> int:
    count = await session.scalar(select(func.count()).select_from(effect))
    await session.execute(insert(effect).values(id=int(count or 0) + 1))
    return 42


async def effects(sessions: Sessions) -> int:
    async with sessions() as session:
        return int(await session.scalar(select(func.count()).select_from(effect)) or 0)


async def call(sessions: Sessions, caller: BranchContext) -> Passage:
    passed = await in_transaction(sessions, lambda session: Barrier(caller).call(session, take_effect))
    assert passed.value == (42 if passed.passage is Passage.RAN else None)
    return passed.passage


@pytest.mark.parametrize(
    ("trans_type", "calls", "expected"),
    [
        ("tcc", ["try", "try"], [Passage.RAN, Passage.REPEATED]),
        ("tcc", ["try", "confirm", "confirm"], [Passage.RAN, Passage.RAN, Passage.REPEATED]),
        ("tcc", ["try", "cancel", "cancel"], [Passage.RAN, Passage.RAN, Passage.REPEATED]),
        ("tcc", ["cancel", "try"], [Passage.EMPTY, Passage.LATE]),
        ("tcc", ["cancel", "cancel", "try"], [Passage.EMPTY, Passage.REPEATED, Passage.LATE]),
        ("tcc", ["try", "cancel", "try"], [Passage.RAN, Passage.RAN, Passage.REPEATED]),
        ("saga", ["action", "compensate"], [Passage.RAN, Passage.RAN]),
        ("saga", ["compensate", "action"], [Passage.EMPTY, Passage.LATE]),
    ],
)
async def test_order_of_operations(
    sessions: Sessions, trans_type: str, calls: list[str], expected: list[Passage]
) -> None:
    """Repeats, latecomers and empty compensations are told apart, and none of them runs the business code."""
    passages = [await call(sessions, context(op, trans_type=trans_type)) for op in calls]
    assert passages == expected
    assert await effects(sessions) == expected.count(Passage.RAN)


async def test_branches_and_gids_are_apart(sessions: Sessions) -> None:
    """Another branch, another gid, and a gid that differs only in case are other calls."""
    callers = [context("try"), context("try", branch_id="02"), context("try", gid="gid-2"), context("try", gid="GID-1")]
    assert [await call(sessions, caller) for caller in callers] == [Passage.RAN] * 4


async def test_calls_of_one_transaction_have_ids_of_their_own(sessions: Sessions) -> None:
    """The n-th call through one barrier has the id 0n, and DTM's columns say who inserted the row."""

    async def twice(session: AsyncSession) -> list[Passage]:
        both = Barrier(context("try"))
        return [(await both.call(session, take_effect)).passage for _ in range(2)]

    assert await in_transaction(sessions, twice) == [Passage.RAN, Passage.RAN]
    assert await call(sessions, context("cancel")) is Passage.RAN
    async with sessions() as session:
        rows = await session.execute(
            select(barrier.c.op, barrier.c.barrier_id, barrier.c.reason).order_by(barrier.c.id)
        )
        assert [tuple(row) for row in rows] == [("try", "01", "try"), ("try", "02", "try"), ("cancel", "01", "cancel")]


async def test_a_failed_attempt_leaves_nothing(sessions: Sessions) -> None:
    """When the business code fails, the barrier's row goes with it: the next attempt runs."""

    async def fail(session: AsyncSession) -> None:
        await take_effect(session)
        raise KeyError("business")

    with pytest.raises(KeyError):
        await in_transaction(sessions, lambda session: Barrier(context("try")).call(session, fail))
    assert await effects(sessions) == 0
    assert await call(sessions, context("try")) is Passage.RAN


async def test_twenty_at_once_run_once(sessions: Sessions) -> None:
    """Of many repeats at the same time exactly one runs."""
    passages = await asyncio.gather(*(call(sessions, context("try")) for _ in range(20)))
    assert passages.count(Passage.RAN) == 1
    assert passages.count(Passage.REPEATED) == 19
    assert await effects(sessions) == 1


@pytest.mark.parametrize(
    ("caller", "name"),
    [
        (context("try", gid="g" * 129), "dtm-gid"),
        (context("try", gid="gïd"), "dtm-gid"),
        (context("try", gid="a b"), "dtm-gid"),
        (context("try", branch_id="b" * 129), "dtm-branch_id"),
        (context("x" * 46), "dtm-op"),
        (context("try", trans_type="t" * 46), "dtm-trans_type"),
    ],
)
def test_what_a_column_would_cut_is_refused(caller: BranchContext, name: str) -> None:
    """An identity that the table cannot hold as it is never gets as far as SQL."""
    with pytest.raises(InvalidMetadata) as refused:
        Barrier(caller)
    assert refused.value.name == name


# --- transactions ----------------------------------------------------------------------------------------------


LOCKED = select(effect).where(effect.c.id == 500).with_for_update()


@pytest.fixture
async def holder(database_url: str, engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """A second process, as it were: it locks row 500 with `LOCKED`."""
    async with engine.begin() as connection:
        await connection.execute(insert(effect).values(id=500))
    holder = create_engine(database_url, pool_size=1, lock_wait_s=1)
    yield holder
    await holder.dispose()


async def test_a_lock_is_waited_for_from_the_start(holder: AsyncEngine, sessions: Sessions) -> None:
    """Each attempt gets a new session; the work that was done before the lock is not kept twice."""
    ended: list[AsyncSession] = []

    async def work(session: AsyncSession) -> None:
        await session.execute(LOCKED)
        await take_effect(session)
        ended.append(session)
        if len(ended) < 3:
            raise Raced("somebody was faster")

    async with holder.begin() as connection:
        await connection.execute(LOCKED)
        waiting = asyncio.create_task(in_transaction(sessions, work))
        await asyncio.sleep(1.3)  # longer than lock_wait_s: the first attempt has found the lock and given up
        assert not waiting.done()
        assert not ended
    await waiting
    assert len({id(session) for session in ended}) == 3
    assert await effects(sessions) == 2


async def test_a_lock_that_stays_is_reported(holder: AsyncEngine, sessions: Sessions) -> None:
    """After the last attempt the database's error comes through, recognised by its code."""
    async with holder.begin() as connection:
        await connection.execute(LOCKED)
        with pytest.raises(OperationalError) as busy:
            await in_transaction(sessions, lambda session: session.execute(LOCKED), attempts_max=1)
    assert is_transient(busy.value)


async def test_other_errors_are_not_tried_again(sessions: Sessions) -> None:
    """A broken constraint fails at once."""
    attempts = 0

    async def twice_the_same(session: AsyncSession) -> None:
        nonlocal attempts
        attempts += 1
        await session.execute(insert(effect).values(id=1))
        await session.execute(insert(effect).values(id=1))

    with pytest.raises(IntegrityError):
        await in_transaction(sessions, twice_the_same)
    assert attempts == 1
    assert await effects(sessions) == 0


async def test_a_cancelled_caller_waits_for_the_end_of_its_transaction(sessions: Sessions) -> None:
    """Cancelling in the middle neither tears the connection nor leaves half of the work."""
    started = asyncio.Event()

    async def slow(session: AsyncSession) -> None:
        await take_effect(session)
        started.set()
        await asyncio.sleep(0.05)
        await take_effect(session)

    task = asyncio.create_task(in_transaction(sessions, slow))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await effects(sessions) == 2


@pytest.mark.parametrize(("code", "transient"), [(1205, True), (1213, True), (1062, False), (3819, False)])
def test_mysql_codes(code: int, transient: bool) -> None:
    """Lock wait time-out and deadlock are tried again; a duplicate key and a broken check are not."""
    assert is_transient(DBAPIError("…", None, Exception(code, "a text that nobody reads"))) is transient


async def test_sqlite_survives_a_power_cut(engine: AsyncEngine) -> None:
    """Commits are on disk when they are answered, and foreign keys hold."""
    if engine.dialect.name != "sqlite":
        pytest.skip("SQLite's own settings")
    async with engine.connect() as connection:
        answers = [
            (await connection.execute(text(f"PRAGMA {name}"))).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert answers == ["wal", 2, 1]


def test_mysql_statements() -> None:
    """The same table and insert in MySQL's words: binary ASCII, counted key, INSERT IGNORE."""
    dialect = mysql.dialect()
    table = str(CreateTable(barrier).compile(dialect=dialect))
    assert "gid VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin" in table
    assert "id BIGINT NOT NULL AUTO_INCREMENT" in table
    assert str(insert_ignore(barrier, "mysql").compile(dialect=dialect)).startswith("INSERT IGNORE INTO barrier")


def test_unknown_databases_are_refused() -> None:
    """A database that the statements were not written for is named, not tried."""
    with pytest.raises(UnsupportedDialect):
        create_engine("postgresql+asyncpg://localhost/x", pool_size=1, lock_wait_s=1)
    with pytest.raises(UnsupportedDialect):
        insert_ignore(barrier, "postgresql")


def test_lists_are_cut_below_the_index_dive_limit() -> None:
    """No IN list reaches 200 values, and nothing gets lost between the parts."""
    chunks = list(in_chunks(list(range(500))))
    assert max(map(len, chunks)) < 200
    assert [value for chunk in chunks for value in chunk] == list(range(500))
