"""TCC as its starter sees it: prepare, per branch register and call Try, then submit or abort exactly once.

    async def body(tcc: Tcc) -> None:
        await tcc.call_branch(stock, reserve, timeout_ms=3_000)
        await tcc.call_branch(order, create, timeout_ms=3_000)

    await global_transaction(client, body)

The coordinator calls Confirm or Cancel, last branch first, until each answers OK.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from seckill.dtm.client import DtmClient
from seckill.dtm.protocol import CANCEL, CONFIRM, DEFAULTS, TCC, TRY, BranchContext, TransOptions
from seckill.dtm.starter import BranchedStarter, submitted_after

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


class Tcc(BranchedStarter):
    """One global transaction; get it from `begin`. Not for use by several tasks at once."""

    trans_type = TCC

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
        context = self._next_branch(TRY)
        await self._client.register_branch(
            self.gid,
            trans_type=self.trans_type,
            branch_id=context.branch_id,
            data={CONFIRM: branch.confirm, CANCEL: branch.cancel},
            payload=payload,
        )
        return context

    async def call_try(self, branch: Branch, context: BranchContext, payload: bytes, *, timeout_ms: int) -> TryReply:
        """Calls the Try of a branch under the context that `register` gave. Raises as `call_branch` does."""
        return TryReply(await self._call(branch.try_, context, payload, timeout_ms=timeout_ms))


async def global_transaction(
    client: DtmClient, body: Callable[[Tcc], Awaitable[T]], *, options: TransOptions = DEFAULTS, gid: str | None = None
) -> T:
    """Runs `body` in a new transaction: submits when it returns, aborts and raises again when it raises.

    `gid` is the caller's own, or None for one of the coordinator's. What an abort or submit that cannot be delivered
    means: see `submitted_after`.
    """
    return await submitted_after(await Tcc.begin(client, gid or await client.new_gid(), options=options), body)
