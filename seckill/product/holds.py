"""Branches that have held units for long: what reconciling asks for. Reads only.

Found by the barrier's rows of what freezes, which have an index by time: the path of an order pays nothing for being
found here. TCC writes one such row for a group, sagas and messages one for an order: so many that one call looks at a
part of them only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, MetaData, Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.dtm.barrier import barrier_table
from seckill.dtm.protocol import ACTION, MSG, MSG_OP, SAGA, TCC, TRY
from seckill.dtm.tcc_branch import decision_table
from seckill.product.decide import State
from seckill.product.tables import stock_reservation as rows

SCANNED_MAX = 50_000
"""Barrier rows that one call looks at: MariaDB takes about 10 µs for one whose branch was decided."""

TAKEN_BY: Mapping[str, str] = {SAGA: ACTION, MSG: MSG_OP}
"""Pattern of one order a transaction → the operation of its branch that freezes."""

_FREEZE = {TCC: TRY, **TAKEN_BY}

_BARRIER = barrier_table(MetaData())
_DECISION = decision_table(MetaData())


@dataclass(frozen=True, slots=True, order=True)
class HoldId:
    """A branch that may hold units of one order; its pattern is one of TAKEN_BY."""

    trans_type: str
    branch_id: str
    gid: str


@dataclass(frozen=True, slots=True)
class Hold:
    """What one undecided branch holds of one sale, and how long ago it froze that."""

    trans_type: str
    gid: str
    branch_id: str
    sale_id: int
    product_id: int
    orders: int
    units: int
    age_ms: int


@dataclass(frozen=True, slots=True)
class Found:
    """`looked_until_ms`: only what is at least so old was looked at; None: everything."""

    holds: list[Hold]
    looked_until_ms: int | None


async def stale_holds(
    session: AsyncSession,
    *,
    older_than_ms: int,
    newer_than_ms: int | None,
    limit: int,
    scanned_max: int = SCANNED_MAX,
) -> Found:
    """Up to `limit` branches, oldest first, among the oldest `scanned_max` barrier rows or some more of one second.

    Ages are by the database's own clock, in whole seconds.
    """
    now = await session.scalar(select(func.now()))
    assert now is not None
    within = [_BARRIER.c.create_time <= now - timedelta(milliseconds=older_than_ms)]
    if newer_than_ms is not None:
        within.append(_BARRIER.c.create_time >= now - timedelta(milliseconds=newer_than_ms))
    times = select(_BARRIER.c.create_time).where(*within).order_by(_BARRIER.c.create_time)  # read from the index alone
    until = await session.scalar(times.offset(scanned_max).limit(1))
    if until is not None:
        within.append(_BARRIER.c.create_time <= until)
    frozen = (
        select(rows.c.sale_id, rows.c.product_id, func.sum(rows.c.quantity), func.count())
        .where(rows.c.state == State.FROZEN.value, rows.c.sale_id != 0)
        .group_by(rows.c.sale_id, rows.c.product_id)
    )
    holds: list[Hold] = []
    for trans_type, gid, branch_id, frozen_at in await session.execute(_undecided(within).limit(limit)):
        of_branch = frozen.where(rows.c.gid == gid, rows.c.branch_id == branch_id)
        age_ms = int((now - frozen_at).total_seconds() * 1_000)
        holds += [
            Hold(trans_type, gid, branch_id, sale_id, product_id, orders, int(units), age_ms)
            for sale_id, product_id, units, orders in await session.execute(of_branch)
        ]
    return Found(holds, None if until is None else int((now - until).total_seconds() * 1_000))


def _undecided(within: Sequence[ColumnElement[bool]]) -> Select[tuple[str, str, str, datetime]]:
    """Pattern, gid, branch id and time of what froze then, holds something, and nobody has decided."""
    decided = select(1).where(_DECISION.c.gid == _BARRIER.c.gid, _DECISION.c.branch_id == _BARRIER.c.branch_id)
    holding = select(1).where(
        rows.c.gid == _BARRIER.c.gid,
        rows.c.branch_id == _BARRIER.c.branch_id,
        rows.c.state == State.FROZEN.value,
        rows.c.sale_id != 0,
    )
    return (
        select(_BARRIER.c.trans_type, _BARRIER.c.gid, _BARRIER.c.branch_id, _BARRIER.c.create_time)
        .where(_BARRIER.c.op.in_(_FREEZE.values()), _BARRIER.c.trans_type.in_(_FREEZE), *within)
        .where(~decided.exists(), holding.exists())
        .order_by(_BARRIER.c.create_time, _BARRIER.c.id)
    )
