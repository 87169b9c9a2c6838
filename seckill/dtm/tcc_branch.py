"""The server side of a TCC branch that keeps its state in a database: Try with a stored reply, one decision.

The barrier alone lets a stray Confirm follow a Cancel, since they are different operations; the `decision` row, which
both insert first, does not. Knows nothing of what a branch does. Needs the tables of `branch_tables`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

from sqlalchemy import BigInteger, Column, MetaData, Table, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.dtm.barrier import Barrier, Passage, barrier_table, inserted_by
from seckill.dtm.database import (
    BLOB_MAX_BYTES,
    TABLE_OPTIONS,
    affected,
    ascii_text,
    dialect_of,
    in_chunks,
    insert_ignore,
    long_bytes,
)
from seckill.dtm.errors import DtmError
from seckill.dtm.protocol import CANCEL, CONFIRM, TRY, BranchContext, Metadata


class InvalidRequest(DtmError):
    """A request that no retry will mend: `field` names what is wrong, `problem` says how."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class TryRefused(DtmError):
    """A business failure found in Try: the transaction is to be rolled back. `trailing` carries the facts."""

    def __init__(self, problem: str, trailing: Metadata = ()) -> None:
        super().__init__(problem)
        self.trailing = trailing


class TryTooLate(DtmError):
    """A Try whose Cancel came first: nothing was done, and nothing will be."""

    def __init__(self, context: BranchContext) -> None:
        super().__init__(f"gid {context.gid} branch {context.branch_id} was cancelled before")
        self.context = context


class DecisionLost(DtmError):
    """A Confirm after a Cancel, or a Cancel after a Confirm: nothing was changed. Somebody has to look at it."""

    def __init__(self, context: BranchContext, standing: str) -> None:
        super().__init__(
            f"gid {context.gid} branch {context.branch_id}: {context.op} came after {standing} had been decided"
        )
        self.context = context
        self.standing = standing


class TryMissing(DtmError):
    """A Confirm whose Try has not run: nothing was changed. Asked again after the Try, it goes through."""

    def __init__(self, context: BranchContext) -> None:
        super().__init__(f"gid {context.gid} branch {context.branch_id}: confirm without a try")
        self.context = context


def decision_table(metadata: MetaData) -> Table:
    """How a branch of a gid was ended: one row, by whoever came first."""
    return Table(
        "decision",
        metadata,
        Column("gid", ascii_text(128), primary_key=True),
        Column("branch_id", ascii_text(128), primary_key=True),
        Column("op", ascii_text(45), nullable=False),
        Column("created_at_ms", BigInteger, nullable=False),
        **TABLE_OPTIONS,
    )


def branch_reply_table(metadata: MetaData) -> Table:
    """What a Try answered, byte by byte. An empty answer is not kept."""
    return Table(
        "branch_reply",
        metadata,
        Column("gid", ascii_text(128), primary_key=True),
        Column("branch_id", ascii_text(128), primary_key=True),
        Column("reply", long_bytes(), nullable=False),
        Column("created_at_ms", BigInteger, nullable=False),
        **TABLE_OPTIONS,
    )


def branch_tables(metadata: MetaData) -> None:
    """Adds everything that a branch needs beside its own tables."""
    barrier_table(metadata)
    decision_table(metadata)
    branch_reply_table(metadata)


_DECISION = decision_table(MetaData())
_REPLY = branch_reply_table(MetaData())


async def run_try(
    session: AsyncSession, context: BranchContext, business: Callable[[AsyncSession], Awaitable[bytes]]
) -> bytes:
    """Try: runs `business` once and keeps its reply; a repeat gets the same bytes. Raises TryTooLate."""
    passed = await Barrier(context).call(session, business)
    match passed.passage:
        case Passage.RAN:
            reply = passed.value or b""
            await _keep_reply(session, context, reply)
            return reply
        case Passage.REPEATED:
            # The kept reply tells what this gid holds; after a Cancel it holds nothing any more.
            if await decision_of(session, context) == CANCEL:
                raise TryTooLate(context)
            return await _kept_reply(session, context)
        case _:
            raise TryTooLate(context)


