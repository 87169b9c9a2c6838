"""One order of a sale in a transaction of its own (saga, two-phase message): frozen until that has finished.

Works on the session that it is given, inside the caller's transaction (`taken_or_refused` alone opens some); knows SQL
and nothing of gRPC. The units are frozen as a Try freezes them. What cannot be frozen leaves nothing of its transaction
behind, neither a barrier row nor a reply; why it cannot is written down afterwards, in a transaction of its own. The
`decision` row keeps what sells and what releases apart, as it does in TCC.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import TypeVar

from sqlalchemy import MetaData, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from seckill.crashpoints import CrashPoint, reach
from seckill.dtm.barrier import Barrier, Passage, barrier_table, in_transaction
from seckill.dtm.database import in_chunks
from seckill.dtm.protocol import CONFIRM, MSG_OP, BranchContext
from seckill.dtm.saga_branch import run_action
from seckill.dtm.tcc_branch import decide_many, decisions_of, run_cancel, run_try
from seckill.product import branches
from seckill.product.decide import Freeze, Group, Reject, Reservation, Stands, State
from seckill.product.holds import TAKEN_BY, HoldId
from seckill.product.reservations import reservations_of_branches
from seckill.product.tables import stock_reservation as rows

T = TypeVar("T")

_BARRIER = barrier_table(MetaData())


class NotFrozen(Exception):
    """The order cannot have its units: the transaction is to be rolled back."""

    def __init__(self, verdict: Reject | Stands) -> None:
        order_id = verdict.row.order_id if isinstance(verdict, Stands) else verdict.order.order_id
        super().__init__(f"order {order_id.hex()} cannot be frozen")
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class Ended:
    """`contradicted`: what another decision keeps from being sold, or what was never frozen."""

    reservations: list[Reservation]
    contradicted: list[HoldId]


# --- freezing ----------------------------------------------------------------------------------------------------


async def act(session: AsyncSession, context: BranchContext, group: Group, *, now_ms: int) -> None:
    """A saga's action. Raises NotFrozen, and ActionTooLate after its compensation."""

    async def freeze(session: AsyncSession) -> None:
        await _freeze(session, context, group, now_ms=now_ms)

    await run_action(session, context, freeze)
    reach(CrashPoint.SAGA_TAKEN_WRITTEN)


async def take(session: AsyncSession, context: BranchContext, group: Group, *, now_ms: int) -> bytes:
    """A message's local transaction; the serialized outcomes, the same bytes for every repeat.

    Raises NotFrozen, and TryTooLate when the coordinator has asked before, or the units were released.
    """

    async def freeze(session: AsyncSession) -> bytes:
        return await _freeze(session, context, group, now_ms=now_ms)

    reply = await run_try(session, context, freeze)
    reach(CrashPoint.MESSAGE_TAKEN_WRITTEN)
    return reply


async def taken_or_refused(
    sessions: async_sessionmaker[AsyncSession],
    context: BranchContext,
    group: Group,
    work: Callable[[AsyncSession], Awaitable[T]],
    *,
    now_ms: int,
) -> T | Reservation:
    """Runs `work` in a transaction. When that raises NotFrozen: what stands of the order, after another transaction has
    written down why, unless a row of it stood before.
    """
    try:
        return await in_transaction(sessions, work)
    except NotFrozen as error:
        match error.verdict:
            case Stands(row, reason):
                return replace(row, reason=reason)
            case Reject(_, reason):
                refusal = str(reason)
    rows = await in_transaction(
        sessions,
        lambda session: branches.reject(
            session, group, refusal, now_ms=now_ms, gid=context.gid, branch_id=context.branch_id
        ),
    )
    return rows[0]


async def _freeze(session: AsyncSession, context: BranchContext, group: Group, *, now_ms: int) -> bytes:
    verdicts = await branches.verdicts_of(session, group)
    for verdict in verdicts:
        if not isinstance(verdict, Freeze):
            raise NotFrozen(verdict)
    return await branches.freeze(session, context, group, verdicts, now_ms=now_ms)


# --- ending ------------------------------------------------------------------------------------------------------


async def drop(session: AsyncSession, context: BranchContext, *, now_ms: int) -> Passage:
    """Ends a message that is not sent (op compensate): what it has frozen is released, and it will freeze nothing.

    Raises DecisionLost when it was sold.
    """

    async def release(session: AsyncSession) -> None:
        await branches.release_frozen(session, context, now_ms=now_ms)

    await Barrier(context).keep_out(session, MSG_OP)
    passage = await run_cancel(session, context, release, origin=MSG_OP)
    reach(CrashPoint.PRODUCT_COMPENSATION_WRITTEN)
    return passage


async def confirm_holds(session: AsyncSession, holds: Sequence[HoldId], *, now_ms: int) -> Ended:
    """Sells what these branches hold, each of which belongs to a transaction that has finished.

    All decisions are written before the first sale's row is locked, as everybody does who ends one branch.
    """
    pieces = list(_pieces(holds))
    for trans_type, branch_id, gids in pieces:
        holding = await _holding(session, trans_type, branch_id, gids)
        await decide_many(session, holding, branch_id=branch_id, op=CONFIRM)
    reservations: list[Reservation] = []
    contradicted: list[HoldId] = []
    for trans_type, branch_id, gids in pieces:
        decisions = await decisions_of(session, gids, branch_id=branch_id)
        confirmed = [gid for gid in gids if decisions.get(gid) == CONFIRM]
        await branches.sell_frozen(session, confirmed, branch_id, now_ms=now_ms)
        contradicted += [HoldId(trans_type, branch_id, gid) for gid in gids if decisions.get(gid) != CONFIRM]
        reservations += await reservations_of_branches(session, gids, branch_id)
    reach(CrashPoint.HOLDS_CONFIRM_WRITTEN)
    return Ended(reservations, contradicted)


def _pieces(holds: Sequence[HoldId]) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Pattern, branch id and gids that one IN list takes, always in the same order."""
    for (trans_type, branch_id), some in groupby(sorted(set(holds)), key=attrgetter("trans_type", "branch_id")):
        for gids in in_chunks([hold.gid for hold in some]):
            yield trans_type, branch_id, gids


async def _holding(session: AsyncSession, trans_type: str, branch_id: str, gids: Sequence[str]) -> list[str]:
    """Those of the gids that hold something which this pattern has frozen: a group's Try is not ended here."""
    op = TAKEN_BY[trans_type]
    taken = (
        select(1)
        .where(_BARRIER.c.gid == rows.c.gid, _BARRIER.c.branch_id == rows.c.branch_id, _BARRIER.c.op == op)
        .where(_BARRIER.c.trans_type == trans_type, _BARRIER.c.reason == op)
    )
    found = await session.scalars(
        select(rows.c.gid)
        .where(rows.c.gid.in_(gids), rows.c.branch_id == branch_id, rows.c.state == State.FROZEN.value)
        .where(taken.exists())
        .distinct()
    )
    return list(found)
