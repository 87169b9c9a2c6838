"""The server side of a two-phase message that keeps its state in a database: the local transaction, and the query.

Both write the same barrier row (branch `00`, op `msg`, barrier id `01`): whoever comes first decides whether the
message is sent. Knows nothing of what the transaction does. Needs the table of `barrier_table`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from seckill.dtm.barrier import Barrier, Passage, Passed, in_transaction
from seckill.dtm.errors import DtmError
from seckill.dtm.protocol import MSG_OP, BranchContext

T = TypeVar("T")


class RolledBack(DtmError):
    """The local transaction of a message has not happened and will not: the message is dropped."""

    def __init__(self, context: BranchContext) -> None:
        super().__init__(f"gid {context.gid}: the message's local transaction has not happened")
        self.context = context


async def run_local(
    session: AsyncSession, context: BranchContext, business: Callable[[AsyncSession], Awaitable[T]]
) -> Passed[T]:
    """The local transaction: runs `business` once (RAN); a repeat changes nothing (REPEATED).

    `context` has branch `00` and op `msg`, as `Message.local` says it. Raises RolledBack when a query came first.
    """
    passed = await Barrier(context).call(session, business)
    if passed.passage is Passage.LATE:
        raise RolledBack(context)
    return passed


async def query_prepared(sessions: async_sessionmaker[AsyncSession], context: BranchContext) -> None:
    """How the local transaction ended: returns when it has committed; else it never will, and raises RolledBack.

    One that is running now is waited for. This is a transaction of its own, committed before RolledBack is raised: the
    row that keeps the local transaction out has to stay.
    """
    if await in_transaction(sessions, lambda session: Barrier(context).keep_out(session, MSG_OP)):
        raise RolledBack(context)
