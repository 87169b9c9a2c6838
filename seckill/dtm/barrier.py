"""DTM's barrier on SQLAlchemy sessions: a branch operation takes effect once, in order, or not at all.

The barrier's rows stand in the same database and transaction as the business rows. Table layout, barrier ids and the
order of the inserts are those of DTM v1.19 (client/dtmcli/barrier.go), so that branches of both kinds can share a
database. Talks to the session that it is given, and to nobody else.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import structlog
import tenacity
from sqlalchemy import Column, DateTime, Index, MetaData, Table, UniqueConstraint, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from seckill.dtm.database import (
    TABLE_OPTIONS,
    affected,
    ascii_text,
    dialect_of,
    insert_ignore,
    is_transient,
    row_number,
)
from seckill.dtm.errors import DtmError
from seckill.dtm.protocol import BRANCH_ID, GID, OP, ROLLBACK, TRANS_TYPE, BranchContext

T = TypeVar("T")

ATTEMPTS_MAX = 5
RETRY_FOR_MS = 3_000
"""No new attempt begins after this time: callers wait no longer than this for a branch, and then ask again."""

_ORIGIN = {"cancel": "try", "compensate": "action", "rollback": "action"}
_LENGTHS = {GID: 128, TRANS_TYPE: 45, BRANCH_ID: 128, OP: 45}
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+", re.ASCII)

log = structlog.get_logger(__name__)


class InvalidMetadata(DtmError):
    """A branch call whose identity cannot be kept: `name` is the metadata key, `problem` says what is wrong."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name
        self.problem = problem


class Raced(DtmError):
    """What a transaction has read changed before it could write: `in_transaction` tries it again from the start."""

    retryable = True


def barrier_table(metadata: MetaData) -> Table:
    """DTM's `barrier` table."""
    return Table(
        "barrier",
        metadata,
        Column("id", row_number(), primary_key=True, autoincrement=True),
        Column("trans_type", ascii_text(45), nullable=False, server_default=""),
        Column("gid", ascii_text(128), nullable=False, server_default=""),
        Column("branch_id", ascii_text(128), nullable=False, server_default=""),
        Column("op", ascii_text(45), nullable=False, server_default=""),
        Column("barrier_id", ascii_text(45), nullable=False, server_default=""),
        Column("reason", ascii_text(45), nullable=False, server_default=""),
        Column("create_time", DateTime, server_default=func.now()),
        Column("update_time", DateTime, server_default=func.now()),
        UniqueConstraint("gid", "branch_id", "op", "barrier_id", name="uniq_barrier"),
        Index("idx_barrier_create_time", "create_time"),
        Index("idx_barrier_update_time", "update_time"),
        **TABLE_OPTIONS,
    )


_BARRIER = barrier_table(MetaData())


class Passage(Enum):
    """What the barrier did with a call."""

    RAN = "ran"
    REPEATED = "repeated"  # the same operation took effect before
    LATE = "late"  # the opposite operation came first: a Try after its Cancel
    EMPTY = "empty"  # a Cancel without a Try: there is nothing to undo, and no Try will run any more


@dataclass(frozen=True, slots=True)
class Passed(Generic[T]):
    """`value` is what the business code returned; None unless it RAN."""

    passage: Passage
    value: T | None = None