async def run_confirm(
    session: AsyncSession, context: BranchContext, business: Callable[[AsyncSession], Awaitable[None]]
) -> Passage:
    """Confirm: runs `business` once. Raises DecisionLost after a Cancel, TryMissing without a Try."""
    barrier = Barrier(context)
    await decide(session, context, CONFIRM)
    if await inserted_by(session, context, op=TRY) != TRY:
        raise TryMissing(context)
    return (await barrier.call(session, business)).passage


async def run_cancel(
    session: AsyncSession,
    context: BranchContext,
    business: Callable[[AsyncSession], Awaitable[None]],
    *,
    origin: str | None = None,
) -> Passage:
    """Cancel: runs `business` once if its Try ran; else keeps the Try from running. Raises DecisionLost.

    Another pattern's compensation is the same, of its action; `origin` as in `Barrier.call`.
    """
    barrier = Barrier(context)
    await decide(session, context, CANCEL)
    return (await barrier.call(session, business, origin=origin)).passage


async def decision_of(session: AsyncSession, context: BranchContext) -> str | None:
    """`confirm`, `cancel`, or None while the branch is undecided."""
    row = select(_DECISION.c.op).where(_DECISION.c.gid == context.gid, _DECISION.c.branch_id == context.branch_id)
    op: str | None = await session.scalar(row)
    return op


async def decide(session: AsyncSession, context: BranchContext, op: str) -> None:
    """Writes down how the branch ends, `confirm` or `cancel`. Raises DecisionLost when it has ended otherwise."""
    row = {"gid": context.gid, "branch_id": context.branch_id, "op": op, "created_at_ms": _now_ms()}
    if await affected(session, insert_ignore(_DECISION, dialect_of(session)), row) > 0:
        return
    standing = await decision_of(session, context)
    if standing != op:
        raise DecisionLost(context, str(standing))


async def take_back(session: AsyncSession, context: BranchContext) -> None:
    """Makes `cancel` of a `confirm` that the branch wrote itself, where no one else may decide."""
    own = update(_DECISION).where(_DECISION.c.gid == context.gid, _DECISION.c.branch_id == context.branch_id)
    await session.execute(own.values(op=CANCEL))


async def decide_many(session: AsyncSession, gids: Sequence[str], *, branch_id: str, op: str) -> None:
    """Writes down how this branch of each gid ends, where nothing is written; `decisions_of` tells what then stands.

    In the order of the gids, so that two calls never wait for each other crosswise.
    """
    if not gids:
        return
    rows = [{"gid": gid, "branch_id": branch_id, "op": op, "created_at_ms": _now_ms()} for gid in sorted(gids)]
    await session.execute(insert_ignore(_DECISION, dialect_of(session)), rows)  # one statement for all


async def decisions_of(session: AsyncSession, gids: Sequence[str], *, branch_id: str) -> dict[str, str]:
    """`confirm` or `cancel` by gid; undecided ones are absent."""
    found: dict[str, str] = {}
    for chunk in in_chunks(gids):
        some = select(_DECISION.c.gid, _DECISION.c.op).where(
            _DECISION.c.gid.in_(chunk), _DECISION.c.branch_id == branch_id
        )
        found.update((gid, op) for gid, op in await session.execute(some))
    return found


async def _keep_reply(session: AsyncSession, context: BranchContext, reply: bytes) -> None:
    if not reply:
        return
    if len(reply) > BLOB_MAX_BYTES:
        raise ValueError(f"a reply of {len(reply)} bytes cannot be kept, {BLOB_MAX_BYTES} is the most")
    row = {"gid": context.gid, "branch_id": context.branch_id, "reply": reply, "created_at_ms": _now_ms()}
    await session.execute(insert(_REPLY), row)


async def _kept_reply(session: AsyncSession, context: BranchContext) -> bytes:
    row = select(_REPLY.c.reply).where(_REPLY.c.gid == context.gid, _REPLY.c.branch_id == context.branch_id)
    reply: bytes | None = await session.scalar(row)
    return reply or b""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
