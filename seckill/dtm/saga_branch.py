"""The server side of a saga's branch that keeps its state in a database: an action and its compensation.

The barrier alone is enough here: both operations insert the row of `action`, so whoever comes first decides. Knows
nothing of what a branch does. Needs the table of `barrier_table`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.ext.asyncio import AsyncSession

from seckill.dtm.barrier import Barrier, Passage, inserted_by
from seckill.dtm.errors import DtmError
from seckill.dtm.protocol import COMPENSATE, BranchContext
from seckill.dtm.tcc_branch import InvalidRequest


class ActionRefused(DtmError):
    """A business failure: the saga is to be compensated."""


class ActionTooLate(DtmError):
    """An action whose compensation came first or has followed it: nothing was done, and nothing will be."""

    def __init__(self, context: BranchContext) -> None:
        super().__init__(f"gid {context.gid} branch {context.branch_id} was compensated before")
        self.context = context


@contextmanager
def invalid_is_refused() -> Iterator[None]:
    """Makes an ActionRefused of an InvalidRequest: a coordinator would repeat an action that is invalid for ever."""
    try:
        yield
    except InvalidRequest as error:
        raise ActionRefused(str(error)) from error


async def run_action(
    session: AsyncSession, context: BranchContext, business: Callable[[AsyncSession], Awaitable[None]]
) -> Passage:
    """Action: runs `business` once, a repeat changes nothing (RAN, REPEATED). Raises ActionTooLate."""
    passage = (await Barrier(context).call(session, business)).passage
    if passage is Passage.RAN:
        return passage
    if await inserted_by(session, context, op=COMPENSATE) is not None:
        raise ActionTooLate(context)
    return passage


async def run_compensation(
    session: AsyncSession, context: BranchContext, business: Callable[[AsyncSession], Awaitable[None]]
) -> Passage:
    """Compensation: runs `business` once if the action ran; else keeps the action from running (EMPTY)."""
    return (await Barrier(context).call(session, business)).passage
