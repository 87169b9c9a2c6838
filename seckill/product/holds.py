"""Branches that have held units for long: what reconciling asks for. Reads only.

Found by the barrier's rows of Try, which have an index by time and are one per group: the path of an order pays
nothing for being found here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import MetaData, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.dtm.barrier import barrier_table
from seckill.dtm.protocol import TRY
from seckill.dtm.tcc_branch import decision_table
from seckill.product.decide import State
from seckill.product.tables import stock_reservation as rows

_BARRIER = barrier_table(MetaData())
_DECISION = decision_table(MetaData())


@dataclass(frozen=True, slots=True)
class Hold:
    """What one undecided branch holds of one sale, and how long ago its Try was."""

    gid: str
    branch_id: str
    sale_id: int
    product_id: int
    orders: int
    units: int
    age_ms: int


async def stale_holds(
    session: AsyncSession, *, older_than_ms: int, newer_than_ms: int | None, limit: int
) -> list[Hold]:
    """Up to `limit` branches, oldest first. Ages are by the database's own clock, in whole seconds."""
    now = await session.scalar(select(func.now()))
    assert now is not None
    frozen = (
        select(rows.c.sale_id, rows.c.product_id, func.sum(rows.c.quantity), func.count())
        .where(rows.c.state == State.FROZEN.value, rows.c.sale_id != 0)
        .group_by(rows.c.sale_id, rows.c.product_id)
    )
    holds: list[Hold] = []
    for gid, branch_id, tried in await session.execute(_undecided(now, older_than_ms, newer_than_ms).limit(limit)):
        of_branch = frozen.where(rows.c.gid == gid, rows.c.branch_id == branch_id)
        age_ms = int((now - tried).total_seconds() * 1_000)
        holds += [
            Hold(gid, branch_id, sale_id, product_id, orders, int(units), age_ms)
            for sale_id, product_id, units, orders in await session.execute(of_branch)
        ]
    return holds


def _undecided(now: Any, older_than_ms: int, newer_than_ms: int | None) -> Any:
    """Gid, branch id and time of the Tries of that age that nobody has decided and that hold something."""
    tried_at = _BARRIER.c.create_time
    decided = select(1).where(_DECISION.c.gid == _BARRIER.c.gid, _DECISION.c.branch_id == _BARRIER.c.branch_id)
    holding = select(1).where(
        rows.c.gid == _BARRIER.c.gid,
        rows.c.branch_id == _BARRIER.c.branch_id,
        rows.c.state == State.FROZEN.value,
        rows.c.sale_id != 0,
    )
    found = (
        select(_BARRIER.c.gid, _BARRIER.c.branch_id, tried_at)
        .where(_BARRIER.c.op == TRY, tried_at <= now - timedelta(milliseconds=older_than_ms))
        .where(~decided.exists(), holding.exists())
        .order_by(tried_at, _BARRIER.c.id)
    )
    if newer_than_ms is not None:
        found = found.where(tried_at >= now - timedelta(milliseconds=newer_than_ms))
    return found
