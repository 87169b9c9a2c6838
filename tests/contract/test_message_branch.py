"""A two-phase message's local transaction and the query for it: whoever comes first decides, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from seckill.dtm.barrier import Passage, Passed, barrier_table, in_transaction
from seckill.dtm.database import create_engine, create_tables, session_factory
from seckill.dtm.message_branch import RolledBack, query_prepared, run_local
from seckill.dtm.protocol import BranchContext
from tests.support.sides import Side

metadata = MetaData()
barrier = barrier_table(metadata)
effect = Table("effect", metadata, Column("id", Integer, primary_key=True))

Sessions = async_sessionmaker[AsyncSession]


@pytest.fixture
async def sessions(side: Side, tmp_path: Path) -> AsyncIterator[Sessions]:
    engine = create_engine(side.empty_database("message", tmp_path), pool_size=4, lock_wait_s=3)
    await create_tables(engine, metadata)
    yield session_factory(engine)
    await engine.dispose()


@pytest.fixture
def local() -> BranchContext:
    return BranchContext(uuid4().hex, "msg", "00", "msg")


async def take_effect(session: AsyncSession) -> str:
    await session.execute(insert(effect))
    return "done"


async def run(sessions: Sessions, context: BranchContext) -> Passed[str]:
    return await in_transaction(sessions, lambda session: run_local(session, context, take_effect))


async def effects(sessions: Sessions) -> int:
    async with sessions() as session:
        return int(await session.scalar(select(func.count()).select_from(effect)) or 0)


async def test_a_query_after_the_commit_sends_the_message(sessions: Sessions, local: BranchContext) -> None:
    """Once the local transaction has committed, every query returns, and a repeat of it changes nothing."""
    assert await run(sessions, local) == Passed(Passage.RAN, "done")
    for _ in range(2):
        await query_prepared(sessions, local)
    assert await run(sessions, local) == Passed(Passage.REPEATED)
    assert await effects(sessions) == 1


async def test_a_query_that_comes_first_keeps_the_transaction_out(sessions: Sessions, local: BranchContext) -> None:
    """A query that finds nothing raises RolledBack, as does every later one, and the local transaction after it."""
    for _ in range(2):
        with pytest.raises(RolledBack):
            await query_prepared(sessions, local)
    with pytest.raises(RolledBack):
        await run(sessions, local)
    assert await effects(sessions) == 0


async def test_a_rolled_back_transaction_never_sends(sessions: Sessions, local: BranchContext) -> None:
    """A local transaction that failed is to a query as one that has never begun."""

    async def fail(session: AsyncSession) -> None:
        await take_effect(session)
        raise LookupError("sold out")

    with pytest.raises(LookupError):
        await in_transaction(sessions, lambda session: run_local(session, local, fail))
    with pytest.raises(RolledBack):
        await query_prepared(sessions, local)
    assert await effects(sessions) == 0


async def test_a_query_waits_for_the_running_transaction(sessions: Sessions, local: BranchContext) -> None:
    """A query during the local transaction is answered when that has ended, and by how it ended."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(session: AsyncSession) -> None:
        await take_effect(session)
        inside.set()
        await go_on.wait()

    running = asyncio.create_task(in_transaction(sessions, lambda session: run_local(session, local, slowly)))
    await inside.wait()
    query = asyncio.create_task(query_prepared(sessions, local))
    done, _ = await asyncio.wait({query}, timeout=0.1)
    assert not done
    go_on.set()
    await running
    await query
    assert await effects(sessions) == 1


async def test_the_barrier_row_is_dtms(sessions: Sessions, local: BranchContext) -> None:
    """Both write the row of branch 00, op msg, barrier id 01; its reason says who was first."""
    dropped = BranchContext(uuid4().hex, "msg", "00", "msg")
    await run(sessions, local)
    with pytest.raises(RolledBack):
        await query_prepared(sessions, dropped)
    columns = (barrier.c.gid, barrier.c.trans_type, barrier.c.branch_id, barrier.c.op, barrier.c.barrier_id)
    async with sessions() as session:
        rows = (await session.execute(select(*columns, barrier.c.reason).order_by(barrier.c.id))).all()
    assert [tuple(row) for row in rows] == [
        (local.gid, "msg", "00", "msg", "01", "msg"),
        (dropped.gid, "msg", "00", "msg", "01", "rollback"),
    ]
