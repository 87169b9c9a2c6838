"""TCC as its starter sees it: prepare, per branch register and call Try, then submit or abort exactly once.

    async def body(tcc: Tcc) -> None:
        await tcc.call_branch(stock, reserve, timeout_ms=3_000)
        await tcc.call_branch(order, create, timeout_ms=3_000)

    await global_transaction(client, body)

The coordinator calls Confirm or Cancel, last branch first, until each answers OK.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self, TypeVar

import structlog

from seckill.dtm.client import DtmClient
from seckill.dtm.errors import CallFailed
from seckill.dtm.protocol import CANCEL, CONFIRM, DEFAULTS, TRY, BranchContext, TransOptions, header_metadata

BRANCHES_MAX = 99  # ids have two digits

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Branch:
    """The three operations of a branch, each `host:port/pkg.Service/Method`."""

    try_: str
    confirm: str
    cancel: str


@dataclass(frozen=True, slots=True)
class TryReply:
    payload: bytes


class Tcc:
    """One global transaction; get it from `begin`. Not for use by several tasks at once."""

    def __init__(self, client: DtmClient, gid: str, options: TransOptions) -> None:
        self.gid = gid
        self._client = client
        self._options = options
        self._branches = 0
        self._submitted = False

    @classmethod
    async def begin(cls, client: DtmClient, gid: str, *, options: TransOptions = DEFAULTS) -> Self:
        """Prepares the gid. Raises Refused when it was decided before, Unavailable when that is unknown."""
        await client.prepare(gid, trans_type="tcc", options=options)
        return cls(client, gid, options)

    async def call_branch(
        self, branch: Branch, payload: bytes, *, timeout_ms: int, registered: bytes | None = None
    ) -> TryReply:
        """Registers the next branch (ids `01`, `02`, …) and calls its Try.

        Confirm and Cancel get `registered`, or Try's payload when it is None. Raises Refused, Ongoing or
        Unavailable, of the coordinator or of the branch (their `target` says which); after each of them abort.
        """
        context = await self.register(branch, payload if registered is None else registered)
        return await self.call_try(branch, context, payload, timeout_ms=timeout_ms)

    async def register(self, branch: Branch, payload: bytes) -> BranchContext:
        """The first half of `call_branch`: Confirm and Cancel will get `payload`. Raises as it does."""
        if self._branches == BRANCHES_MAX:
            raise ValueError(f"a transaction has at most {BRANCHES_MAX} branches")
        self._branches += 1
        context = BranchContext(self.gid, "tcc", f"{self._branches:02d}", TRY, self._client.address)
        await self._client.register_branch(
            self.gid,
            trans_type="tcc",
            branch_id=context.branch_id,
            data={CONFIRM: branch.confirm, CANCEL: branch.cancel},
            payload=payload,
        )
        return context

    async def call_try(self, branch: Branch, context: BranchContext, payload: bytes, *, timeout_ms: int) -> TryReply:
        """Calls the Try of a branch under the context that `register` gave. Raises as `call_branch` does."""
        metadata = context.metadata() + header_metadata(self._options.branch_headers)
        reply = await self._client.channels.call(branch.try_, payload, metadata, timeout_ms=timeout_ms)
        return TryReply(reply)

    async def submit(self, *, timeout_ms: int | None = None) -> None:
        """Decides: commit. Once: a second call raises RuntimeError, whatever the first one's outcome was."""
        if self._submitted:
            raise RuntimeError(f"transaction {self.gid} was submitted before")
        self._submitted = True
        await self._client.submit(self.gid, trans_type="tcc", options=self._options, timeout_ms=timeout_ms)

    async def abort(self, *, reason: str = "") -> None:
        """Decides: roll back. May be repeated; raises RuntimeError after `submit`, whose outcome may be commit."""
        if self._submitted:
            raise RuntimeError(f"transaction {self.gid} was submitted before")
        await self._client.abort(self.gid, trans_type="tcc", options=self._options, reason=reason)


async def global_transaction(
    client: DtmClient, body: Callable[[Tcc], Awaitable[T]], *, options: TransOptions = DEFAULTS, gid: str | None = None
) -> T:
    """Runs `body` in a new transaction: submits when it returns, aborts and raises again when it raises.

    `gid` is the caller's own, or None for one of the coordinator's.

    An abort that cannot be delivered is logged: the coordinator then cancels by `timeout_to_fail_s`. Unavailable
    from the submit means that the outcome is unknown; it is decided, and the same for all branches.
    """
    tcc = await Tcc.begin(client, gid or await client.new_gid(), options=options)
    try:
        result = await body(tcc)
    except BaseException as error:
        await asyncio.shield(_abort(tcc, reason=repr(error)))  # also when we are being cancelled
        raise
    await tcc.submit()
    return result


async def _abort(tcc: Tcc, *, reason: str) -> None:
    try:
        await tcc.abort(reason=reason)
    except CallFailed as error:
        log.warning("abort_failed", gid=tcc.gid, error=str(error))
