"""Our own coordinator's log: transactions that have finished, and their branches. On the session that it is given."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.coordinator.state import UNFINISHED
from seckill.coordinator.tables import branches, transactions
from seckill.dtm.database import affected, in_chunks


async def finished(session: AsyncSession, after: int, *, cutoff_ms: int, limit: int) -> tuple[list[str], int | None]:
    """Gids that finished before the cut-off, of the next piece; None instead of a number at the end.

    The walk ends at the first transaction that is younger than the cut-off: later numbers are younger still.
    """
    rows = transactions.c
    columns = (rows.number, rows.gid, rows.status, rows.finished_ms, rows.created_ms)
    piece = select(*columns).where(rows.number > after).order_by(rows.number).limit(limit)
    found = (await session.execute(piece)).all()
    old = [row for row in found if row.created_ms < cutoff_ms]
    gids = [
        row.gid
        for row in old
        if row.status not in UNFINISHED and row.finished_ms is not None and row.finished_ms < cutoff_ms
    ]
    return gids, found[-1].number if len(old) == limit else None


async def delete_transactions(session: AsyncSession, gids: Sequence[str]) -> dict[str, int]:
    """Finished ones with these gids, branches first; rows by table."""
    deleted = {branches.name: 0, transactions.name: 0}
    for chunk in in_chunks(gids):
        unfinished = select(transactions.c.gid).where(
            transactions.c.gid.in_(chunk), transactions.c.status.in_(UNFINISHED)
        )
        keep = set(await session.scalars(unfinished))
        gone = [gid for gid in chunk if gid not in keep]
        deleted[branches.name] += await affected(session, delete(branches).where(branches.c.gid.in_(gone)))
        mine = delete(transactions).where(transactions.c.gid.in_(gone), transactions.c.status.not_in(UNFINISHED))
        deleted[transactions.name] += await affected(session, mine)
    return deleted


async def count_transactions(session: AsyncSession, gids: Sequence[str]) -> dict[str, int]:
    """What `delete_transactions` would delete."""
    counted = {branches.name: 0, transactions.name: len(gids)}
    for chunk in in_chunks(gids):
        mine = select(func.count()).select_from(branches).where(branches.c.gid.in_(chunk))
        counted[branches.name] += int(await session.scalar(mine) or 0)
    return counted