class Barrier:
    """The barrier of one branch call, good for one transaction: every new attempt takes a new object.

    Raises InvalidMetadata when a part of the identity is not visible ASCII or longer than its column, which MySQL's
    insert-ignore would cut without a word.
    """

    def __init__(self, context: BranchContext) -> None:
        values = {GID: context.gid, TRANS_TYPE: context.trans_type, BRANCH_ID: context.branch_id, OP: context.op}
        for name, value in values.items():
            if not _VISIBLE_ASCII.fullmatch(value):
                raise InvalidMetadata(name, "must be visible ASCII")
            if len(value) > _LENGTHS[name]:
                raise InvalidMetadata(name, f"longer than {_LENGTHS[name]} characters")
        self._context = context
        self._calls = 0

    async def call(
        self, session: AsyncSession, business: Callable[[AsyncSession], Awaitable[T]], *, origin: str | None = None
    ) -> Passed[T]:
        """Runs `business` inside the caller's transaction unless the barrier says no. The n-th call has id `0n`.

        `origin`: the operation that this one undoes, where it is none of DTM's pairs.
        """
        self._calls += 1
        barrier_id = f"{self._calls:02d}"
        op = self._context.op
        origin = origin or _ORIGIN.get(op)
        origin_is_new = origin is not None and await self._insert(session, origin, barrier_id)
        current_is_new = await self._insert(session, op, barrier_id)
        if not current_is_new:
            late = await self._reason(session, op, barrier_id) != op
            return Passed(Passage.LATE if late else Passage.REPEATED)
        if origin_is_new:
            return Passed(Passage.EMPTY)
        return Passed(Passage.RAN, await business(session))

    async def keep_out(self, session: AsyncSession, op: str) -> bool:
        """Writes the row of `op`'s first call before it, so that it will not run; False: it has run, nothing changed.

        One that is running is waited for: its row is locked.
        """
        await self._insert(session, op, "01", reason=ROLLBACK)
        return await self._reason(session, op, "01") == ROLLBACK

    async def _insert(self, session: AsyncSession, op: str, barrier_id: str, *, reason: str = "") -> bool:
        row = {
            "trans_type": self._context.trans_type,
            "gid": self._context.gid,
            "branch_id": self._context.branch_id,
            "op": op,
            "barrier_id": barrier_id,
            "reason": reason or self._context.op,
        }
        return await affected(session, insert_ignore(_BARRIER, dialect_of(session)), row) > 0

    async def _reason(self, session: AsyncSession, op: str, barrier_id: str) -> str | None:
        return await inserted_by(session, self._context, op=op, barrier_id=barrier_id)


async def inserted_by(
    session: AsyncSession, context: BranchContext, *, op: str, barrier_id: str = "01", locked: bool = False
) -> str | None:
    """The operation that wrote the branch's barrier row of `op`; None when there is no such row.

    `locked`: a transaction that is writing it now is waited for, where the database has row locks.
    """
    row = select(_BARRIER.c.reason).where(
        _BARRIER.c.gid == context.gid,
        _BARRIER.c.branch_id == context.branch_id,
        _BARRIER.c.op == op,
        _BARRIER.c.barrier_id == barrier_id,
    )
    reason: str | None = await session.scalar(row.with_for_update(read=True) if locked else row)
    return reason


# --- transactions ----------------------------------------------------------------------------------------------


async def in_transaction(
    sessions: async_sessionmaker[AsyncSession],
    work: Callable[[AsyncSession], Awaitable[T]],
    *,
    attempts_max: int = ATTEMPTS_MAX,
) -> T:
    """Runs `work` in a transaction of its own and commits; on any error everything is rolled back.

    After 1205, 1213, SQLITE_BUSY and Raced the whole is tried again in a new session, up to `attempts_max` times and
    for RETRY_FOR_MS: after 1205 MySQL has undone only the last statement, so committing the rest would keep a barrier
    row without its effect. A caller that is cancelled waits until the running attempt has ended, one way or the other.
    """
    return await tried_again(lambda: _attempt(sessions, work), after=may_be_tried_again, attempts_max=attempts_max)


def may_be_tried_again(error: BaseException) -> bool:
    return isinstance(error, Raced) or is_transient(error)


async def tried_again(
    attempt: Callable[[], Coroutine[Any, Any, T]],
    *,
    after: Callable[[BaseException], bool],
    attempts_max: int = ATTEMPTS_MAX,
) -> T:
    """`in_transaction` for another kind of transaction: `after` says after which errors `attempt` is run again."""
    retrying = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(attempts_max) | tenacity.stop_after_delay(RETRY_FOR_MS / 1000),
        wait=tenacity.wait_random_exponential(multiplier=0.01, max=0.2),
        retry=tenacity.retry_if_exception(after),
        before_sleep=_log_retry,
        reraise=True,
    )
    return await retrying(_unbroken, attempt)


async def _attempt(sessions: async_sessionmaker[AsyncSession], work: Callable[[AsyncSession], Awaitable[T]]) -> T:
    async with sessions() as session, session.begin():
        return await work(session)


async def _unbroken(attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Half a command on a pooled connection would be read as the next one's answer: cancellation waits."""
    task = asyncio.create_task(attempt())
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("transaction_failed_after_cancel", error=repr(error))
        raise


def _log_retry(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("transaction_retried", attempt=state.attempt_number, error=type(error).__name__)
