"""What a branch keeps of each gid, in the product and the order database alike: barrier, reply, decision.

On the session that the caller gives. Only branches that have been decided are looked at: a Try without a decision is
undecided however old it is, and what other patterns than TCC keep has no decision here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import MetaData, and_, delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.dtm.database import affected, in_chunks
from seckill.dtm.tcc_branch import branch_tables
from seckill.order.tables import orders

_TABLES = MetaData()
branch_tables(_TABLES)
_BARRIER, _DECISION, _REPLY = (_TABLES.tables[name] for name in ("barrier", "decision", "branch_reply"))

Cursor = tuple[str, str]
START: Cursor = ("", "")


@dataclass(frozen=True, slots=True)
class Decided:
    """A branch of a gid, and how it was ended."""

    gid: str
    branch_id: str
    op: str
    at_ms: int


async def decided(session: AsyncSession, after: Cursor, *, limit: int) -> tuple[list[Decided], Cursor | None]:
    """The next piece of all decisions; None instead of a cursor at the end."""
    gid, branch_id = after
    rows = _DECISION.c
    later = or_(rows.gid > gid, and_(rows.gid == gid, rows.branch_id > branch_id))
    piece = select(rows.gid, rows.branch_id, rows.op, rows.created_at_ms).where(later)
    found = [Decided(*row) for row in await session.execute(piece.order_by(rows.gid, rows.branch_id).limit(limit))]
    return found, (found[-1].gid, found[-1].branch_id) if len(found) == limit else None


async def decided_gids(session: AsyncSession, gids: Sequence[str]) -> set[str]:
    """Those of the gids that have a decision here."""
    found: set[str] = set()
    for chunk in in_chunks(gids):
        found |= set(await session.scalars(select(_DECISION.c.gid).where(_DECISION.c.gid.in_(chunk))))
    return found


async def sales_of_orders(session: AsyncSession, gids: Sequence[str]) -> dict[str, set[int]]:
    """The sales of the orders that each gid has confirmed or closed; in the order database."""
    found: dict[str, set[int]] = {}
    for chunk in in_chunks(gids):
        pairs = select(orders.c.gid, orders.c.sale_id).where(orders.c.gid.in_(chunk)).distinct()
        for gid, sale_id in await session.execute(pairs):
            found.setdefault(gid, set()).add(sale_id)
    return found


async def delete_branches(
    session: AsyncSession, branches: Sequence[Decided], *, keep_decision: Collection[str]
) -> dict[str, int]:
    """Barrier and reply of these branches, and the decision unless its gid is in `keep_decision`; rows by table."""
    deleted = {"barrier": 0, "branch_reply": 0, "decision": 0}
    for chunk in in_chunks(branches):
        by_gid: Mapping[str, list[str]] = _by_branch(chunk)
        for branch_id, gids in by_gid.items():
            for table in (_BARRIER, _REPLY):
                mine = delete(table).where(table.c.gid.in_(gids), table.c.branch_id == branch_id)
                deleted[table.name] += await affected(session, mine)
            if gone := [gid for gid in gids if gid not in keep_decision]:
                mine = delete(_DECISION).where(_DECISION.c.gid.in_(gone), _DECISION.c.branch_id == branch_id)
                deleted["decision"] += await affected(session, mine)
    return deleted


async def count_branches(
    session: AsyncSession, branches: Sequence[Decided], *, keep_decision: Collection[str]
) -> dict[str, int]:
    """What `delete_branches` would delete."""
    counted = {"barrier": 0, "branch_reply": 0, "decision": 0}
    for chunk in in_chunks(branches):
        for branch_id, gids in _by_branch(chunk).items():
            for table in (_BARRIER, _REPLY):
                mine = select(func.count()).where(table.c.gid.in_(gids), table.c.branch_id == branch_id)
                counted[table.name] += int(await session.scalar(mine) or 0)
            counted["decision"] += sum(gid not in keep_decision for gid in gids)
    return counted


def _by_branch(branches: Sequence[Decided]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for branch in branches:
        found.setdefault(branch.branch_id, []).append(branch.gid)
    return found
