"""The server side of a TCC branch that keeps its state in a database: Try with a stored reply, one decision.

The barrier alone lets a stray Confirm follow a Cancel, since they are different operations; the `decision` row, which
both insert first, does not. Knows nothing of what a branch does. Needs the tables of `branch_tables`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from sqlalchemy import BigInteger, Column, MetaData, Table, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from seckill.dtm.barrier import Barrier, Passage, barrier_table, inserted_by
from seckill.dtm.database import (
    BLOB_MAX_BYTES,
    TABLE_OPTIONS,
    affected,
    ascii_text,
    dialect_of,
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
    await _decide(session, context)
    if await inserted_by(session, context, op=TRY) != TRY:
        raise TryMissing(context)
    return (await barrier.call(session, business)).passage


async def run_cancel(
    session: AsyncSession, context: BranchContext, business: Callable[[AsyncSession], Awaitable[None]]
) -> Passage:
    """Cancel: runs `business` once if its Try ran; else keeps the Try from running. Raises DecisionLost."""
    barrier = Barrier(context)
    await _decide(session, context)
    return (await barrier.call(session, business)).passage


async def decision_of(session: AsyncSession, context: BranchContext) -> str | None:
    """`confirm`, `cancel`, or None while the branch is undecided."""
    row = select(_DECISION.c.op).where(_DECISION.c.gid == context.gid, _DECISION.c.branch_id == context.branch_id)
    op: str | None = await session.scalar(row)
    return op


async def _decide(session: AsyncSession, context: BranchContext) -> None:
    assert context.op in (CONFIRM, CANCEL)
    row = {"gid": context.gid, "branch_id": context.branch_id, "op": context.op, "created_at_ms": _now_ms()}
    if await affected(session, insert_ignore(_DECISION, dialect_of(session)), row) > 0:
        return
    standing = await decision_of(session, context)
    if standing != context.op:
        raise DecisionLost(context, str(standing))


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
