"""What the starters of all patterns share: a gid, and one Submit; for those with branches of their own, their numbers.

Knows no pattern: `tcc.py`, `xa.py`, `saga.py` and `message.py` do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import ClassVar, Self, TypeVar

import structlog

from seckill.dtm.client import DtmClient
from seckill.dtm.errors import CallFailed
from seckill.dtm.protocol import DEFAULTS, BranchContext, TransOptions, header_metadata

BRANCHES_MAX = 99  # ids have two digits

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Starter:
    """One global transaction as its starter sees it. Not for use by several tasks at once."""

    trans_type: ClassVar[str]

    def __init__(self, client: DtmClient, gid: str, options: TransOptions = DEFAULTS) -> None:
        self.gid = gid
        self._client = client
        self._options = options
        self._submitted = False

    def _submit_once(self) -> None:
        self._require_undecided()
        self._submitted = True

    def _require_undecided(self) -> None:
        if self._submitted:
            raise RuntimeError(f"transaction {self.gid} was submitted before")


class BranchedStarter(Starter):
    """A transaction that is prepared first, and whose starter registers and calls its branches; get it from `begin`."""

    def __init__(self, client: DtmClient, gid: str, options: TransOptions) -> None:
        super().__init__(client, gid, options)
        self._branches = 0

    @classmethod
    async def begin(cls, client: DtmClient, gid: str, *, options: TransOptions = DEFAULTS) -> Self:
        """Prepares the gid. Raises Refused when it was decided before, Unavailable when that is unknown."""
        await client.prepare(gid, trans_type=cls.trans_type, options=options)
        return cls(client, gid, options)

    async def submit(self, *, timeout_ms: int | None = None) -> None:
        """Decides: commit. Once: a second call raises RuntimeError, whatever the first one's outcome was."""
        self._submit_once()
        await self._client.submit(self.gid, trans_type=self.trans_type, options=self._options, timeout_ms=timeout_ms)

    async def abort(self, *, reason: str = "") -> None:
        """Decides: roll back. May be repeated; raises RuntimeError after `submit`, whose outcome may be commit."""
        self._require_undecided()
        await self._client.abort(self.gid, trans_type=self.trans_type, options=self._options, reason=reason)

    def _next_branch(self, op: str) -> BranchContext:
        if self._branches == BRANCHES_MAX:
            raise ValueError(f"a transaction has at most {BRANCHES_MAX} branches")
        self._branches += 1
        return BranchContext(self.gid, self.trans_type, f"{self._branches:02d}", op, self._client.address)

    async def _call(self, target: str, context: BranchContext, payload: bytes, *, timeout_ms: int) -> bytes:
        metadata = context.metadata() + header_metadata(self._options.branch_headers)
        return await self._client.channels.call(target, payload, metadata, timeout_ms=timeout_ms)


S = TypeVar("S", bound=BranchedStarter)


async def submitted_after(transaction: S, body: Callable[[S], Awaitable[T]]) -> T:
    """Runs `body`: submits when it returns, aborts and raises again when it raises.

    An abort that cannot be delivered is logged: the coordinator then rolls back by `timeout_to_fail_s`. Unavailable
    from the submit means that the outcome is unknown; it is decided, and the same for all branches.
    """
    try:
        result = await body(transaction)
    except BaseException as error:
        await asyncio.shield(_abort(transaction, reason=repr(error)))  # also when we are being cancelled
        raise
    await transaction.submit()
    return result


async def _abort(transaction: BranchedStarter, *, reason: str) -> None:
    try:
        await transaction.abort(reason=reason)
    except CallFailed as error:
        log.warning("abort_failed", gid=transaction.gid, error=str(error))
