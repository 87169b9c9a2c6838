"""XA as its starter sees it: prepare, per branch register and call its method, then submit or abort exactly once.

    async def body(xa: Xa) -> None:
        await xa.call_branch(stock, take, timeout_ms=3_000)
        await xa.call_branch(order, create, timeout_ms=3_000)

    await xa_transaction(client, body)

A branch is one method: the starter calls it with op `action`, and it leaves a prepared database transaction behind; the
coordinator calls it, first branch first, with `commit` or `rollback` until each answers OK.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from seckill.dtm.client import DtmClient
from seckill.dtm.protocol import ACTION, DEFAULTS, XA, BranchContext, TransOptions
from seckill.dtm.starter import BranchedStarter, submitted_after

T = TypeVar("T")


class Xa(BranchedStarter):
    """One global transaction; get it from `begin`. Not for use by several tasks at once."""

    trans_type = XA

    async def call_branch(self, url: str, payload: bytes, *, timeout_ms: int) -> bytes:
        """Registers the next branch (ids `01`, `02`, …) and calls it; returns its reply.

        Registered first, so that the coordinator can end whatever the call leaves behind; `commit` and `rollback` come
        without a payload. Raises Refused, Ongoing or Unavailable, of the coordinator or of the branch (their `target`
        says which); after each of them abort.
        """
        context = await self.register(url)
        return await self._call(url, context, payload, timeout_ms=timeout_ms)

    async def register(self, url: str) -> BranchContext:
        """The first half of `call_branch`. Raises as it does."""
        context = self._next_branch(ACTION)
        await self._client.register_branch(
            self.gid, trans_type=self.trans_type, branch_id=context.branch_id, data={"url": url}, payload=b""
        )
        return context


async def xa_transaction(
    client: DtmClient, body: Callable[[Xa], Awaitable[T]], *, options: TransOptions = DEFAULTS, gid: str | None = None
) -> T:
    """Runs `body` in a new transaction: submits when it returns, aborts and raises again when it raises.

    `gid` is the caller's own, or None for one of the coordinator's. What an abort or submit that cannot be delivered
    means: see `submitted_after`.
    """
    return await submitted_after(await Xa.begin(client, gid or await client.new_gid(), options=options), body)
